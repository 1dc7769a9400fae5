"""What the acquisition service may read is more than what its callers may: its own secrets are no data."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common.client import RestClient, segment
from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.station.acquisition.service import build_from_settings
from tests.service.acquisition_fixtures import ADMIN, MANAGER, STATION, Site, until

# directories of the credentials of transports, of plugins, and of the account itself
CREDENTIALS = ["of ssh", "of a daemon", "of Globus", "of GridFTP", "of a replica", ".ssh"]


@pytest.fixture(scope="module")
def manager(site: Site, new_mongo_database: Callable[[], str]) -> Iterator[RestClient]:
    station = site.station_settings()
    settings_file = site.directory / "etc" / "dm.toml"
    settings_file.parent.mkdir()
    settings_file.write_text("# holds the password of a database")
    for name in [*CREDENTIALS, "copies"]:
        (site.directory / name).mkdir()
    ssh, daemon, globus, gridftp, replica, _own = (site.directory / name / "secret" for name in CREDENTIALS)
    transports = {
        "local": {},
        "rsync": {
            "ssh": ["ssh", "-i", str(ssh)],
            "daemons": {"s": {"url": "rsync://s/m", "directory": "/", "password_file": daemon}},
        },
        "globus": {
            "client_id": str(uuid.uuid4()), "source_collection": str(uuid.uuid4()), "refresh_token_file": globus,
            "destination_collection": str(uuid.uuid4()), "state_directory": site.directory / "var",
        },
        "gridftp": {"proxy": gridftp},
    }  # fmt: skip
    plugins = {
        "replica": {
            "destination": str(site.directory / "copies"),
            "record": False,
            "rsync": {"ssh": ["ssh", "-i", str(replica)]},
        }
    }
    settings = site.acquisition_settings(new_mongo_database(), transports=transports, plugins=plugins)
    with pytest.MonkeyPatch.context() as account:
        account.setenv("HOME", str(site.directory))
        service = build_from_settings(settings, station, settings_file)
    service.start()
    service.server.start()
    client = RestClient(service.server.url, *MANAGER, ca_file=site.certificates / "ca.pem")
    try:
        yield client
    finally:
        client.close()
        service.server.stop()
        service.stop()


@pytest.fixture(scope="module")
def experiment(site: Site) -> str:
    return str(site.experiment("sources1")["name"])


def upload(manager: RestClient, experiment: str, directory: object, **keys: object) -> object:
    return manager.post(f"/experimentsByName/{experiment}/upload/{segment(str(directory))}", {"taskInfo": keys})


@pytest.mark.parametrize("kind", ["upload", "startDaq"])
def test_keys_login_files_and_settings_are_no_data(
    site: Site, manager: RestClient, experiment: str, kind: str, tmp_path: Path
) -> None:
    """A manager would otherwise take the service's key and passwords home as data of an experiment."""
    link = tmp_path / "link"
    link.symlink_to(site.certificates)
    logs = site.directory / "var" / "log"
    logs.mkdir(parents=True, exist_ok=True)
    places = [
        site.certificates,
        f"{site.certificates}/../{site.certificates.name}/",
        link,
        site.directory,
        site.directory / "etc",
        logs,
        *(site.directory / name for name in CREDENTIALS),
        "/",
    ]
    for place in places:
        with pytest.raises(InvalidArgument, match="files of the DM installation itself"):
            manager.post(f"/experimentsByName/{experiment}/{kind}/{segment(str(place))}", {"taskInfo": {}})
    with pytest.raises(InvalidArgument, match="files of the DM installation itself"):
        manager.post(f"/experimentsByName/{experiment}/{kind}/{segment(f'file://{site.certificates}')}", {})


def test_a_directory_beside_them_is_data(manager: RestClient, experiment: str, site: Site) -> None:
    """Neighbours are told apart by components, not by how their names begin."""
    place = site.directory / "etcetera"
    place.mkdir()
    (place / "a").write_bytes(b"data")
    assert upload(manager, experiment, place)


@pytest.mark.parametrize("name", ["../etc/dm.toml", "/etc/passwd", "a/../../etc/dm.toml"])
def test_a_single_file_stays_below_the_directory(
    manager: RestClient, experiment: str, tmp_path: Path, name: str
) -> None:
    with pytest.raises(InvalidArgument):
        upload(manager, experiment, tmp_path, experimentFilePath=name)


