"""The local executor by its protocol: real processes under a real supervisor."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from dm.common.errors import ProcessingError
from dm.station.processing import accounts
from dm.station.processing.executors import generation as generation_module
from dm.station.processing.executors import local as local_module
from dm.station.processing.executors.base import MAX_OUTPUT_FILE, Outcome, Task
from dm.station.processing.executors.local import Local, LocalSettings
from dm.station.processing.logs import Logs
from tests.faults.namespace import namespace
from tests.service.processing_fixtures import STAGE_ACCOUNT

ROOT = os.geteuid() == 0
PATIENCE = 60.0
GRACE = 0.4
Body = Callable[..., Coroutine[Any, Any, None]]


@pytest.fixture
def spool(open_directory: Path) -> Path:
    return open_directory / "spool"


@pytest.fixture
def work(open_directory: Path) -> Path:
    place = open_directory / "work"
    place.mkdir()
    place.chmod(0o777)
    return place


class Bench:
    """An executor and short ways to use it."""

    def __init__(self, spool: Path, **settings: Any) -> None:
        self.executor = Local(spool, LocalSettings(**{"output_grace": GRACE, **settings}))
        self.account = accounts.default(STAGE_ACCOUNT)

    async def start(self, key: str, script: str | bytes) -> None:
        data = script.encode() if isinstance(script, str) else script
        await self.executor.start(Task(key, data, self.account))

    async def ended(self, key: str) -> Outcome:
        return await asyncio.wait_for(self.executor.wait(key), PATIENCE)

    async def run(self, script: str | bytes, key: str = "k") -> tuple[Outcome, bytes, bytes]:
        await self.start(key, script)
        return await self.taken(key)

    async def taken(self, key: str) -> tuple[Outcome, bytes, bytes]:
        outcome = await self.ended(key)
        outputs = [file.read_bytes() if file else b"" for file in (outcome.stdout, outcome.stderr)]
        await self.executor.forget(key)
        return outcome, outputs[0], outputs[1]


def with_executor(
    spool: Path, body: Callable[[Bench], Awaitable[None]], keys: tuple[str, ...] = (), **more: Any
) -> None:
    """Run a test's body with an open executor, which is closed afterwards."""

    async def main() -> None:
        bench = Bench(spool, **more)
        await bench.executor.open(keys)
        try:
            await body(bench)
        finally:
            await bench.executor.close()

    asyncio.run(main())


def left_in(spool: Path) -> list[str]:
    return sorted(path.name for path in spool.iterdir())


def supervisors(spool: Path) -> list[psutil.Process]:
    """Return the living supervisors of a spool directory, oldest first."""
    found = []
    for journal in sorted(spool.glob("g-*/journal")):
        header = journal.read_text().split()
        if len(header) > 4 and psutil.pid_exists(int(header[3])):
            process = psutil.Process(int(header[3]))
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.01)
    return found


def text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- one process --------------------------------------------------------------------------------------------------


