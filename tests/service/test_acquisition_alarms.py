"""Alarms in ``/status`` come, stay as long as there is a reason, and go; strangers read no directories in them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.client import RestClient
from dm.common.health import Health
from dm.station.acquisition import metrics
from dm.station.acquisition.alarms import Alarms
from dm.station.acquisition.office import Office
from dm.station.acquisition.pace import Pace, Progress
from dm.station.acquisition.rows import State, stamp_key
from dm.station.acquisition.service import build_from_settings
from dm.station.acquisition.task import Task
from tests.service.acquisition_fixtures import MANAGER, PRINCIPAL, Site, finish, running_office, until


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Health:
    monkeypatch.setattr("dm.common.health.FRESH_SECONDS", 0.0)
    return Health("acquisition", "25IDC")


@pytest.fixture(scope="module")
def office(site: Site, new_mongo_database: Callable[[], str]) -> Iterator[Office]:
    limits: dict[str, Any] = {
        "stalled_minutes": 10, "backlog_files": 1000, "growth_files": 100, "growth_minutes": 10, "failing_files": 4,
        "failing_minutes": 10, "source_free_percent": 0, "retry_first_seconds": 0.05,
    }  # fmt: skip
    with running_office(site, new_mongo_database(), **limits) as found:
        yield found


@pytest.fixture(autouse=True)
def alarms(office: Office, health: Health) -> Alarms:
    return Alarms(office, health)


@pytest.fixture
def daq(office: Office, site: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Task]:
    """A running DAQ, stopped at the end."""
    experiment = site.experiment(f"a{abs(hash(request.node.name)) % 10**8}")
    source = tmp_path / "secret-source"
    source.mkdir()
    info = office.start("daq", PRINCIPAL, experiment["name"], str(source), {})
    until(lambda: office.info("daq", info["id"])["status"] == "running")
    yield office.live[info["id"]]
    office.stop("daq", info["id"], abort=True)
    finish(office, "daq", info["id"])


def check(health: Health, name: str) -> tuple[str, str]:
    """Return level and message of one check; nothing said to strangers names directory or experiment."""
    status = health.status()
    assert "secret-source" not in str(status)
    [found] = [one for one in status["checks"] if one["name"] == name]
    return found["status"], found["message"]


def history(task: Task, moments: list[tuple[float, Progress]]) -> None:
    """Give a task a past: seconds ago, and how far it was then."""
    now = time.monotonic()
    task.pace = Pace(now - 7200)
    for ago, progress in moments:
        task.pace.note(now - ago, progress)


def test_all_is_well_at_first(health: Health, daq: Task) -> None:
    status = health.status()
    assert status["status"] == "ok", status
    assert {check["name"] for check in status["checks"]} == {
        "database", "lease", "tasks", "progress", "failures", "plugins", "backlog", "sources",
    }  # fmt: skip


def test_standing_still(health: Health, daq: Task) -> None:
    daq.trouble = "secret-source/a.dat: no route to host."
    waiting = Progress(files=3, waiting=5)
    history(daq, [(1200, waiting), (700, waiting), (0, waiting)])
    # What the thread of the DAQ notes of the true state (nothing waits) would end the alarm.
    daq.note_pace = lambda: None  # type: ignore[method-assign]
    level, text = check(health, "progress")
    assert level == "warning" and text.startswith(f"DAQ {daq.id} has finished nothing for 20 min")
    [full] = daq.info()["alarms"]
    assert daq.data_directory in full and daq.experiment["name"] in full and "no route to host" in full
    daq.pace.note(time.monotonic(), Progress(files=4, waiting=4))
    assert check(health, "progress")[0] == "ok"
    assert daq.info()["alarms"] == []


def test_a_growing_backlog_is_told_until_it_has_shrunk(
    health: Health, daq: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Progress()
    monkeypatch.setattr(daq, "far", lambda: now)
    monkeypatch.setattr(daq, "note_pace", lambda: None)
    now = Progress(waiting=640)
    history(daq, [(float(ago), Progress(waiting=700 - ago)) for ago in range(690, 59, -10)])
    level, text = check(health, "backlog")
    assert level == "warning" and text.startswith(f"DAQ {daq.id} gets files faster than they are stored: 640 files")
    now = Progress(waiting=500)
    assert check(health, "backlog")[0] == "warning"  # not clearly better
    now = Progress(waiting=45)
    assert check(health, "backlog") == ("ok", "45 files are waiting.")
    now = Progress(waiting=1200)
    history(daq, [(float(ago), now) for ago in range(690, 0, -10)])
    assert check(health, "backlog") == ("warning", "1,200 files are waiting.")  # many, but not more and more
    now = Progress(waiting=900)
    assert check(health, "backlog")[0] == "warning"
    now = Progress(waiting=700)
    assert check(health, "backlog") == ("ok", "700 files are waiting.")


def test_failing_files(health: Health, office: Office, daq: Task, site: Site) -> None:
    other = Path(daq.data_directory).parent / "other"
    other.mkdir()
    for number in range(5):
        (other / f"f{number}").write_bytes(b"first")
    finish(office, "upload", office.start("upload", PRINCIPAL, daq.experiment["name"], str(other), {})["id"])
    assert check(health, "failures")[0] == "ok"
    for number in range(5):
        (Path(daq.data_directory) / f"f{number}").write_bytes(b"other bytes")
    until(lambda: daq.far().failed == 5)
    until(lambda: check(health, "failures")[0] == "warning")  # within a second, when the pace is noted
    text = check(health, "failures")[1]
    assert f"DAQ {daq.id} has 5 failed files, 5 of them of the last 10 min." == text
    [full] = daq.info()["alarms"]
    assert "already exists" in full and daq.data_directory in full


def test_a_disk_almost_full(health: Health, alarms: Alarms, daq: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(daq.data_directory)
    free = 100 * status.f_bavail / status.f_blocks

    def limit(percent: float) -> None:
        alarms.limits = alarms.limits.model_copy(update={"source_free_percent": percent})

    limit(free * 1.05)
    level, text = check(health, "sources")
    assert level == "warning" and text.startswith(f"DAQ {daq.id} reads from a disk with ") and text.endswith(" free.")
    limit(free * 0.9)
    assert check(health, "sources")[0] == "warning"  # a little better is not better
    limit(free * 0.5)
    assert check(health, "sources")[0] == "ok"
    limit(free * 1.05)
    monkeypatch.setattr("dm.station.acquisition.alarms._CRITICAL_PART", 1)
    assert check(health, "sources")[0] == "critical"


def test_a_data_directory_that_cannot_be_seen(health: Health, daq: Task) -> None:
    directory = Path(daq.data_directory)
    directory.rename(directory.with_name("gone"))
    level, text = check(health, "sources")
    assert level == "warning" and "cannot see its data directory (No such file" in text
    directory.with_name("gone").rename(directory)
    assert check(health, "sources")[0] == "ok"


def test_a_daq_that_could_not_go_on_is_told_until_it_is_cleared(
    health: Health, office: Office, site: Site, tmp_path: Path
) -> None:
    source = tmp_path / "secret-source"
    source.mkdir()
    ids = []
    for name in ("halted1", "halted2", "halted3"):
        experiment = site.experiment(name)
        daq = office.start("daq", PRINCIPAL, name, str(source), {})
        until(lambda daq=daq: office.info("daq", daq["id"])["status"] == "running")
        office.live[daq["id"]].halt(f"The grant for {source} was withdrawn.")
        assert finish(office, "daq", daq["id"])["status"] == "failed"
        assert "withdrawn" in office.info("daq", daq["id"])["errorMessage"]
        ids.append(daq["id"])
        assert experiment["name"] == name
    for number, task_id in enumerate(ids):
        until(lambda task_id=task_id: f"halted {task_id}" in str(health.status()))
        level, text = check(health, f"halted {task_id}")
        assert level == "critical" and text.startswith(f"DAQ {task_id} could not go on and has ended")
        if number == 0:
            office.clear("daq", task_id)
        elif number == 1:
            again = office.start("daq", PRINCIPAL, "halted2", str(source), {})
        else:
            health.clear()
        health.status()
        assert f"halted {task_id}" not in str(health.status())
    office.stop("daq", again["id"], abort=False)
    finish(office, "daq", again["id"])


def test_a_thread_that_ended_and_a_task_that_cannot_be_resumed(health: Health, office: Office, daq: Task) -> None:
    thread = office._threads.pop(daq.id)
    level, text = check(health, "tasks")
    assert level == "critical" and text == f"DAQ {daq.id} stands still, its thread ended; restart the service."
    office._threads[daq.id] = thread
    assert check(health, "tasks")[0] == "ok"
    office.unresumed["x1"] = "daq"
    assert check(health, "tasks") == ("critical", "DAQ x1 cannot be resumed with these settings; see the log.")
    del office.unresumed["x1"]
    assert check(health, "tasks")[0] == "ok"


def test_the_same_of_several_is_one_sentence(health: Health, office: Office, site: Site, tmp_path: Path) -> None:
    ids = []
    for number in range(3):
        source = tmp_path / f"secret-source{number}"
        source.mkdir()
        site.experiment(f"several{number}")
        ids.append(office.start("daq", PRINCIPAL, f"several{number}", str(source), {})["id"])
        source.rmdir()
    until(lambda: check(health, "sources")[1].endswith("The same holds for 2 more."))
    for task_id in ids:
        office.stop("daq", task_id, abort=True)
        finish(office, "daq", task_id)


def test_metrics_are_of_the_whole_station(health: Health, office: Office, daq: Task) -> None:
    daq.meters = office.meters = metrics.Meters()  # without what the tests before did
    daq.transport.measured = office.meters.moved  # type: ignore[attr-defined]
    metrics.publish(office, health)
    source = Path(daq.data_directory)
    for number in range(20):
        (source / f"f{number}").write_bytes(b"x" * 1000)
    until(lambda: daq.far().files == 20)
    until(lambda: b'dm_files_finished_total{kind="daq",state="done"} 20.0' in health.metrics())
    text = health.metrics().decode()
    for line in (
        'dm_files{kind="daq",state="done"} 20.0', 'dm_file_bytes{kind="daq",state="done"} 20000.0',
        'dm_tasks{kind="daq"} 1.0', 'dm_lag_seconds_count{kind="daq"} 20.0',
        'dm_bytes_finished_total{kind="daq"} 20000.0',
        'dm_transport_bytes_total{transport="local"} 20000.0', 'dm_oldest_unfinished_seconds{kind="daq"} 0.0',
        'dm_batches{kind="daq",phase="move"} 0.0', "dm_watch_overflows_total 0.0",
    ):  # fmt: skip
        assert line in text, line
    for name in ("dm_database_seconds", "dm_storage_seconds_count", "dm_watch_events_total", "dm_walks_total",
                 "dm_retries_total", "dm_file_rate", "dm_transport_seconds_sum"):  # fmt: skip
        assert name in text, name
    assert daq.id not in text and daq.experiment["name"] not in text and "secret-source" not in text


def test_an_info_record_costs_the_same_however_many_files(health: Health, daq: Task) -> None:
    def calls() -> int:
        made = [0]

        def count(_frame: Any, event: str, _argument: Any) -> None:
            made[0] += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            daq.info()
        finally:
            sys.setprofile(None)
        return made[0]

    few = calls()
    ledger = daq.ledger
    with ledger._lock:
        for number in range(100_000):
            value = stamp_key(number, number) | (State.FAILED if number % 10 == 0 else State.DONE)
            ledger._mark(number, value, number, "It failed." if number % 10 == 0 else "")
    assert daq.info()["countFiles"] == 100_000
    assert abs(calls() - few) < 50
    ledger.clear()


def test_nagios_hears_of_them(site: Site, new_mongo_database: Callable[[], str], tmp_path: Path) -> None:
    settings = site.acquisition_settings(new_mongo_database(), source_free_percent=100, alarm_seconds=0.1)
    service = build_from_settings(settings, site.station_settings())
    plugin = Path(__file__).parents[2] / "etc" / "nagios" / "check_dm"
    source = tmp_path / "secret-source"
    source.mkdir()
    site.experiment("nagios")

    def asked() -> tuple[int, str]:
        words = ["sh", str(plugin), f"https://localhost:{service.server.port}", str(site.certificates / "ca.pem")]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        return done.returncode, done.stdout

    try:
        service.start()
        service.server.start()
        assert asked() == (0, f"OK - https://localhost:{service.server.port}\n")
        client = RestClient(f"https://localhost:{service.server.port}", *MANAGER, ca_file=site.certificates / "ca.pem")
        with client:
            daq = client.post("/daqs", {"experimentName": "nagios", "dataDirectory": str(source)})
            until(lambda: asked()[0] == 1)
            text = asked()[1]
            assert text.startswith(
                f"WARNING - https://localhost:{service.server.port}: DAQ {daq['id']} reads from a disk"
            )
            assert text.count("\n") == 1 and "{" not in text
            [alarm] = client.get(f"/daqs/{daq['id']}")["alarms"]
            assert str(source) in alarm
            client.post(f"/daqs/{daq['id']}/stop")
            until(lambda: asked()[0] == 0)
    finally:
        service.server.stop()
        service.stop()
    code, text = asked()
    assert code == 2 and text.startswith("CRITICAL - ") and "does not answer" in text
