"""What a stage has made goes into the experiment: through a real acquisition service, once, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common import environment
from dm.common.errors import ProcessingError
from dm.common.web.server import Server
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.processing import artefact_files
from dm.station.processing.accounts import Account
from dm.station.processing.artefacts import Artefacts
from dm.station.processing.settings import ProcessingSettings
from tests.service.acquisition_fixtures import ADMIN, MANAGER, STATION, Site, running_service, until

MEMBER, STRANGER = "d111111", "d999999"
EXPERIMENT = "artefacts-01"
CONTENTS = {"result.h5": b"r" * 5000, "sub/deep/a.txt": b"a", "sub/deep/b.txt": b"b", ".hidden": b"h"}


@pytest.fixture(scope="module")
def experiment(site: Site) -> dict[str, Any]:
    admin = site.client(ADMIN)
    for username in (MEMBER, STRANGER):
        admin.post("/users", {"username": username, "password": f"password of {username}"})
    made = site.experiment(EXPERIMENT)
    role = {"username": MEMBER, "roleName": "User", "experimentName": EXPERIMENT, "stationName": STATION}
    site.client().post("/userExperimentRoles", role)
    return made


@pytest.fixture(scope="module")
def acquisition(site: Site, new_mongo_database: Callable[[], str]) -> Iterator[Server]:
    with running_service(site, new_mongo_database()) as server:
        yield server


@pytest.fixture(scope="module")
def uploads(acquisition: Server, site: Site) -> Iterator[ExperimentDaqApi]:
    api = ExperimentDaqApi(*MANAGER, url=f"https://localhost:{acquisition.port}", ca_file=site.certificates / "ca.pem")
    yield api
    api.close()


def settings(site: Site, acquisition: Server, **changes: Any) -> ProcessingSettings:
    login = site.directory / "artefacts.login"
    if not login.exists():
        environment.write_login_file(login, *MANAGER)
    return ProcessingSettings.model_validate(
        {
            "port": 0,
            "certificate": site.certificates / "server.pem",
            "key": site.certificates / "server.key",
            "database_url": "mongodb://localhost:27017/unused",
            "artefact_directory": site.directory / "artefacts",
            "artefact_login_file": login,
            "acquisition_url": f"https://localhost:{acquisition.port}",
            **changes,
        }
    )


@pytest.fixture(scope="module")
def artefacts(site: Site, acquisition: Server, experiment: dict[str, Any]) -> Iterator[Artefacts]:
    made = Artefacts(settings(site, acquisition), site.station_settings())
    yield made
    made.close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory as a stage leaves it."""
    for name, content in CONTENTS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def publish(
    artefacts: Artefacts, work: Path | None, *texts: str, owner: str = MEMBER, **more: Any
) -> list[dict[str, Any]]:
    wanted = artefact_files.patterns(texts, str(work) if work else None)
    job = more.pop("job", None) or str(uuid.uuid4())
    name = more.pop("experiment_name", EXPERIMENT)
    return asyncio.run(artefacts.publish(job, owner, more.pop("stage", "01-MAKE"), name, wanted, **more))


def test_files_arrive_below_analysis(
    artefacts: Artefacts, experiment: dict[str, Any], work: Path, uploads: ExperimentDaqApi, site: Site
) -> None:
    job = str(uuid.uuid4())
    records = publish(artefacts, work, "*.h5", "sub/**/*.txt", ".hid*", job=job)
    assert [record["path"] for record in records] == sorted(CONTENTS)
    for record in records:
        content = CONTENTS[record["path"]]
        stored = Path(experiment["analysisDirectory"]) / record["experimentFilePath"]
        assert stored.read_bytes() == content
        assert (record["size"], record["md5Sum"]) == (len(content), hashlib.md5(content).hexdigest())
    again = publish(artefacts, work, "*.h5", "sub/**/*.txt", ".hid*", job=job)
    assert again == records
    found = uploads.listUploadRecords({"processingJobId": job})
    assert len(found) == 1 and found[0]["processingStage"] == "01-MAKE" and found[0]["processingJobOwner"] == MEMBER
    assert not [path for path in (site.directory / "artefacts").rglob("*") if path.suffix in (".h5", ".txt")]
    artefacts.forget(job)
    until(lambda: not list((site.directory / "artefacts").glob(f"{job}-*")), what="the job is forgotten")


def test_a_repetition_of_a_stage_uploads_anew(artefacts: Artefacts, experiment: dict[str, Any], work: Path) -> None:
    job = str(uuid.uuid4())
    publish(artefacts, work, "sub/deep/a.txt", job=job, run="0")
    (work / "sub/deep/a.txt").write_bytes(b"another result")
    (record,) = publish(artefacts, work, "sub/deep/a.txt", job=job, run="1")
    assert record["size"] == len(b"another result")
    assert (Path(experiment["analysisDirectory"]) / "sub/deep/a.txt").read_bytes() == b"another result"
    other = publish(artefacts, work, "sub/deep/a.txt")  # another job, the same file name
    assert other[0]["md5Sum"] == record["md5Sum"]