def test_a_name_used_again_opens_nothing_of_the_old_experiment(site: Site, manager: RestClient, tmp_path: Path) -> None:
    """Members of a new experiment do not see uploads and file names of a deleted one that had its name."""
    member = ("d444444", "password of a member")
    site.client(ADMIN).post("/users", {"username": member[0], "password": member[1], "lastName": "Member"})
    (tmp_path / "confidential-name").write_bytes(b"x")
    experiment = {"experimentName": "again1", "stationName": STATION}
    site.client().post("/experiments", experiment)
    old = manager.post(f"/experimentsByName/again1/upload/{segment(str(tmp_path))}", {"taskInfo": {}})["id"]
    until(lambda: manager.get(f"/uploads/{old}")["status"] == "done", what="the end of the upload")
    operation = site.client().delete("/experimentsByName/again1", force=True)["id"]
    until(lambda: site.client().get(f"/operations/{operation}")["status"] == "done", what="the end of the deletion")
    site.client().post("/experiments", experiment | {"usernames": [member[0]]})
    with RestClient(manager.url, *member, ca_file=site.certificates / "ca.pem") as client:
        for listing in ("/uploads", "/uploadRecords"):
            assert client.get(listing) == []
        for path in (f"/uploads/{old}", f"/uploads/{old}/files"):
            with pytest.raises(ObjectNotFound):
                client.get(path)


@pytest.mark.parametrize("kind", ["upload", "startDaq"])
def test_a_time_no_database_can_hold_stops_no_other_file(
    manager: RestClient, experiment: str, tmp_path: Path, kind: str
) -> None:
    """Whoever writes into the data directory may set any time: one such file must not end the whole task."""
    place = tmp_path / f"times-{kind}"
    place.mkdir()
    for name in ("early.dat", "far.dat", "good.dat"):
        (place / name).write_bytes(b"data of " + name.encode())
    os.utime(place / "far.dat", (15_000_000_000, 15_000_000_000))  # 2445, beyond 64 bits of nanoseconds
    os.utime(place / "early.dat", (-1_000_000, -1_000_000))
    keys = {"destDirectory": f"times-{kind}", **({"processExistingFiles": True} if kind == "startDaq" else {})}
    task = manager.post(f"/experimentsByName/{experiment}/{kind}/{segment(str(place))}", {"taskInfo": keys})["id"]
    one = f"/{'uploads' if kind == 'upload' else 'daqs'}/{task}"

    def states() -> dict[str, str]:
        return {row["path"]: row["state"] for row in manager.get(f"{one}/files")}

    until(lambda: states().get("good.dat") == "done" == states().get("early.dat"), what="the files with usual times")
    until(lambda: states().get("far.dat") in ("done", "failed"), what="an answer about the other")
    if kind == "startDaq":
        manager.post(f"{one}/stop")
    until(lambda: manager.get(one)["status"] in ("done", "failed"), what="the end")
    assert manager.get(f"{one}/file", path="far.dat")["state"] == states()["far.dat"]


def test_members_learn_nothing_of_files_that_are_not_theirs(site: Site, manager: RestClient, tmp_path: Path) -> None:
    """A detector disk holds files of other experiments, too: what was left out is not described to members."""
    member = ("d555555", "password of a member")
    site.client(ADMIN).post("/users", {"username": member[0], "password": member[1], "lastName": "Member"})
    site.client().post("/experiments", {"experimentName": "shared1", "stationName": STATION, "usernames": [member[0]]})
    for name in ("theirs-before.dat", "others.dat", ".hidden"):
        (tmp_path / name).write_bytes(b"12345")
    keys = {"filePathPattern": "theirs*"}
    daq = manager.post(f"/experimentsByName/shared1/startDaq/{segment(str(tmp_path))}", {"taskInfo": keys})["id"]
    (tmp_path / "theirs.dat").write_bytes(b"1")
    until(lambda: manager.get(f"/daqs/{daq}")["nCompletedFiles"] == 1, what="the new file")
    with RestClient(manager.url, *member, ca_file=site.certificates / "ca.pem") as client:
        assert client.get("/fileExplanation", id=daq, path="theirs.dat")["source"]["size"] == 1
        for name, reason in (("others.dat", "filtered"), (".hidden", "filtered"), ("theirs-before.dat", "before")):
            told = client.get("/fileExplanation", id=daq, path=name)
            assert (told["reason"], told["source"]) == (reason, {}), name
            assert manager.get("/fileExplanation", id=daq, path=name)["source"]["size"] == 5
    manager.post(f"/daqs/{daq}/stop")
    until(lambda: manager.get(f"/daqs/{daq}")["status"] == "done", what="the end")
