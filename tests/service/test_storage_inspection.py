"""Inspections: what is in storage compared with what is recorded, what is repaired, and what never is."""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.errors import AuthorizationError, InvalidRequest, ObjectNotFound
from dm.common.records import DmObject
from dm.site.storage import acl, inspection, inspection_round, inspection_store
from dm.site.storage.api import Experiment, InspectionDsApi, StorageServiceApi
from dm.site.storage.batches import Signal
from dm.site.storage.inspection import Inspector
from tests.service import storage_fixtures as fx

CONTENTS = {f"run{number // 3}/scan{number}.h5": f"data of scan {number}".encode() for number in range(12)}
FAST = {"files_per_second": 1e6, "megabytes_per_second": 1e6}


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    directory = tmp_path_factory.mktemp("site")
    with fx.running_site(postgres_url, certificates, directory, inspection=FAST) as running:
        yield running


@pytest.fixture
def api(site: fx.Site) -> InspectionDsApi:
    return site._made(InspectionDsApi(fx.MANAGER, fx.password_of(fx.MANAGER), site.url, ca_file=site.ca_file))


@pytest.fixture
def experiment(site: fx.Site) -> Experiment:
    """A new experiment with files."""
    added = site.experiments(fx.MANAGER).addExperiment(
        f"exp-{uuid.uuid4().hex[:8]}", fx.STATION, usernameList=[fx.ALICE]
    )
    outcome = fx.publish(site.station(), grant_of(site, added), CONTENTS)
    assert {found["status"] for found in outcome.values()} == {"stored"}
    return added


def grant_of(site: fx.Site, experiment: Experiment) -> DmObject:
    return site.station(fx.MANAGER).addGrant(experiment["name"], "daq", fx.STATION)


def inspect(api: InspectionDsApi, experiment: Experiment, **options: bool) -> tuple[DmObject, set[tuple[str, str]]]:
    """Have an experiment inspected; return the record, and kind and path of what is wrong and not repaired."""
    record = api.waitForInspection(api.inspectExperiment(experiment["name"], fx.STATION, **options), timeout=60)
    found = list(api.getFindings(experiment["name"], fx.STATION))
    return record, {(one["kind"], one["path"]) for one in found if not one["repaired"]}


def test_a_good_experiment_has_no_findings_and_is_read_when_asked(api: InspectionDsApi, experiment: Experiment) -> None:
    record, found = inspect(api, experiment)
    assert found == set() and record["countFiles"] == len(CONTENTS) and "countBytesRead" not in record.data
    record, found = inspect(api, experiment, readAgain=True)
    assert found == set() and record["countBytesRead"] == sum(map(len, CONTENTS.values()))
    assert record["status"] == "done" and record["rounds"] == 2 and record["readEndTime"] <= record["endTime"]