def test_status_signal_output_and_usage(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        before = time.time()
        outcome, out, err = await bench.run("echo out; echo err >&2; cat; exit 255")
        assert (outcome.exit_status, outcome.signal, outcome.reason, outcome.lost) == (255, None, "", False)
        assert (out, err, outcome.output) == (b"out\n", b"err\n", b"")
        assert outcome.start_time and before - 0.1 <= outcome.start_time <= outcome.end_time <= time.time() + 0.1
        assert outcome.cpu_seconds is not None and outcome.max_memory and outcome.max_memory > 1 << 20
        outcome, _, _ = await bench.run("kill -TERM $$; sleep 9", "term")
        assert (outcome.exit_status, outcome.signal, outcome.reason) == (143, signal.SIGTERM, "")
        outcome, _, _ = await bench.run("kill -KILL $$; sleep 9", "kill")
        assert (outcome.exit_status, outcome.signal) == (137, signal.SIGKILL)
        assert "killed (signal 9), perhaps by the kernel for lack of memory" in outcome.reason
        outcome, out, _ = await bench.run("exec >&- 2>&-; echo lost; exit 7", "closed")
        assert outcome.exit_status == 7 and out == b""
        outcome, out, _ = await bench.run("no-such-program", "missing")
        assert outcome.exit_status == 127

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


def test_what_a_process_finds(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        _, out, _ = await bench.run("ls /proc/self/fd; env | sort; ulimit -n; pwd", "the-key")
        lines = out.decode().split("\n")
        assert lines[:4] == ["0", "1", "2", "3"]  # 3 is the listing's own
        environment = dict(line.split("=", 1) for line in lines if "=" in line)
        assert environment.keys() - {"PWD", "OLDPWD", "SHLVL", "_"} == {
            "PATH",
            "LANG",
            "DM_PROCESSING_KEY",
            "DM_OUTPUT_FILE",
        }
        assert environment["DM_PROCESSING_KEY"] == "the-key"
        _, out, err = await bench.run(
            "echo 1; echo 2 >/dev/stdout; echo 3 | tee /dev/stderr; echo 4 >>/dev/stderr", "reopened"
        )
        assert (out, err) == (b"1\n2\n3\n", b"3\n4\n")
        _, out, _ = await bench.run("cat /proc/self/status; ps -o sid=,pgid= -p $$; echo $$", "status")
        status = dict(line.split(":", 1) for line in out.decode().split("\n") if ":" in line)
        session, group, pid = out.decode().split()[-3:]
        assert session == group == pid
        assert 0 not in map(int, status["Uid"].split())
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert int(status["SigIgn"], 16) & 0x7FFF_FFFF == int(status["SigBlk"], 16) == 0  # above: the C library's own
        if ROOT:
            assert int(status["NoNewPrivs"]) == 1 and int(status["CapBnd"], 16) == 0

    with_executor(spool, body)


def test_scripts_of_any_size_and_content(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        value = b"x" * (4 << 20)
        _, out, _ = await bench.run(b"v='" + value + b"'; echo ${#v}; echo '\xff\xfe'")
        assert out == b"4194304\n\xff\xfe\n"
        many = [bench.run(f"echo {n}{' ' * 70_000}", f"many{n}") for n in range(40)]
        assert [out for _, out, _ in await asyncio.gather(*many)] == [b"%d\n" % n for n in range(40)]

    with_executor(spool, body)


def test_a_spool_directory_with_a_long_name(open_directory: Path) -> None:
    async def body(bench: Bench) -> None:
        assert (await bench.run("echo $DM_OUTPUT_FILE; echo '{}' >$DM_OUTPUT_FILE"))[0].output == b"{}\n"

    with_executor(open_directory / ("x" * 120) / ("y" * 120), body)


def test_a_spool_directory_others_cannot_reach(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    async def body(bench: Bench) -> None:
        outcome, _, err = await bench.run("echo '{}' >$DM_OUTPUT_FILE")
        assert (outcome.output, err) == (b"{}\n", b"")

    with_executor(tmp_path / "spool", body)
    assert left_in(tmp_path / "spool") == [".boot"]


def test_by_way_of_a_program_that_changes_the_account(spool: Path) -> None:
    """As with sudo: the script comes by standard input, the output file is there already."""

    async def body(bench: Bench) -> None:
        bench.account = accounts.Account("other", "/", prefix=("/usr/bin/env",))
        script = "exec </dev/null\ncat; echo '{\"a\": 1}' >$DM_OUTPUT_FILE; echo 2 >/dev/stdout; ls /proc/self/fd\n"
        outcome, out, err = await bench.run(script + "#" * 300_000)
        if ROOT:
            assert outcome.exit_status is None and "never run as root" in outcome.reason
            return
        assert (outcome.exit_status, err, outcome.output) == (0, b"", b'{"a": 1}\n')
        assert out.decode().split() == ["2", "0", "1", "2", "3"]
        await bench.start("stopped", "exec </dev/null\nsleep 1000 & sleep 1000")
        await bench.executor.stop("stopped", signal.SIGTERM)
        assert (await bench.taken("stopped"))[0].signal == signal.SIGTERM

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


@pytest.mark.skipif(not ROOT, reason="only root could start something as root")
def test_nothing_runs_as_root_whatever_it_is_called(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        for user in (None, (0, 0, ()), (0, 65534, (0,))):
            account = accounts.Account("toor", "/", user=user)
            await bench.executor.start(Task(f"k{user}".replace(" ", ""), b"id", account))
            outcome = await bench.ended(f"k{user}".replace(" ", ""))
            assert outcome.exit_status is None and not outcome.lost and "never run as root" in outcome.reason

    with_executor(spool, body)


# --- stopping, and what is left behind ----------------------------------------------------------------------------


def test_stopping_reaches_what_left_the_group(spool: Path, work: Path) -> None:
    script = (
        f"trap : TERM; setsid sh -c 'trap \"\" TERM; echo $$ >{work}/a; sleep 1000' &"
        f"env -i setsid sh -c 'echo $$ >{work}/b; exec sleep 1000' & echo $$ >{work}/c; while :; do sleep 0.05; done"
    )

    async def body(bench: Bench) -> None:
        await bench.start("k", script)
        pids = [int(await until(lambda name=name: text(work / name))) for name in "abc"]
        await bench.executor.stop("k", signal.SIGTERM)
        await until(lambda: not alive(pids[1]))
        assert alive(pids[0]) and alive(pids[2])
        await bench.executor.stop("k", signal.SIGKILL)
        outcome = await bench.ended("k")
        assert (outcome.signal, outcome.reason) == (signal.SIGKILL, "")
        await until(lambda: not any(alive(pid) for pid in pids))

    with_executor(spool, body)


def test_what_holds_the_output_open_is_waited_for(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        outcome, out, _ = await bench.run("(sleep 0.2; echo later) & echo now; exit 4")
        assert (outcome.exit_status, out) == (4, b"now\nlater\n")

    with_executor(spool, body, output_grace=PATIENCE)


def test_what_holds_the_output_open_too_long_is_killed(spool: Path, work: Path) -> None:
    async def body(bench: Bench) -> None:
        started = time.monotonic()
        outcome, _, _ = await bench.run(f"sleep 1000 & echo $! >{work}/pid; exit 5")
        assert outcome.exit_status == 5 and time.monotonic() - started >= GRACE * 0.9
        await until(lambda: not alive(int(text(work / "pid"))))

    with_executor(spool, body)


def test_daemons_do_not_outlive_their_stage(spool: Path, work: Path) -> None:
    daemon = "setsid sh -c '(echo $$ >{file}; exec sleep 1000) </dev/null >/dev/null 2>&1 &' </dev/null >/dev/null 2>&1"
    scripts = {
        "marked": daemon.format(file=work / "marked"),
        "scrubbed": "env -i PATH=$PATH " + daemon.format(file=work / "scrubbed"),
        "group": f"sleep 1000 >/dev/null 2>&1 & echo $! >{work}/group",
    }

    async def body(bench: Bench) -> None:
        for name, script in scripts.items():
            outcome, _, _ = await bench.run(script, name)
            assert outcome.exit_status == 0
        for name in scripts:
            pid = int(await until(lambda name=name: text(work / name)))
            await until(lambda pid=pid: not alive(pid))

    with_executor(spool, body)


def test_too_much_output_ends_a_process(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        outcome, out, err = await bench.run("yes & yes >&2")
        assert outcome.signal == signal.SIGKILL and "more than 1000000 bytes" in outcome.reason
        assert 1_000_000 <= max(len(out), len(err)) < 4_000_000

    with_executor(spool, body, log_limit=1_000_000)


def test_a_disk_without_its_reserve_ends_a_process(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        outcome, out, _ = await bench.run("yes")
        assert outcome.signal == signal.SIGKILL and "disk for the output is full" in outcome.reason
        assert len(out) < 64 << 20

    with_executor(spool, body, reserve=1 << 60)


# --- the output file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "size", "problem"),
    [
        ("printf '{\"a\": 1}' >$DM_OUTPUT_FILE", 8, None),
        ("echo '{}' >$DM_OUTPUT_FILE.new; mv $DM_OUTPUT_FILE.new $DM_OUTPUT_FILE", 3, None),
        (":", 0, None),
        ("head -c 100000000 /dev/zero >$DM_OUTPUT_FILE", MAX_OUTPUT_FILE + 1, None),
        ("ln -s /etc/passwd $DM_OUTPUT_FILE", 0, "it is a link"),
        ("ln -s $DM_OUTPUT_FILE $DM_OUTPUT_FILE", 0, "it is a link"),
        ("mkfifo $DM_OUTPUT_FILE", 0, "no regular file"),
        ("mkdir -p $DM_OUTPUT_FILE/a/b; echo x >$DM_OUTPUT_FILE/a/f", 0, "no regular file"),
    ],
    ids=["plain", "renamed", "none", "huge", "link", "loop", "fifo", "directory"],
)
def test_the_output_file(script: str, size: int, problem: str | None, spool: Path) -> None:
    async def body(bench: Bench) -> None:
        outcome, _, err = await bench.run(script)
        assert (outcome.exit_status, err, len(outcome.output)) == (0, b"", size)
        assert (problem in outcome.reason) if problem else outcome.reason == ""
        left = [path for path in (spool / "exchange").rglob("*") if path.name != "k.new"]
        assert [path.name for path in left if path.parent != spool / "exchange"] == []

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


@pytest.mark.skipif(not ROOT, reason="needs a second account")
def test_a_file_of_another_account_is_not_read(spool: Path, work: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.start("k", f"echo $DM_OUTPUT_FILE >{work}/name; while ! test -e {work}/go; do sleep 0.01; done")
        file = Path((await until(lambda: text(work / "name"))).strip())
        file.write_text("secret")
        os.chown(file, 1, 1)
        (work / "go").touch()
        outcome = await bench.ended("k")
        assert outcome.output == b"" and "belongs to another account" in outcome.reason
        await bench.executor.forget("k")

    with_executor(spool, body)


# --- services that go away ----------------------------------------------------------------------------------------


async def abandoned(spool: Path, scripts: dict[str, str], ready: Callable[[], Any]) -> None:
    """Start processes by an executor that is then left without a word, as kill -9 of its service does."""
    bench = Bench(spool)
    await bench.executor.open(())
    for key, script in scripts.items():
        await bench.start(key, script)
    await until(ready)
    for generation in bench.executor._generations:
        await generation.close()


def test_running_and_ended_processes_are_found_again(spool: Path, work: Path) -> None:
    wait = f"while ! test -e {work}/go; do sleep 0.01; done"
    scripts = {
        "ended": f"echo e; echo '{{}}' >$DM_OUTPUT_FILE; touch {work}/ended; exit 3",
        "runs": f"echo r; touch {work}/runs; {wait}; exit 4",
        "other": f"touch {work}/other; {wait}",
    }

    async def main() -> None:
        await abandoned(spool, scripts, lambda: len(list(work.iterdir())) == 3)
        bench = Bench(spool)
        await bench.executor.open(["ended", "runs", "never"])
        assert [await bench.executor.find(key) for key in ("ended", "runs", "never")] == [True, True, False]
        outcome, out, _ = await bench.taken("ended")
        assert (outcome.exit_status, out, outcome.output) == (3, b"e\n", b"{}\n")
        assert await bench.run("echo new", "new") and len(supervisors(spool)) == 2
        assert text(bench.executor.output("runs", "stdout") or work) == "r\n"
        await bench.executor.stop("runs", signal.SIGSTOP)
        await bench.executor.stop("runs", signal.SIGCONT)
        (work / "go").touch()
        outcome, out, _ = await bench.taken("runs")
        assert (outcome.exit_status, out) == (4, b"r\n")
        await until(lambda: len(supervisors(spool)) == 1)
        await bench.executor.close()

    asyncio.run(main())
    assert left_in(spool) == [".boot"]


def test_several_generations_at_once(spool: Path, work: Path) -> None:
    async def main() -> None:
        keys: list[str] = []
        for n in range(5):
            script = f"touch {work}/{n}; while ! test -e {work}/go; do sleep 0.01; done; exit {n}"
            await abandoned(spool, {f"k{n}": script}, (work / str(n)).exists)
            keys.append(f"k{n}")
        assert len(supervisors(spool)) == 5
        bench = Bench(spool)
        await bench.executor.open(keys)
        assert all([await bench.executor.find(key) for key in keys])
        (work / "go").touch()
        assert [(await bench.taken(key))[0].exit_status for key in keys] == list(range(5))
        await bench.executor.close()

    asyncio.run(main())
    assert left_in(spool) == [".boot"] and supervisors(spool) == []


def test_orders_on_their_way_are_known_exactly(spool: Path, work: Path) -> None:
    """The supervisor has not read them yet when the service dies: find waits for its word."""

    async def main() -> None:
        keys = [f"k{n}" for n in range(30)]
        first = Bench(spool)
        await first.executor.open(())
        await first.run("true", "first")
        (supervisor,) = supervisors(spool)
        supervisor.suspend()
        for key in keys:
            await first.start(key, f"echo {key} >>{work}/log")
        for generation in first.executor._generations:
            await generation.close()
        bench = Bench(spool)
        opening = asyncio.create_task(bench.executor.open([*keys, "never"]))
        await asyncio.sleep(0.1)
        assert not opening.done()
        supervisor.resume()
        await opening
        assert not await bench.executor.find("never")
        assert all([await bench.executor.find(key) for key in keys])
        assert [(await bench.taken(key))[0].exit_status for key in keys] == [0] * 30
        assert sorted(text(work / "log").split()) == sorted(keys)
        await bench.executor.close()

    asyncio.run(main())
    assert left_in(spool) == [".boot"]


# --- supervisors that go away -------------------------------------------------------------------------------------


def test_a_killed_supervisor_takes_its_processes_along(spool: Path, work: Path) -> None:
    script = f"echo out; setsid sleep 1000 & echo $! $$ >{work}/pids; sleep 1000"

    async def body(bench: Bench) -> None:
        await bench.start("k", script)
        pids = [int(pid) for pid in (await until(lambda: text(work / "pids"))).split()]
        supervisors(spool)[0].kill()
        outcome, out, _ = await bench.taken("k")
        assert outcome.exit_status is None and outcome.lost and "its supervisor was killed" in outcome.reason
        assert out in (b"", b"out\n") and not any(alive(pid) for pid in pids)
        assert (await bench.run("echo next", "next"))[1] == b"next\n"

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


def test_supervisor_and_service_killed(spool: Path, work: Path) -> None:
    async def main() -> None:
        scripts = {
            "runs": f"(setsid sleep 1000 & echo $! >{work}/pid); sleep 1000",
            "ended": f"echo e; touch {work}/ended; exit 6",
        }
        await abandoned(spool, scripts, lambda: len(list(work.iterdir())) == 2 and "E ended" in journal(spool))
        (supervisor,) = supervisors(spool)
        supervisor.kill()
        supervisor.wait()
        with next(spool.glob("g-*/journal")).open("ab") as stream:
            stream.write(b"S torn-in-two")  # it was writing this line when it died
        bench = Bench(spool)
        await bench.executor.open(["runs", "ended", "torn-in-two"])
        assert [await bench.executor.find(key) for key in ("runs", "ended", "torn-in-two")] == [True, True, False]
        assert (await bench.taken("ended"))[0].exit_status == 6
        assert (await bench.taken("runs"))[0].lost and not alive(int(text(work / "pid")))
        await bench.executor.close()

    asyncio.run(main())
    assert left_in(spool) == [".boot"]


def test_orders_that_a_killed_supervisor_had_not_taken_go_to_the_next(spool: Path, work: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.run("true", "first")
        (supervisor,) = supervisors(spool)
        supervisor.suspend()
        keys = [f"k{n}" for n in range(20)]
        for key in keys:
            await bench.start(key, f"echo {key} >>{work}/log")
        supervisor.kill()
        assert [(await bench.taken(key))[0].exit_status for key in keys] == [0] * 20
        assert sorted(text(work / "log").split()) == sorted(keys)

    with_executor(spool, body)


def journal(spool: Path) -> str:
    return "".join(path.read_text() for path in spool.glob("g-*/journal"))


def test_after_a_restart_of_the_host_all_that_had_not_ended_is_lost(spool: Path, work: Path) -> None:
    async def main() -> None:
        scripts = {
            "runs": f"touch {work}/runs; exec sleep 1000",
            "ended": f"echo e; touch {work}/ended; exit 6",
        }
        await abandoned(spool, scripts, lambda: len(list(work.iterdir())) == 2 and "E ended" in journal(spool))
        (supervisor,) = supervisors(spool)
        processes = [supervisor, *supervisor.children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=PATIENCE)
        file = next(spool.glob("g-*/journal"))
        other = "00000000-0000-0000-0000-000000000000"
        lines = file.read_text().split(" ")
        file.write_text(" ".join([*lines[:2], other, *lines[3:]]))
        (spool / ".boot").write_text(other)
        bench = Bench(spool)
        await bench.executor.open(["runs", "ended", "not-on-disk"])
        assert [await bench.executor.find(key) for key in ("runs", "ended", "not-on-disk")] == [True] * 3
        assert (await bench.taken("ended"))[0].exit_status == 6
        for key in ("runs", "not-on-disk"):
            outcome = (await bench.taken(key))[0]
            assert outcome.lost and "the host restarted" in outcome.reason
        await bench.executor.close()
        assert left_in(spool) == [".boot"]
        await bench.executor.open(["next"])
        assert not await bench.executor.find("next")
        await bench.executor.close()

    asyncio.run(main())


def test_a_copy_of_a_spool_directory_ends_nothing_of_others(spool: Path, work: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.start("k", f"echo $$ >{work}/pid; while ! test -e {work}/go; do sleep 0.01; done; exit 9")
        pid = int(await until(lambda: text(work / "pid")))
        copy = spool.with_name("copy")
        shutil.copytree(spool, copy, ignore=shutil.ignore_patterns("control"))
        other = Bench(copy)
        await other.executor.open(())
        await other.executor.close()
        assert left_in(copy) == [".boot"] and alive(pid)
        (work / "go").touch()
        assert (await bench.taken("k"))[0].exit_status == 9

    with_executor(spool, body)


# --- upkeep -------------------------------------------------------------------------------------------------------


def test_a_supervisor_has_its_share_and_leaves(spool: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "_MOST_STARTS", 5)

    async def body(bench: Bench) -> None:
        await bench.start("long", f"touch {work}/long; while ! test -e {work}/go; do sleep 0.01; done")
        for n in range(23):
            assert (await bench.run(f"exit {n}", f"k{n}"))[0].exit_status == n
        await until(lambda: len(supervisors(spool)) == 2)
        await bench.executor.stop("long", signal.SIGTERM)
        assert (await bench.taken("long"))[0].signal == signal.SIGTERM
        await until(lambda: len(list(spool.glob("g-*"))) == 1)

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


def test_many_at_once_and_none_left(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        runs = [bench.run(f"echo {n}; sleep 0.1; exit {n % 100}", f"k{n}") for n in range(200)]
        results = await asyncio.gather(*runs)
        assert [(outcome.exit_status, int(out)) for outcome, out, _ in results] == [(n % 100, n) for n in range(200)]
        place = next(spool.glob("g-*"))
        assert sorted(path.name for path in place.iterdir()) == ["control", "journal", "log"]
        assert (place / "log").read_bytes() == b""

    with_executor(spool, body)


def test_an_idle_supervisor_sleeps(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.run("true")
        await bench.start("sleeps", "sleep 1000")
        (supervisor,) = supervisors(spool)
        before = -1
        while before != (before := supervisor.num_ctx_switches().voluntary):  # it has looked for what was left
            await asyncio.sleep(1.5)
        assert supervisor.memory_info().rss < 24 << 20
        await bench.executor.stop("sleeps", signal.SIGKILL)
        await bench.taken("sleeps")

    with_executor(spool, body)


def test_a_directory_that_cannot_be_used(open_directory: Path) -> None:
    file = open_directory / "file"
    file.touch()

    async def main() -> None:
        with pytest.raises(Exception, match="spool directory"):
            await Bench(file / "spool").executor.open(())
        bench = Bench(open_directory / "spool")
        await bench.executor.open(())
        shutil.rmtree(open_directory / "spool")
        with pytest.raises(ProcessingError, match="cannot be"):
            await bench.start("k", "true")
        await bench.executor.close()

    asyncio.run(main())


def test_whole_outputs_are_kept_by_job(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "logs")
    out, err = tmp_path / "k.out", tmp_path / "k.err"
    out.write_text("out")
    logs.keep("job-1", 3, out, err)
    logs.keep("job-1", 3, out, None)
    kept = logs.path("job-1", 3, "stdout")
    assert kept is not None and kept.read_text() == "out" and not out.exists()
    assert logs.path("job-1", 3, "stderr") is None and logs.path("job-2", 3, "stdout") is None
    for job, number, stream in (("../x", 0, "stdout"), ("", 0, "stdout"), ("a", -1, "stdout"), ("a", 0, "../x")):
        with pytest.raises(Exception, match="is not"):
            logs.path(job, number, stream)
    assert logs.expire(1) == 0 and logs.expire(0) == 0
    os.utime(kept.parent, (0, 0))
    assert logs.expire(1) == 1 and not kept.exists()
    err.write_text("err")
    logs.keep("job-1", 4, None, err)
    logs.remove("job-1")
    logs.remove("job-1")
    assert logs.path("job-1", 4, "stderr") is None


def test_an_account_that_is_root_under_another_name(open_directory: Path) -> None:
    database = open_directory / "passwd"
    database.write_text(Path("/etc/passwd").read_text() + "toor:x:0:0:another root:/:/bin/sh\n")
    program = (
        "import sys\n"
        "from dm.common.errors import ProcessingError\n"
        "from dm.station.processing import accounts\n"
        "for ask in (lambda: accounts.default('toor'), lambda: accounts.resolve('toor', 'o', 'nobody', ['toor'])):\n"
        "    try:\n"
        "        sys.exit(f'allowed: {ask()}')\n"
        "    except ProcessingError as error:\n"
        "        print(error)\n"
    )
    with namespace() as place:
        place.run("mount", "--bind", database, "/etc/passwd")
        done = subprocess.run(
            [*place.prefix, sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Unix account 'toor' is root; stages never run as root.") == 2


@pytest.mark.skipif(not ROOT, reason="this run is by an ordinary account itself")
def test_all_that_by_an_ordinary_account() -> None:
    """The same tests in a user namespace in which we are nobody: no account is changed there."""
    chosen = "status_signal or finds or way_of or left_the_group or plain or killed_supervisor_takes"
    words = ["unshare", "--user", "--map-user=65534", "--map-group=65534", sys.executable, "-m", "pytest", "-q"]
    words += ["-p", "no:cacheprovider", __file__, "-k", f"({chosen}) and not ordinary"]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


def test_a_supervisor_that_does_not_stay_alive(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_module, "_PROGRAM", "import sys; sys.exit('no supervisor here')")

    async def body(bench: Bench) -> None:
        await bench.start("k", "true")
        outcome = await bench.ended("k")
        assert outcome.exit_status is None and not outcome.lost and "does not stay alive" in outcome.reason
        monkeypatch.undo()
        await bench.executor.forget("k")
        assert (await bench.run("echo fine", "next"))[1] == b"fine\n"

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


def test_a_stop_finds_what_its_supervisor_had_not_taken(spool: Path) -> None:
    async def body(bench: Bench) -> None:
        await bench.run("true", "first")
        (supervisor,) = supervisors(spool)
        supervisor.suspend()
        await bench.start("k", "sleep 1000")
        await bench.executor.stop("k", signal.SIGKILL)
        supervisor.resume()
        outcome = await bench.ended("k")
        assert outcome.signal == signal.SIGKILL
        await bench.executor.forget("k")

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]


def test_a_stop_right_after_the_start_finds_its_process(spool: Path) -> None:
    """Also one that has not made a session of its own yet."""

    async def body(bench: Bench) -> None:
        keys = [f"k{number}" for number in range(150)]
        for key in keys:
            await bench.start(key, "sleep 1000")
            await bench.executor.stop(key, signal.SIGKILL)
            await asyncio.sleep(0)
        for key in keys:
            assert (await bench.ended(key)).signal == signal.SIGKILL
            await bench.executor.forget(key)

    with_executor(spool, body)
    assert left_in(spool) == [".boot"]