def test_a_service_killed_in_between_starts_no_second_upload(
    artefacts: Artefacts, work: Path, uploads: ExperimentDaqApi
) -> None:
    """All that a killed service leaves is a copy or an upload; either is found or made anew."""
    job = str(uuid.uuid4())

    async def killed_after_the_start() -> None:
        task = asyncio.create_task(
            artefacts.publish(job, MEMBER, "s", EXPERIMENT, artefact_files.patterns(["result.h5"], str(work)))
        )
        while not await asyncio.to_thread(uploads.listUploadRecords, {"processingJobId": job}):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(killed_after_the_start())
    (record,) = publish(artefacts, work, "result.h5", job=job, stage="s")
    assert record["path"] == "result.h5"
    assert len(uploads.listUploadRecords({"processingJobId": job})) == 1
    (artefacts._place(job, "s", "") / "upload").unlink()  # killed before its id was noted
    assert publish(artefacts, work, "result.h5", job=job, stage="s") == [record]
    assert len(uploads.listUploadRecords({"processingJobId": job})) == 1

    job = str(uuid.uuid4())
    place = artefacts._place(job, "s", "")
    (place / "files").mkdir(parents=True)
    (place / "files" / "result.h5").write_bytes(b"half of i")
    (record,) = publish(artefacts, work, "result.h5", job=job, stage="s")
    assert record["size"] == 5000


def test_who_may_not_write_is_refused(
    artefacts: Artefacts, work: Path, uploads: ExperimentDaqApi, site: Site, acquisition: Server
) -> None:
    before = len(uploads.listUploadRecords())
    for owner in (STRANGER, "d424242", "no such person"):
        with pytest.raises(ProcessingError, match="no member of experiment"):
            publish(artefacts, work, "result.h5", owner=owner)
    with pytest.raises(ProcessingError, match="does not exist"):
        publish(artefacts, work, "result.h5", experiment_name="no-such")
    with pytest.raises(ProcessingError, match="no experimentName"):
        publish(artefacts, work, "result.h5", experiment_name="")
    without = Artefacts(settings(site, acquisition, artefact_login_file=None), site.station_settings())
    with pytest.raises(ProcessingError, match="artefact_login_file"):
        publish(without, work, "result.h5")
    without.close()
    assert len(uploads.listUploadRecords()) == before
    assert publish(artefacts, work, "result.h5", owner=MANAGER[0])


def test_links_and_what_is_outside_are_not_taken(artefacts: Artefacts, work: Path, tmp_path_factory: Any) -> None:
    secret = tmp_path_factory.mktemp("secret")
    (secret / "key").write_text("private")
    (work / "link.txt").symlink_to(secret / "key")
    (work / "linked").symlink_to(secret)
    os.mkfifo(work / "fifo.txt")
    (work / "plain.txt").write_text("plain")
    assert [record["path"] for record in publish(artefacts, work, "*.txt", "linked/*", "**/key")] == ["plain.txt"]
    for name in ("link.txt", "linked/key", "fifo.txt", "missing"):
        with pytest.raises(ProcessingError, match="does not exist after the stage"):
            publish(artefacts, work, name)
    assert publish(artefacts, work, "*.none") == []


def test_files_of_other_accounts_are_not_taken(artefacts: Artefacts, work: Path) -> None:
    """A stage cannot have published what only the service may read."""
    stage = Account("nobody", "/", ("setpriv", "--"))
    with pytest.raises(ProcessingError, match="belongs to user id 0"):
        publish(artefacts, work, "/etc/passwd", account=stage)
    with pytest.raises(ProcessingError, match="belongs to user id"):
        publish(artefacts, work, "result.h5", account=stage)
    if os.geteuid() == 0:
        os.chown(work / "result.h5", pwd.getpwnam("nobody").pw_uid, -1)
        assert len(publish(artefacts, work, "result.h5", account=stage)) == 1


def test_two_files_for_one_place_are_refused(artefacts: Artefacts, work: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "result.h5").write_bytes(b"x")
    with pytest.raises(ProcessingError, match="would both become"):
        publish(artefacts, work, "result.h5", str(other / "result.h5"))


def test_odd_names(artefacts: Artefacts, experiment: dict[str, Any], tmp_path: Path) -> None:
    names = [b"a,b [c]*?.h5", b"\xff\xfe", "ü\n".encode(), b"-rf"]
    for name in names:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(name)
    records = publish(artefacts, tmp_path, "*")
    assert {os.fsencode(record["path"]) for record in records} == set(names)
    for name in names:
        assert Path(os.fsdecode(os.fsencode(experiment["analysisDirectory"]) + b"/" + name)).read_bytes() == name


def test_the_acquisition_service_cannot_read_the_copies(site: Site, acquisition: Server, work: Path) -> None:
    """A directory among the installation's own files is refused by the acquisition service, in words that say why."""
    own = site.station_settings().var_dir / "artefacts"
    made = Artefacts(settings(site, acquisition, artefact_directory=own), site.station_settings())
    try:
        with pytest.raises(ProcessingError, match="files of the DM installation itself"):
            publish(made, work, "result.h5")
    finally:
        made.close()


def test_copies_that_stopped_jobs_left_go(artefacts: Artefacts, site: Site) -> None:
    directory = site.directory / "artefacts"
    going, active, recent = (str(uuid.uuid4()) + "-0123456789abcdef" for _ in range(3))
    for name in (going, active, recent, "of somebody else"):
        (directory / name).mkdir(parents=True)
        if name != recent:
            os.utime(directory / name, (1, 1))
    artefacts.sweep(lambda job: job == active[:36])
    assert {active, recent, "of somebody else"} <= {path.name for path in directory.iterdir()} - {going}
    assert not (directory / going).exists()
    for name in (active, recent, "of somebody else"):
        (directory / name).rmdir()
