"""What must hold at the seams of the engine: ends that overlap, answers that are lost, values a restart must keep."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ProcessingError, ServiceUnavailable
from dm.common.web.routes import Principal
from dm.station.processing import documents, reopening
from dm.station.processing.engine import Engine
from dm.station.processing.executors.local import Local, LocalSettings
from dm.station.processing.executors.running import Executors
from dm.station.processing.jobs import Jobs
from dm.station.processing.rights import Rights
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.slots import FairSlots
from dm.station.processing.store import Store
from dm.station.processing.writer import Writer
from tests.service.processing_fixtures import STAGE_ACCOUNT, processing_values

OWNER = "d123456"
PATIENCE = 60.0


class SlowStore(Store):
    """A database whose answers take their time, or get lost, from when one says so."""

    answer_after = 0.0
    active_after = 0.0
    answers_lost: tuple[str, ...] = ()

    def active_jobs(self) -> Any:
        result = super().active_jobs()
        time.sleep(self.active_after)
        return result

    def update_jobs(self, *arguments: Any) -> Any:
        result = super().update_jobs(*arguments)
        time.sleep(self.answer_after)
        return result

    def reopen_job(self, *arguments: Any) -> bool:
        return self._answered("reopen_job", super().reopen_job(*arguments))

    def children(self, *arguments: Any) -> Any:
        return self._answered("children", super().children(*arguments))

    def _answered(self, name: str, result: Any) -> Any:
        if name in self.answers_lost:
            self.answers_lost = tuple(lost for lost in self.answers_lost if lost != name)
            raise ServiceUnavailable("The processing database does not answer; try again.")
        return result


@pytest.fixture
def store(new_mongo_database: Callable[[], str]) -> Iterator[SlowStore]:
    made = SlowStore(new_mongo_database())
    made.prepare()
    yield made
    made.close()


@pytest.fixture
def spool(run_directory: Path) -> Path:
    """A spool directory of its own for each test."""
    return Path(tempfile.mkdtemp(dir=run_directory))


@contextmanager
def engine(store: Store, spool: Path, **changes: Any) -> Iterator[Engine]:
    """Run an engine on the local executor until the block ends."""
    values = processing_values("mongodb://unused/x", Path("/"), stop_grace=0.5, **changes)
    settings = ProcessingSettings(**values)
    local = Local(spool / "local", LocalSettings(output_grace=0.5))
    made = Engine(store, Executors("local", {"local": local}), settings, spool)
    made.start()
    try:
        yield made
    finally:
        made.close()


def document(store: Store, stages: dict[str, Any], files: tuple[str, ...] = ("/dev/null",), **more: Any) -> Any:
    """Return a job that is not stored yet."""
    account = STAGE_ACCOUNT or OWNER
    workflow = {"name": "w", "owner": OWNER, "userAccount": account, "stages": stages, **more}
    order = store.next_order()
    return documents.new_job(
        job_id=f"j{order}",
        order=order,
        owner=OWNER,
        workflow=workflow,
        arguments={},
        files=list(files),
        error=None,
        data_directory=None,
    )


def submitted(running: Engine, job: dict[str, Any]) -> str:
    assert running.writer.add(job).result(PATIENCE)
    running.submit(job)
    return str(job["_id"])


def until(store: Store, job_id: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Wait until a job's document is as wanted."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = store.job(job_id)
        assert found is not None
        if holds(found):
            return found
        time.sleep(0.01)
    raise AssertionError(f"job {job_id} stays as it is: {found}")


def ended(store: Store, job_id: str) -> dict[str, Any]:
    return until(store, job_id, lambda job: not job["active"])


# --- what ends and goes on ----------------------------------------------------------------------------------------


def test_a_job_resumed_in_the_moment_of_its_end_goes_on(store: SlowStore, spool: Path, work: Path) -> None:
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, {"1": {"command": f"test -e {work}/now"}}))
        store.answer_after = 0.5  # others see the end before the engine hears of it
        found = ended(store, job_id)
        (work / "now").touch()
        assert store.reopen_job(job_id, 0, reopening.resumed(found))
        running.submit(until(store, job_id, lambda job: job["active"]))
        assert ended(store, job_id)["status"] == "done"
        running.wait(job_id, PATIENCE)
        assert not running.running(job_id) and running.load()["jobs"] == 0


def test_a_job_resumed_and_stopped_in_the_moment_of_its_end_stops(store: SlowStore, spool: Path) -> None:
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, {"1": {"command": "exit 1"}, "2": {"command": "sleep 60"}}))
        store.answer_after = 0.5
        found = ended(store, job_id)
        assert found["status"] == "failed"
        values = reopening.resumed(found) | {"stages.s0": {"status": "done"}}
        assert store.reopen_job(job_id, 0, values)
        running.submit(until(store, job_id, lambda job: job["active"]))
        assert store.request_abort(job_id, "aborting")
        running.abort(job_id)
        assert ended(store, job_id)["status"] == "aborted"


def test_a_job_whose_processes_cannot_be_read_at_once_is_taken_up_later(store: SlowStore, spool: Path) -> None:
    job = document(store, {"1": {"command": "true"}})
    job["nextChild"] = documents.EMBEDDED  # as of one that goes on
    with engine(store, spool) as running:
        store.answers_lost = ("children",)
        job_id = submitted(running, job)
        assert ended(store, job_id)["status"] == "done"


def test_a_job_reopened_without_an_answer_goes_on(store: SlowStore, spool: Path, work: Path) -> None:
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, {"1": {"command": f"test -e {work}/now"}}))
        ended(store, job_id)
        (work / "now").touch()
        running.wait(job_id, PATIENCE)
        store.answers_lost = ("reopen_job",)
        jobs = Jobs(store, running, Rights("S", True), None, 1)  # type: ignore[arg-type]
        with pytest.raises(ServiceUnavailable):
            jobs.resume(Principal(OWNER), job_id)
        assert ended(store, job_id)["status"] == "done"


def test_a_stop_during_cleanup_is_known_after_a_restart(store: SlowStore, spool: Path) -> None:
    stages = {"1": {"command": "true"}, "9": {"command": "sleep 60", "cleanup": True}}
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, stages))
        until(store, job_id, lambda job: job.get("outcome") and len(job["children"]) == 2)
    assert store.request_abort(job_id, "aborting")  # the service was killed before its engine was told
    with engine(store, spool):
        assert ended(store, job_id)["status"] == "aborted"


def test_why_a_branch_failed_is_known_after_a_restart(store: SlowStore, spool: Path, work: Path) -> None:
    wait = f"while ! test -e {work}/go; do sleep 0.05; done; echo $filePath >>{work}/ran"
    stages = {
        "a": {"command": wait, "dependsOn": []},
        "b": {"command": "sleep 60", "timeout": 0.3, "dependsOn": []},
    }
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, stages, files=("one", "two")))
        until(store, job_id, lambda job: job["stages"].get("s1", {}).get("status") == "failed" and job["children"])
    (work / "go").touch()
    with engine(store, spool):
        found = ended(store, job_id)
    assert found["status"] == "failed" and "time limit" in (found.get("errorMessage") or "")
    assert (work / "ran").read_text() == "one\n", "after a failure nothing new begins, also not after a restart"


def test_clocks_that_go_wrong_do_not_hold_a_retry(store: SlowStore, spool: Path, work: Path) -> None:
    stage = {"command": f"test -e {work}/now", "retry": {"count": 1, "backoff": 0.2}}
    job = document(store, {"1": stage})
    ahead = time.time() + 86_400
    child = documents.Child(0, 0, 0, 0, "k", "c", None, OWNER, ahead, status="failed", startTime=ahead, endTime=ahead)
    job |= {"nextChild": 1, "children": {"c0": child.to_document()}, "status": "running"}
    job["stages"] = {"s0": {"status": "running"}}
    (work / "now").touch()
    assert store.add_jobs([job]) == [True]
    with engine(store, spool):
        assert ended(store, job["_id"])["status"] == "done"


# --- jobs that cannot be ------------------------------------------------------------------------------------------


def test_a_job_that_cannot_be_read_harms_no_other(store: SlowStore, spool: Path) -> None:
    bad, good = document(store, {"1": {"command": "true"}}), document(store, {"1": {"command": "true"}})
    waiting = document(store, {"1": {"command": "true"}})
    bad |= {"status": "running", "stages": {"s0": {"status": "running"}}, "children": {"c0": {"number": 0}}}
    del waiting["inputError"]
    assert store.add_jobs([bad, waiting, good]) == [True, True, True]
    with engine(store, spool, concurrent_jobs=1) as running:
        assert ended(store, good["_id"])["status"] == "done"
        for job in (bad, waiting):
            found = ended(store, job["_id"])
            assert found["status"] == "failed" and "cannot be read" in found["errorMessage"]
        deadline = time.monotonic() + PATIENCE
        while running.load()["jobs"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert running.load()["jobs"] == 0


def test_a_job_of_the_version_before_goes_on(store: SlowStore, spool: Path) -> None:
    job = document(
        store, {"1": {"command": "echo A: 1", "outputVariableRegexList": ["A: (?P<a>.*)"]}, "2": {"command": "echo $a"}}
    )
    for name in ("priority", "maxConcurrentJobs"):
        del job[name]
    now = time.time()
    child = {
        "number": 0, "stage": 0, "repeat": 0, "file": 0, "key": "old", "command": "echo A: 1", "workingDir": None,
        "userAccount": OWNER, "submitTime": now, "status": "done", "startTime": now, "endTime": now, "exitStatus": 0,
        "stdOut": "A: 1\n", "stdErr": "", "outputTruncated": False, "captured": '{"a": "1"}', "reason": None,
    }  # fmt: skip
    job |= {
        "position": {"stage": 1, "repeat": 0, "wake": None},
        "status": "running",
        "stage": "1",
        "captured": '{"a": "1"}',
        "stages": {"s0": {"status": "done", "files": [0], "nCompletedChildProcesses": 1}},
        "children": {"c0": child},
        "nextChild": 1,
    }
    assert store.add_jobs([job]) == [True]
    with engine(store, spool):
        found = ended(store, job["_id"])
    assert found["status"] == "done" and found["children"]["c1"]["stdOut"] == "1\n"


# --- disks, executors, places -------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_put_aside_loses_no_result(store: SlowStore, spool: Path) -> None:
    (spool / "logs").write_text("in the way")
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, {"1": {"command": "yes | head -c 100000"}}))
        found = ended(store, job_id)
    assert found["status"] == "done"
    child = found["children"]["c0"]
    assert child["exitStatus"] == 0 and child["outputTruncated"] and child["stdOut"].startswith("y\n")


def test_what_runs_is_ended_when_its_job_cannot_be_stored(store: SlowStore, spool: Path, work: Path) -> None:
    class Full(SlowStore):
        """Refuses the end of a process, as a database does with too large a document."""

        def update_jobs(self, changes: Any) -> Any:
            large = {
                name
                for name, (values, _) in changes.items()
                if any(key.startswith("children.") and value.get("endTime") for key, value in values.items())
            }
            super().update_jobs({name: change for name, change in changes.items() if name not in large})
            return dict.fromkeys(large, ProcessingError("The processing database refuses a document: too large."))

    store.__class__ = Full
    stage = {
        "command": f'if [ "$filePath" = one ]; then sleep 0.3; else echo $$ >{work}/pid; exec sleep 600; fi',
        "parallelExec": True,
    }
    with engine(store, spool, parallel_files=2, concurrent_stages=2) as running:
        job_id = submitted(running, document(store, {"1": stage}, files=("one", "two")))
        assert ended(store, job_id)["status"] == "failed"
        pid = int((work / "pid").read_text())
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{pid}").exists()


def test_a_job_stopped_while_its_executor_is_away_ends(store: SlowStore, spool: Path) -> None:
    class Away(Local):
        """An executor whose host cannot be reached."""

        async def open(self, keys: Any) -> None:
            raise ServiceUnavailable("Nobody answers.")

    values = processing_values("mongodb://unused/x", Path("/"))
    executors = Executors("local", {"local": Local(spool / "local"), "away": Away(spool / "away")})
    running = Engine(store, executors, ProcessingSettings(**values), spool)
    running.start()
    try:
        stages = {"1": {"command": "true"}, "2": {"command": "true", "executor": "away"}}
        job_id = submitted(running, document(store, stages))
        until(store, job_id, lambda job: job["stages"].get("s0", {}).get("status") == "done")
        assert store.request_abort(job_id, "aborting")
        running.abort(job_id)
        assert ended(store, job_id)["status"] == "aborted"
    finally:
        running.close()


def test_those_who_wait_for_places_can_be_counted_from_other_threads() -> None:
    over, problems = threading.Event(), []
    slots = FairSlots(1)

    def count() -> None:
        while not over.is_set():
            try:
                assert slots.waiting >= 0
            except RuntimeError as error:
                problems.append(error)
                return

    async def come_and_go() -> None:
        async def one(owner: str) -> None:
            await slots.acquire(owner, owner)
            await asyncio.sleep(0)
            slots.release(owner)

        for _ in range(10):
            await asyncio.gather(*(one(f"o{number}") for number in range(500)))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        asyncio.run(come_and_go())
    finally:
        over.set()
        thread.join()
    assert not problems and slots.waiting == 0


# --- the writer ---------------------------------------------------------------------------------------------------


def test_who_gives_up_waiting_does_not_take_the_writer_along(store: SlowStore) -> None:
    writer = Writer(store)
    job = document(store, {"1": {"command": "true"}})
    writer.start()
    try:
        assert writer.add(job).result(PATIENCE)
        store.answer_after = 0.2
        writer.update(job["_id"], {"values": {"a": 1}}).cancel()
        assert writer.update(job["_id"], {"values": {"a": 2}}).result(PATIENCE) is None
    finally:
        writer.close()


def test_values_no_database_can_hold_are_refused_and_others_stored(store: SlowStore) -> None:
    writer = Writer(store)
    jobs = [document(store, {"1": {"command": "true"}}) for _ in range(3)]
    writer.start()
    try:
        with pytest.raises(ProcessingError):
            writer.add(jobs[0] | {"priority": 1 << 70}).result(PATIENCE)
        refused, added = writer.add(jobs[1] | {"stage": "\ud800"}), writer.add(jobs[2])
        with pytest.raises(ProcessingError):
            refused.result(PATIENCE)
        assert added.result(PATIENCE)
        with pytest.raises(ProcessingError):
            writer.update(jobs[2]["_id"], {"errorMessage": "\ud800"}).result(PATIENCE)
        assert writer.update(jobs[2]["_id"], {"errorMessage": "x"}).result(PATIENCE) is None
    finally:
        writer.close()


def test_a_job_stopped_while_it_waits_for_a_place_and_writes(store: SlowStore, spool: Path) -> None:
    with engine(store, spool, concurrent_stages=1) as running:
        first = submitted(running, document(store, {"1": {"command": "sleep 600"}}))
        until(store, first, lambda job: job["children"])
        store.answer_after = 0.6
        second = submitted(
            running, document(store, {"0": {"command": "true", "runIf": "0 > 1"}, "1": {"command": "true"}})
        )
        until(store, second, lambda job: job["stages"].get("s0", {}).get("status") == "skipped")  # is being written
        for job_id in (second, first):
            assert store.request_abort(job_id, "aborting")
            running.abort(job_id)
        assert ended(store, second)["status"] == ended(store, first)["status"] == "aborted"
        assert running.writer._thread.is_alive()


def test_processes_are_counted_by_descriptors_that_come_back(store: SlowStore, spool: Path) -> None:
    with engine(store, spool) as running:
        for turn in range(2):
            many = [submitted(running, document(store, {"1": {"command": "true"}})) for _ in range(20)]
            for job_id in many:
                assert ended(store, job_id)["status"] == "done"
                running.wait(job_id, PATIENCE)
            if not turn:
                before = len(os.listdir("/proc/self/fd"))
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        assert running.load() == {"jobs": 0, "queued": 0, "running": 0, "waiting": 0}


# --- what is told, and who comes early ----------------------------------------------------------------------------


def test_a_listener_that_fails_fails_no_job(store: SlowStore, spool: Path) -> None:
    def listener(event: dict[str, Any]) -> None:
        raise OSError(f"nobody hears of {event['event']}")

    with engine(store, spool) as running:
        running.context.events = listener
        job_id = submitted(running, document(store, {"1": {"command": "true"}, "2": {"command": "true"}}))
        found = ended(store, job_id)
        running.wait(job_id, PATIENCE)
    assert found["status"] == "done" and len(found["children"]) == 2


def test_a_deleted_job_whose_key_comes_again_runs_again(store: SlowStore, spool: Path) -> None:
    first, again = (document(store, {"1": {"command": "true"}}) for _ in range(2))
    again["_id"] = first["_id"]
    with engine(store, spool) as running:
        assert running.writer.add(first).result(PATIENCE)
        running.look_again()  # nobody knew whether it was stored
        assert ended(store, first["_id"])["status"] == "done"
        running.wait(first["_id"], PATIENCE)
        assert store.delete_job(first["_id"])
        store.answer_after = 0.5
        job_id = submitted(running, again)
        assert ended(store, job_id)["status"] == "done"
        assert store.delete_job(job_id)  # before the engine hears of its end
        store.answer_after = 0.0
        third = document(store, {"1": {"command": "true"}}) | {"_id": job_id}
        assert store.add_jobs([third]) == [True]
        running.submit(third)
        assert ended(store, job_id)["status"] == "done"


def test_jobs_that_come_while_old_ones_are_taken_over_wait(
    store: SlowStore, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dm.station.processing.engine._START_SECONDS", 0.2)
    old, queued = (document(store, {"1": {"command": "sleep 600"}}) for _ in range(2))
    old |= {"status": "running", "stages": {"s0": {"status": "running"}}}
    assert store.add_jobs([old, queued]) == [True, True]
    store.active_after = 1.5
    with engine(store, spool) as running:
        new = submitted(running, document(store, {"1": {"command": "true"}}))
        for job in (old, queued):
            assert store.request_abort(job["_id"], "aborting")
            running.abort(job["_id"])
        assert ended(store, new)["status"] == "done"
        for job in (old, queued):
            assert ended(store, job["_id"])["status"] == "aborted"


def test_a_failure_does_not_wait_for_the_next_repeat_of_another_branch(store: SlowStore, spool: Path) -> None:
    never = {"repeatPeriod": 3600, "repeatUntil": "0 > 1", "maxRepeats": 9}
    stages = {
        "a": {"command": "true", "dependsOn": [], **never},
        "b": {"command": "sleep 1; exit 3", "dependsOn": []},
    }
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, stages))
        found = ended(store, job_id)
    assert found["status"] == "failed" and found["stages"]["s0"]["status"] == "aborted"


def test_a_job_stopped_between_two_attempts_is_aborted(store: SlowStore, spool: Path) -> None:
    stage = {"command": "exit 3", "retry": {"count": 3, "backoff": 3600}}
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, {"1": stage, "2": {"command": "true"}}))
        until(store, job_id, lambda job: job["children"].get("c0", {}).get("endTime"))
        assert store.request_abort(job_id, "aborting")
        running.abort(job_id)
        found = ended(store, job_id)
    assert found["status"] == found["stages"]["s0"]["status"] == "aborted"


def test_who_listens_hears_that_a_job_goes_on(store: SlowStore, spool: Path, work: Path) -> None:
    told: list[str] = []
    with engine(store, spool) as running:
        running.context.events = lambda event: told.append(event.get("status", "")) if event["event"] == "job" else None
        job_id = submitted(running, document(store, {"1": {"command": f"test -e {work}/now"}}))
        found = ended(store, job_id)
        running.wait(job_id, PATIENCE)
        (work / "now").touch()
        assert store.reopen_job(job_id, 0, reopening.resumed(found))
        running.submit(until(store, job_id, lambda job: job["active"]))
        assert ended(store, job_id)["status"] == "done"
        running.wait(job_id, PATIENCE)
    assert told == ["running", "failed", "running", "done"]


def test_an_executor_whose_disk_is_bad_stops_no_other(store: SlowStore, spool: Path) -> None:
    class Bad(Local):
        """An executor that cannot work here."""

        async def open(self, keys: Any) -> None:
            raise PermissionError(13, "Permission denied")

    values = processing_values("mongodb://unused/x", Path("/"))
    executors = Executors("local", {"local": Local(spool / "local"), "bad": Bad(spool / "bad")})
    running = Engine(store, executors, ProcessingSettings(**values), spool)
    running.start()
    try:
        assert ended(store, submitted(running, document(store, {"1": {"command": "true"}})))["status"] == "done"
        assert "Permission denied" in running.problems()["bad"]
    finally:
        running.close()


def test_an_end_that_is_written_twice_does_not_end_what_goes_on(store: SlowStore, spool: Path, work: Path) -> None:
    class Forgetful(SlowStore):
        """Loses the first answer to the end of a job."""

        lost = 0

        def update_jobs(self, changes: Any) -> Any:
            result = super().update_jobs(changes)
            if not self.lost and any("active" in values for values, _ in changes.values()):
                self.lost += 1
                raise ServiceUnavailable("The processing database does not answer; try again.")
            return result

    store.__class__ = Forgetful
    with engine(store, spool) as running:
        job_id = submitted(running, document(store, {"1": {"command": f"test -e {work}/now"}}))
        found = ended(store, job_id)
        (work / "now").touch()
        assert store.reopen_job(job_id, 0, reopening.resumed(found))
        running.submit(until(store, job_id, lambda job: job["active"]))
        running.wait(job_id, PATIENCE)
        again = ended(store, job_id)
    assert again["status"] == "done" and again["restarts"] == 1


def test_a_job_that_went_on_and_ended_meanwhile_is_not_reopened_by_what_was_known_before(store: SlowStore) -> None:
    job = document(store, {"1": {"command": "true"}}) | {"active": 0, "status": "failed"}
    assert store.add_jobs([job]) == [True]
    assert store.reopen_job(job["_id"], 0, {})
    assert store.update_jobs({job["_id"]: ({"active": 0, "restarts": 1}, {})}) == {}
    assert not store.reopen_job(job["_id"], 0, {"stages": {}}), "these values are of the turn before"
    assert store.reopen_job(job["_id"], 1, {})
