"""The right people and nobody else: four people that only LDAP knows, two experiments, three ways to the files.

Over HTTPS they log in with their LDAP password; on the file system and over GridFTP the storage host asks LDAP, through
NSS, who they are and which groups they are in. The people of an experiment change while files arrive.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dm.common.client import RestClient
from dm.common.errors import DmException, ObjectNotFound
from dm.site.storage.api import Experiment, StorageServiceApi
from tests.faults.namespace import Namespace, namespace
from tests.service import storage_fixtures as fx
from tests.service.gsi_server import Gsi, running_gsi
from tests.service.ldap_fixtures import site_with_ldap
from tests.service.nslcd_server import running_nslcd
from tests.service.slapd_server import Slapd, running_slapd, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root; see test_storage_unprivileged.py")

ANN, BEN, CAT, DAN = PEOPLE = ("d400001", "d400002", "d400003", "d400004")
STAFF = {fx.MANAGER, fx.SERVICE}
SECONDS = 10.0  # in which somebody who was removed has lost access
WAYS = ("file system", "HTTPS", "GridFTP")


@dataclass
class Place:
    """Everything together."""

    site: fx.Site
    slapd: Slapd
    inside: Namespace
    gsi: Gsi
    directory: Path
    proxies: dict[str, Path]
    clients: dict[str, RestClient]

    def disk(self, username: str, *paths: Path) -> bool:
        """Whether a new process of the user can read the files; it must be all of them or none."""
        words = ["setpriv", f"--reuid={username}", "--regid=100", "--init-groups", "--inh-caps=-all", "--", "cat"]
        done = subprocess.run([*self.inside.prefix, *words, *paths], capture_output=True, check=False)
        assert done.returncode == 0 or not done.stdout, f"{username} can read some of {paths}"
        return done.returncode == 0

    def https(self, username: str, experiment: Experiment, path: str) -> bool:
        """Whether the user can download a file."""
        target = self.directory / f"https-{username}"
        target.unlink(missing_ok=True)
        try:
            self.clients[username].download(
                "/files/download", target, experimentName=experiment["name"], stationName=fx.STATION, path=path
            )
        except ObjectNotFound:
            return False
        return True

    def gridftp(self, username: str, path: Path) -> bool:
        """Whether the user gets a file in a new GridFTP session."""
        target = self.directory / f"gridftp-{username}"
        target.unlink(missing_ok=True)
        return self.gsi.copy(self.proxies[username], path, target).returncode == 0 and target.stat().st_size > 0

    def access(self, username: str, experiment: Experiment, *paths: str) -> dict[str, bool]:
        """Return which ways lead the user to files of an experiment."""
        data = Path(experiment["dataDirectory"])
        return {
            "file system": self.disk(username, *[data / path for path in paths]),
            "HTTPS": self.https(username, experiment, paths[-1]),
            "GridFTP": self.gridftp(username, data / paths[-1]),
        }

    def add(self, name: str, *members: str) -> Experiment:
        """Make an experiment whose group LDAP knows when this returns."""
        added = self.site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=list(members))
        self.settle(added, set(members))
        return added

    def settle(self, experiment: Experiment, members: set[str]) -> None:
        """Wait until LDAP has exactly these members."""
        until(lambda: self.slapd.members(experiment["authGroupName"]) == members | STAFF)

    def explain(self, experiment: Experiment, path: str) -> dict[str, dict[str, Any]]:
        """Have the access of all explained by a service that asks the same name service as the users' processes."""
        words = [
            *self.inside.prefix, sys.executable, Path(__file__).with_name("explain_process.py"),
            self.site.settings.model_dump_json(), str(experiment["id"]), path, *PEOPLE,
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, check=False, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return {told["username"]: told for told in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def place(run_directory: Path, new_postgres_database: Callable[[], str], certificates: Path) -> Iterator[Place]:
    directory = run_directory / f"people-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o711)
    with ExitStack() as stack:
        slapd = stack.enter_context(running_slapd(directory / "slapd"))
        for number, username in enumerate(PEOPLE):
            slapd.add_person(username, f"ldap-secret-of-{username}", 74_000 + number)
        site = stack.enter_context(site_with_ldap(new_postgres_database(), certificates, directory / "site", slapd))
        (directory / "site").chmod(0o711)
        for username in PEOPLE:
            site.service.use_cases.users.add(username, None)
        inside = stack.enter_context(namespace())
        stack.enter_context(running_nslcd(inside, directory / "nslcd", slapd))
        gsi = stack.enter_context(
            running_gsi(directory / "gsi", {username: username for username in PEOPLE}, prefix=inside.prefix)
        )
        clients = {
            username: RestClient(site.url, username, f"ldap-secret-of-{username}", ca_file=site.ca_file)
            for username in PEOPLE
        }
        for client in clients.values():
            stack.callback(client.close)
        proxies = {username: gsi.login(username) for username in PEOPLE}
        yield Place(site, slapd, inside, gsi, directory, proxies, clients)


def test_each_reads_exactly_their_experiments_files(place: Place) -> None:
    of = {place.add("first", ANN, BEN)["name"]: {ANN, BEN}, place.add("second", CAT)["name"]: {CAT}}
    for name, members in of.items():
        experiment = place.site.experiments(fx.MANAGER).getExperimentByName(name, fx.STATION)
        grant = place.site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
        contents = {"a.h5": b"data of a", "deep/er/b.h5": b"data of b"}
        assert {one["status"] for one in fx.publish(place.site.station(), grant, contents).values()} == {"stored"}
        explained = place.explain(experiment, "data/deep/er/b.h5")
        for username, told in explained.items():
            expected = dict.fromkeys(WAYS, username in members)
            assert place.access(username, experiment, *contents) == expected, username
            assert (told["httpsAllowed"], told["diskAllowed"]) == (username in members,) * 2, told
            assert (told["inGroupRecorded"], told["inGroupOnHost"]) == (username in members,) * 2
            assert told["differences"] == [] and told["groupName"] == experiment["authGroupName"]


def test_somebody_removed_loses_access_everywhere(place: Place) -> None:
    experiment = place.add("removal", ANN, BEN)
    grant = place.site.station(fx.MANAGER).addGrant(experiment["name"], "daq", fx.STATION)
    fx.publish(place.site.station(), grant, {"a.h5": b"data"})
    assert place.access(ANN, experiment, "a.h5") == dict.fromkeys(WAYS, True)
    file = Path(experiment["dataDirectory"], "a.h5")
    place.site.users(fx.MANAGER).deleteUserExperimentRole(ANN, "User", experiment["name"], fx.STATION)
    removed = time.monotonic()
    assert not place.https(ANN, experiment, "a.h5")
    out_in_time(removed, lambda: place.gridftp(ANN, file))
    out_in_time(removed, lambda: place.disk(ANN, file))
    assert place.access(BEN, experiment, "a.h5") == dict.fromkeys(WAYS, True)
    place.site.users(fx.ADMIN).updateUser(BEN, active=False)
    removed = time.monotonic()
    with pytest.raises(DmException):
        place.https(BEN, experiment, "a.h5")
    out_in_time(removed, lambda: place.gridftp(BEN, file))
    out_in_time(removed, lambda: place.disk(BEN, file))


def out_in_time(removed: float, tries: Callable[[], bool]) -> None:
    """Try until it no longer works; what is begun after the time allowed must not."""
    begun = time.monotonic()
    while tries():
        assert begun < removed + SECONDS
        begun = time.monotonic()


class Upload:
    """Batches published one after the other until it is told to stop; remembers what became of each file."""

    def __init__(self, place: Place, experiment: Experiment) -> None:
        self._station: StorageServiceApi = place.site.station()
        self._experiment = experiment
        self._grant = place.site.station(fx.MANAGER).addGrant(experiment["name"], "upload", fx.STATION)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.stored: list[str] = []
        self.errors: list[str] = []
        self.batches: list[str] = []

    def __enter__(self) -> Upload:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            contents = {f"run{number}/{name}.h5": os.urandom(2000) for name in "abcd"}
            try:
                outcome = fx.publish(self._station, self._grant, contents)
            except DmException as error:
                self.errors.append(str(error))
                return
            self.stored += [path for path, one in outcome.items() if one["status"] == "stored"]
            self.errors += [one["errorMessage"] for one in outcome.values() if one["status"] == "failed"]

    def wait(self, more: int) -> None:
        """Wait until so many further files arrived, or the upload ended."""
        wanted = len(self.stored) + more
        until(lambda: len(self.stored) >= wanted or not self._thread.is_alive(), what="further files")


def test_f49_members_change_during_an_upload(place: Place) -> None:
    """Files that arrive meanwhile are those of the members at the end, and nobody else's."""
    experiment = place.add("changing", ANN)
    users = place.site.users(fx.MANAGER)

    def give(username: str, role: str = "User") -> None:
        users.addUserExperimentRole(username, role, experiment["name"], fx.STATION)

    def take(username: str, role: str = "User") -> None:
        users.deleteUserExperimentRole(username, role, experiment["name"], fx.STATION)

    with Upload(place, experiment) as upload:
        for _ in range(3):
            give(CAT)
            upload.wait(4)
            take(ANN)
            give(DAN, "PI")
            upload.wait(4)
            take(CAT)
            give(ANN)
            take(DAN, "PI")
        take(ANN)
        give(CAT)
        give(DAN, "PI")
        upload.wait(8)
    members = {CAT, DAN}
    assert upload.errors == [] and len(upload.stored) >= 24
    place.settle(experiment, members)
    data = Path(experiment["dataDirectory"])
    gid = (place.slapd.entry(f"cn={experiment['authGroupName']},{place.slapd.groups}") or {})["gidNumber"]
    found = [data, *data.rglob("*")]
    assert {path.lstat().st_gid for path in found} == {int(gid[0])}
    assert {path.lstat().st_mode & 0o7777 for path in found} == {0o2750, 0o640}
    for username in (ANN, CAT, DAN):
        until(lambda name=username: place.disk(name, data / upload.stored[0]) == (name in members))
        expected = dict.fromkeys(WAYS, username in members)
        assert place.access(username, experiment, *upload.stored) == expected, username


def test_f49_an_experiment_is_deleted_during_an_upload(place: Place) -> None:
    """No batch and no membership stays behind, nobody reads what is set aside, and the upload is told."""
    experiment = place.add("deleted", CAT)
    data = Path(experiment["dataDirectory"])
    api = place.site.experiments(fx.MANAGER)
    with Upload(place, experiment) as upload:
        upload.wait(4)
        assert place.disk(CAT, data / upload.stored[0])
        operation = api.deleteExperimentByName(experiment["name"], fx.STATION, force=True)
        until(lambda: bool(upload.errors), what="the upload was told")
        until(lambda: api.getOperation(operation["id"])["status"] not in ("pending", "running"), what="the deletion")
    assert api.getOperation(operation["id"])["status"] == "done"
    assert not data.exists() and not place.disk(CAT, data / upload.stored[0])
    with place.site.service.store.transaction() as connection:
        left = connection.exec_driver_sql(
            "SELECT count(*) FROM batches WHERE experiment_id = %s AND state IN ('open', 'queued', 'publishing')",
            (experiment["id"],),
        ).scalar_one()
    assert left == 0
    # As long as it can be restored its group stays, with nobody in it.
    until(lambda: not place.slapd.members(experiment["authGroupName"]), what="the end of the memberships")
    aside = list(data.parents[1].glob(".deleted/*/data/run*/*"))
    assert {str(path.relative_to(path.parents[1])) for path in aside} == set(upload.stored)
    assert not place.disk(CAT, *aside)
    with pytest.raises(ObjectNotFound):
        api.getExperimentByName(experiment["name"], fx.STATION)
