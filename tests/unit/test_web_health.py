"""The health model behind /status and /metrics."""

from __future__ import annotations

import threading

import pytest

from dm.common import health as module
from dm.common.health import Health, Latch


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.3)


def by_name(status):
    return {check["name"]: (check["status"], check["message"]) for check in status["checks"]}


def test_the_worst_check_decides():
    health = Health("storage")
    assert health.status()["status"] == "ok"
    health.check("database", lambda: ("ok", "answers"))
    health.check("disk", lambda: ("warning", "90 % full"))
    status = health.status()
    assert status["status"] == "warning"
    assert by_name(status) == {"database": ("ok", "answers"), "disk": ("warning", "90 % full")}
    health.check("disk", lambda: ("critical", "full"))
    assert health.status()["status"] == "critical"
    assert "station" not in status
    assert Health("catalog", "25IDC").status()["station"] == "25IDC"


def test_an_exception_is_critical_short_and_without_secrets():
    def check():
        raise ConnectionError("cannot reach postgresql://dm:hunter2@host/dm\nsecond line " + "x" * 1000)

    health = Health("storage")
    health.check("database", check)
    [(level, message)] = by_name(health.status()).values()
    assert level == "critical"
    assert message.startswith("ConnectionError: cannot reach")
    assert "hunter2" not in message
    assert "\n" not in message
    assert len(message) <= 300


def test_a_file_that_is_missing_is_told_without_its_path():
    def check():
        open("/no/such/secret")  # noqa: SIM115

    health = Health("storage")
    health.check("file", check)
    assert by_name(health.status())["file"] == ("critical", "FileNotFoundError: No such file or directory")


def test_a_latch_has_two_thresholds():
    latch = Latch()
    for value, raised in ((5, False), (11, True), (9, True), (7, False), (9, False), (11, True)):
        assert latch.update(value > 10, value < 8) is raised


def test_a_check_that_answers_nonsense_is_critical():
    health = Health("storage")
    health.check("odd", lambda: ("fine", "x"))
    assert by_name(health.status())["odd"][0] == "critical"


def test_results_are_fresh_for_a_moment_and_checked_once(monkeypatch):
    calls = []
    health = Health("storage")
    health.check("database", lambda: (calls.append(1), ("ok", "x"))[1])
    for _ in range(20):
        health.status()
    assert len(calls) == 1
    health.clear()
    health.status()
    assert len(calls) == 2
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    health.status()
    assert len(calls) == 3


def test_a_hanging_check_neither_hangs_the_status_nor_piles_up():
    release = threading.Event()
    calls = []

    def check():
        calls.append(1)
        release.wait(30)
        return "ok", "back"

    health = Health("storage")
    health.check("database", check)
    health.check("disk", lambda: ("ok", "fine"))
    for _ in range(3):
        status = health.status()
        assert status["status"] == "critical"
        assert by_name(status)["database"][1].startswith("no answer for")
        assert by_name(status)["disk"] == ("ok", "fine")
    assert len(calls) == 1
    release.set()
    assert health._checks["database"].done.wait(30)
    assert by_name(health.status())["database"] == ("ok", "back")


def test_a_check_that_takes_longer_now_and_then_delays_nobody(monkeypatch):
    release = threading.Event()
    release.set()

    def check():
        release.wait(30)
        return "ok", "answers"

    health = Health("catalog")
    health.check("database", check)
    assert by_name(health.status())["database"] == ("ok", "answers")
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.0)
    release.clear()
    for _ in range(5):
        assert by_name(health.status())["database"] == ("ok", "answers")
    monkeypatch.setattr(module, "RECENT_SECONDS", 0.0)
    assert by_name(health.status())["database"][1].startswith("no answer for")
    release.set()
    assert health._checks["database"].done.wait(30)


def test_problems_stay_until_resolved_or_cleared():
    health = Health("acquisition")
    health.problem("upload", "2 files failed")
    health.problem("log", "disk full", "critical")
    assert health.status()["status"] == "critical"
    health.resolve("log")
    health.resolve("log")
    assert by_name(health.status()) == {"upload": ("warning", "2 files failed")}
    health.clear()
    assert health.status()["checks"] == []


def test_metrics():
    health = Health("storage")
    health.counter("files", "Files stored.", ("station",)).labels("25IDC").inc(3)
    health.gauge("queue_length").set(7)
    health.histogram("publish_seconds").observe(0.02)
    assert health.counter("files", labels=("station",)) is health.counter("files", labels=("station",))
    health.check("disk", lambda: (health.gauge("free_bytes").set(5), ("warning", "almost full"))[1])
    text = health.metrics().decode()
    assert 'dm_check_level{check="disk"} 1.0' in text
    assert 'dm_check_level{check="problems"} 0.0' in text
    health.problem("halted 4711", "It could not go on.", "critical")
    problems = health.metrics().decode()
    assert 'dm_check_level{check="problems"} 2.0' in problems and "4711" not in problems
    assert "dm_free_bytes 5.0" in text
    assert 'dm_files_total{station="25IDC"} 3.0' in text
    assert "dm_queue_length 7.0" in text
    assert 'dm_publish_seconds_bucket{le="0.025"} 1.0' in text
    assert 'dm_info{service="storage"' in text
    assert "process_open_fds" in text
    with pytest.raises(TypeError, match="dm_queue_length is a Gauge"):
        health.counter("queue_length")


def test_two_services_in_one_process_do_not_meet():
    one, two = Health("one"), Health("two")
    one.counter("files").inc()
    two.counter("files").inc(5)
    assert "dm_files_total 1.0" in one.metrics().decode()
    assert "dm_files_total 5.0" in two.metrics().decode()