def test_what_is_missing_changed_damaged_or_extra_is_told_and_never_touched(
    site: fx.Site, api: InspectionDsApi, experiment: Experiment
) -> None:
    data = Path(experiment["dataDirectory"])
    (data / "run0/scan0.h5").unlink()
    (data / "run0/scan1.h5").write_bytes(b"shorter")
    touched = data / "run0/scan2.h5"
    os.utime(touched, ns=(5, 5))
    damaged = data / "run1/scan3.h5"
    status = damaged.stat()
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))
    (data / "run1/by-hand.txt").write_bytes(b"made by hand")
    (data / "run1/link").symlink_to("/etc/hostname")
    os.mkfifo(data / "run1/pipe")
    Path(experiment["analysisDirectory"], "notes.txt").write_bytes(b"allowed")
    expected = {
        ("missing", "data/run0/scan0.h5"),
        ("changed", "data/run0/scan1.h5"),
        ("changed", "data/run0/scan2.h5"),
        ("extra", "data/run1/by-hand.txt"),
        ("link", "data/run1/link"),
        ("special", "data/run1/pipe"),
    }
    by_hand = {("permissions", "data/run1/by-hand.txt"), ("permissions", "analysis/notes.txt")}
    _, found = inspect(api, experiment)
    assert found - by_hand == expected
    before = damaged.read_bytes()
    record, found = inspect(api, experiment, readAgain=True, repair=True)
    expected.add(("digest", "data/run1/scan3.h5"))
    assert found - by_hand == expected and damaged.read_bytes() == before
    assert (record["countMissing"], record["countChanged"], record["countDigest"]) == (1, 2, 1)
    told = {one["path"]: one for one in api.getFindings(experiment["name"])}
    assert "dm-upload --experiment" in told["data/run1/scan3.h5"]["advice"]
    assert "xxh3_128 is" in told["data/run1/scan3.h5"]["detail"]
    check = site.service.application
    assert check is not None
    status_message = {one["name"]: one for one in site.rest().get("/status")["checks"]}
    assert (
        status_message["files"]["status"] == "warning" and experiment["name"] not in status_message["files"]["message"]
    )

    files = site.files(fx.ALICE)
    assert files.statFile("run1/scan3.h5", experiment["name"])["readyForProcessing"] is False
    # Another source may bring back what was verified, and only that.
    grant = grant_of(site, experiment)
    other = {"run1/scan3.h5": b"something else", "run0/scan1.h5": b"something else too"}
    assert {one["status"] for one in fx.publish(site.station(), grant, other, "upload-9").values()} == {"failed"}
    again = {path: CONTENTS[path] for path in ("run0/scan0.h5", "run0/scan1.h5", "run0/scan2.h5", "run1/scan3.h5")}
    outcome = fx.publish(site.station(), grant, again, "upload-9")
    assert {path: one["status"] for path, one in outcome.items()} == {
        "run0/scan0.h5": "stored",
        "run0/scan1.h5": "stored",
        "run0/scan2.h5": "unchanged",
        "run1/scan3.h5": "stored",
    }
    assert files.statFile("run1/scan3.h5", experiment["name"])["readyForProcessing"] is True
    for name in ("by-hand.txt", "link", "pipe"):
        (data / "run1" / name).unlink()
    Path(experiment["analysisDirectory"], "notes.txt").unlink()
    os.utime(touched, ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    _, found = inspect(api, experiment)  # what was restored by hand is read once more, whatever was asked for
    assert found == set()
    assert files.statFile("run0/scan2.h5", experiment["name"])["readyForProcessing"] is True


def test_permissions_are_told_and_repaired_when_asked(api: InspectionDsApi, experiment: Experiment) -> None:
    data = Path(experiment["dataDirectory"])
    (data / "run2").chmod(0o755)
    file = data / "run2/scan6.h5"
    file.chmod(0o644)
    listed = data / "run2/scan7.h5"
    descriptor = os.open(listed, os.O_RDONLY)
    assert acl.put(descriptor, acl.ACCESS, acl.of_mode(0o640, [acl.Entry(acl.USER, 4, 65534)]))
    os.close(descriptor)
    Path(experiment["storageDirectory"]).chmod(0o2755)
    wrong = {("permissions", path) for path in (".", "data/run2", "data/run2/scan6.h5", "data/run2/scan7.h5")}
    _, found = inspect(api, experiment)
    assert found == wrong
    record, found = inspect(api, experiment, repair=True)
    assert found == set() and record["countRepaired"] == len(wrong)
    assert file.stat().st_mode & 0o7777 == 0o640 and (data / "run2").stat().st_mode & 0o7777 == 0o2750
    assert acl.get(str(listed), acl.ACCESS) is None and Path(experiment["storageDirectory"]).stat().st_mode & 0o007 == 0
    record, found = inspect(api, experiment)
    assert found == set() and list(api.getFindings(experiment["name"])) == []


def test_only_managers_inspect_and_see_what_was_found(
    site: fx.Site, api: InspectionDsApi, experiment: Experiment
) -> None:
    def of(username: str) -> InspectionDsApi:
        return site._made(InspectionDsApi(username, fx.password_of(username), site.url, ca_file=site.ca_file))

    with pytest.raises(AuthorizationError):
        of(fx.ALICE).inspectExperiment(experiment["name"], fx.STATION)
    for username in (fx.STRANGER, fx.OTHER_MANAGER):
        with pytest.raises(ObjectNotFound):
            of(username).inspectExperiment(experiment["name"], fx.STATION)
        with pytest.raises(ObjectNotFound):
            of(username).getInspection(experiment["name"], fx.STATION)
    with pytest.raises(AuthorizationError):
        of(fx.OTHER_MANAGER).getInspections(fx.STATION)
    assert api.getInspection(experiment["name"])["status"] == "never"
    inspect(api, experiment)
    assert experiment["name"] in [one["experimentName"] for one in api.getInspections(fx.STATION)]
    with pytest.raises(InvalidRequest):
        api.client.get(f"/inspectionsByExperiment/{experiment['name']}", limit=0)


class DyingAt:
    """Stops an inspector at its n-th step."""

    def __init__(self, inspector: Inspector, number: int) -> None:
        self.count = 0
        self._number = number
        self._inspector = inspector

    def __call__(self) -> None:
        self.count += 1
        if self.count == self._number:
            self._inspector.stopping.set()


def test_a_round_goes_on_where_it_was_stopped(
    site: fx.Site, api: InspectionDsApi, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every so many steps, a round ends with the same counts as one that was not."""
    monkeypatch.setattr(inspection_round, "_PAGE", 2)
    (Path(experiment["dataDirectory"]) / "run3/scan9.h5").unlink()
    whole, found = inspect(api, experiment)
    store, use = site.service.store, site.service.use_cases
    use.permitting.inspector.stop()
    try:
        with store.transaction() as connection:
            inspection_store.ask(connection, experiment["id"], "d111111", {})
        for _ in range(100):
            inspector = Inspector(store, use.permissions._owners, site.settings.inspection, Signal())
            step = DyingAt(inspector, 4)
            monkeypatch.setattr(inspector, "alive", step)
            if inspector.work():
                break
        else:
            pytest.fail("the round never ended")
        assert step.count < 10
    finally:
        site.restart()
    again = api_of(site).getInspection(experiment["name"])
    counts = [{key: value for key, value in one.data.items() if key.startswith("count")} for one in (whole, again)]
    assert counts[0] == counts[1]
    assert {(one["kind"], one["path"]) for one in api_of(site).getFindings(experiment["name"])} == found
    assert found == {("missing", "data/run3/scan9.h5")}


def api_of(site: fx.Site) -> InspectionDsApi:
    made: InspectionDsApi = site._made(
        InspectionDsApi(fx.MANAGER, fx.password_of(fx.MANAGER), site.url, ca_file=site.ca_file)
    )
    return made


def test_files_published_during_an_inspection_are_no_findings(site: fx.Site, experiment: Experiment) -> None:
    api, station, grant = api_of(site), site.station(), grant_of(site, experiment)
    stop = threading.Event()

    def publish(station: StorageServiceApi) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            contents = {path: f"version {number}".encode() for path in CONTENTS} | {f"new/{number}.h5": b"new"}
            fx.publish(station, grant, contents, onConflict="replace")

    thread = threading.Thread(target=publish, args=(station,))
    thread.start()
    try:
        for _ in range(3):
            assert inspect(api, experiment, readAgain=True)[1] == set()
    finally:
        stop.set()
        thread.join()


def test_one_process_inspects_at_a_time_and_everything_comes_round(site: fx.Site, experiment: Experiment) -> None:
    store, use = site.service.store, site.service.use_cases
    use.permitting.inspector.stop()
    try:
        with store.transaction() as connection:
            for name in ("one", "two"):
                inspection_store.ask(connection, experiment["id"], "d111111", {})
                claimed = inspection_store.claim(connection, name, 60)
                assert claimed == (experiment["id"] if name == "one" else None)
            inspection_store.release(connection, experiment["id"], "one", None, 0)
        often = site.settings.inspection.model_copy(update={"every_days": 1e-9, "read_every_days": 1e-9})
        inspector = Inspector(store, use.permissions._owners, often, Signal())
        while True:
            assert inspector.work()
            with store.transaction() as connection:
                rows = {row["experiment_name"]: row for row in inspection_store.at_station(connection, 1)}
            if len(rows) == len(site.experiments(fx.MANAGER).getExperimentsByStation(fx.STATION)) and all(
                row["read_ended"] for row in rows.values()
            ):
                break
    finally:
        site.restart()


def test_a_round_that_somebody_waits_for_goes_first(
    site: fx.Site, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes by its turn is interrupted, and goes on afterwards."""
    monkeypatch.setattr(inspection, "_LOOK_SECONDS", 0.0)
    store, use = site.service.store, site.service.use_cases
    use.permitting.inspector.stop()
    try:
        name = f"exp-{uuid.uuid4().hex[:8]}"
        other = site.experiments(fx.MANAGER).addExperiment(name, fx.STATION)
        with store.transaction() as connection:
            inspection_store.ask(connection, experiment["id"], "", {})
        inspector = Inspector(store, use.permissions._owners, site.settings.inspection, Signal())
        alive, steps = inspector.alive, itertools.count(1)

        def step() -> None:
            if next(steps) == 5:
                with store.transaction() as connection:
                    inspection_store.ask(connection, other["id"], "d111111", {})
            alive()

        monkeypatch.setattr(inspector, "alive", step)
        rounds = []
        for _ in range(3):
            assert inspector.work()
            with store.transaction() as connection:
                rows = [inspection_store.get(connection, one["id"]) for one in (experiment, other)]
            rounds.append(tuple(row["rounds"] if row is not None else None for row in rows))
        assert rounds == [(0, 0), (0, 1), (1, 1)]
        with store.transaction() as connection:
            row = inspection_store.get(connection, experiment["id"])
        assert row is not None and row["counts"]["files"] == len(CONTENTS)
    finally:
        site.restart()


def test_a_file_system_that_is_not_mounted_is_no_loss(site: fx.Site, experiment: Experiment) -> None:
    api = api_of(site)
    asked = api.inspectExperiment(experiment["name"])
    api.waitForInspection(asked, timeout=60)
    away = site.root.with_name("away")
    site.root.rename(away)
    try:
        asked = api.inspectExperiment(experiment["name"])
        for _ in range(200):
            if api.getInspection(experiment["name"]).get("errorMessage"):
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail("no error was noted")
    finally:
        away.rename(site.root)
    assert list(api.getFindings(experiment["name"])) == []
    with site.service.store.transaction() as connection:
        inspection_store.forget(connection, experiment["id"])
    directory = Path(experiment["storageDirectory"])
    directory.rename(directory.with_name("moved"))
    try:
        _, found = inspect(api, experiment)
        assert found == {("missing", ".")}
        assert len(list(site.files(fx.ALICE).getFiles(experiment["name"]))) == len(CONTENTS)
    finally:
        directory.with_name("moved").rename(directory)
    assert inspect(api, experiment)[1] == set()
