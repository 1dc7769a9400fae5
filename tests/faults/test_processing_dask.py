"""Faults of dask: what dies, hangs or comes back while stages run. Nothing runs twice unless a policy says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dm.station.processing.executors.base import Outcome
from tests.service.dask_fixtures import Use, all_of, in_loop, marked, no_process_of, open_to, opened, text, until
from tests.service.dask_server import DaskServer, interpreter, stage_account

ROUNDS = 10


@pytest.fixture(scope="module")
def python(run_directory: Path) -> Path:
    return interpreter(run_directory, stage_account())


@pytest.fixture
def server(open_directory: Path, python: Path) -> Iterator[DaskServer]:
    running = DaskServer(open_directory / "work", python=python)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def work(open_directory: Path, server: DaskServer) -> Path:
    return open_to(open_directory / "marks", server.account)


def client_pid(use: Use) -> int | None:
    """Return the pid of the executor's dask client, once it is connected."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "dm.station.processing.executors.dask_client" in child.cmdline() and not use.executor.problem:
                return child.pid
    return None


def counted(work: Path, then: str = "exit 0") -> str:
    """Return a script that leaves a line per run, waits for the file ``go``, and goes on."""
    return f"echo $$ >>{work}/ran-$DM_PROCESSING_KEY; while [ ! -e {work}/go ]; do sleep 0.02; done; {then}\n"


def runs(work: Path, key: str) -> int:
    """Return how often a script of :func:`counted` was begun."""
    path = work / f"ran-{key}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_killed_worker_takes_its_stages_with_it_and_says_so(server: DaskServer, tmp_path: Path, work: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path / "spool", server.settings(), server.account) as use:
            script = f"(setsid sh -c 'touch {work}/away; sleep 600' &); " + counted(work)
            key = await use.start(script)
            await until((work / "away").exists)
            await until(lambda: runs(work, key))
            server.kill("w0")
            done = await use.executor.wait(key)
            assert done.lost and done.exit_status is None
            assert re.fullmatch(r"The dask worker w0 \(tcp://127.0.0.1:\d+\) went away while it ran\.", done.reason)
            await no_process_of(key)
            await use.executor.forget(key)

            # distributed would run the task again now; nobody may
            port = int(re.search(r":(\d+)\)", done.reason)[1])  # type: ignore[index]
            waiting = await use.start(counted(work))
            server.add("w0-again", 2, "--worker-port", str(port))
            await until(lambda: runs(work, waiting))
            (work / "go").touch()
            assert (await use.executor.wait(waiting)).exit_status == 0
            assert (runs(work, key), runs(work, waiting)) == (1, 1)

    server.start("w0")
    in_loop(run())


@pytest.mark.long
def test_a_scheduler_that_hangs_is_waited_for(server: DaskServer, tmp_path: Path, work: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path / "spool", server.settings(patience=30), server.account) as use:
            first = await use.start(counted(work))
            await until(lambda: runs(work, first))
            assert server.scheduler is not None
            server.scheduler.send_signal(signal.SIGSTOP)
            second = await use.start(counted(work))
            (work / "go").touch()
            await asyncio.sleep(2)
            server.scheduler.send_signal(signal.SIGCONT)
            done = await all_of(*map(use.executor.wait, (first, second)))
            assert [one.exit_status for one in done] == [0, 0]
            assert (runs(work, first), runs(work, second)) == (1, 1)

    server.start("w0")
    in_loop(run())


@pytest.mark.long
def test_a_scheduler_that_is_restarted_or_gone(server: DaskServer, tmp_path: Path, work: Path) -> None:
    """What it ran is lost; what waited goes to the next one; when none comes, that is told as well."""

    async def run() -> None:
        spool = tmp_path / "spool"
        async with opened(spool, server.settings(patience=30), server.account) as use:
            running = [await use.start(counted(work)) for _ in range(2)]
            for key in running:
                await until(lambda key=key: runs(work, key))
            waiting = await use.start(counted(work))
            server.kill_scheduler()
            for key in running:
                await no_process_of(key)  # the worker has ended them: nobody would hear of them any more
            await until(lambda: use.executor.problem)
            server.start("w1")
            done = await all_of(*map(use.executor.wait, running))
            assert all(one.lost and "scheduler was restarted" in one.reason for one in done)
            await until(lambda: runs(work, waiting))
        server.kill_scheduler()
        async with opened(spool, server.settings(patience=1), server.account, waiting) as use:
            assert await use.executor.find(waiting)
            done_waiting = await use.executor.wait(waiting)
            assert done_waiting.lost and "has not answered for 1 s" in done_waiting.reason
            late = await use.executor.wait(await use.start("true\n"))
            assert (late.exit_status, late.lost) == (None, False) and "has not answered" in late.reason
        assert [runs(work, key) for key in [*running, waiting]] == [1, 1, 1]

    server.start("w0")
    in_loop(run())


@pytest.mark.long
def test_a_killed_client_process_is_replaced(server: DaskServer, tmp_path: Path, work: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path / "spool", server.settings(), server.account) as use:
            keys = [await use.start(counted(work, "echo done; exit 3")) for _ in range(4)]
            await until(lambda: sum(runs(work, key) for key in keys) == 2)  # as many as there are threads
            for _ in range(2):
                client = await until(lambda: client_pid(use))
                os.kill(client, signal.SIGKILL)
                await until(lambda client=client: client_pid(use) not in (None, client))
            (work / "go").touch()
            done = await all_of(*map(use.executor.wait, keys))
            assert {(one.exit_status, text(one.stdout)) for one in done} == {(3, "done\n")}
            assert [runs(work, key) for key in keys] == [1] * 4

    server.start("w0")
    in_loop(run())


@pytest.mark.long
def test_an_offer_goes_elsewhere_when_its_worker_does_not_take_it(
    server: DaskServer, tmp_path: Path, work: Path
) -> None:
    async def run() -> None:
        async with opened(tmp_path / "spool", server.settings(), server.account) as use:
            probe = await use.start(counted(work))
            await until(lambda: runs(work, probe))
            hung = server.workers["w0"]
            hung.send_signal(signal.SIGSTOP)  # takes what it is offered and never begins
            offered = await use.start(counted(work))
            server.add("w1")
            await until(lambda: runs(work, offered))
            hung.send_signal(signal.SIGCONT)
            (work / "go").touch()
            done = await all_of(*map(use.executor.wait, (probe, offered)))
            assert [one.exit_status for one in done] == [0, 0]
            assert (runs(work, probe), runs(work, offered)) == (1, 1)

    server.start("w0")
    in_loop(run())


@pytest.mark.long
def test_random_kills(server: DaskServer, tmp_path: Path, work: Path) -> None:
    """Workers, clients and executors die at random: each stage ran once, or is told to be lost."""
    chance = random.Random(4)
    script = f"echo $$ >>{work}/ran-$DM_PROCESSING_KEY; sleep 0.$(( $$ % 5 )); echo $DM_PROCESSING_KEY\n"

    async def round_of(number: int, known: dict[str, Outcome | None]) -> None:
        open_keys = [key for key, outcome in known.items() if outcome is None]
        async with opened(tmp_path / "spool", server.settings(), server.account, *open_keys) as use:
            for key in open_keys:
                if not await use.executor.find(key):
                    await use.start(script, key)
            for index in range(20):
                known[await use.start(script, f"s{number}-{index}")] = None
            waits = {key: asyncio.create_task(use.executor.wait(key)) for key, found in known.items() if found is None}
            await asyncio.sleep(chance.random())
            if chance.random() < 0.5:
                os.kill(await until(lambda: client_pid(use)), signal.SIGKILL)
            else:
                server.kill(f"w{number}")
                server.add(f"w{number + 1}")
            await asyncio.sleep(chance.random())
            last = number == ROUNDS - 1
            for key, wait in waits.items():
                if last or wait.done():
                    known[key] = await wait
                    await use.executor.forget(key)
                else:
                    wait.cancel()
        if f"w{number + 1}" not in server.workers:
            server.workers[f"w{number + 1}"] = server.workers.pop(f"w{number}")

    async def run() -> None:
        known: dict[str, Outcome | None] = {}
        for number in range(ROUNDS):
            await round_of(number, known)
        assert len(known) == 20 * ROUNDS
        for key, done in known.items():
            assert done is not None
            assert runs(work, key) == 1 if done.exit_status == 0 else done.lost and runs(work, key) <= 1, (key, done)
        assert sum(done.exit_status == 0 for done in known.values() if done) > 10 * ROUNDS
        for key in known:
            assert not marked(key)

    server.start("w0")
    asyncio.run(asyncio.wait_for(run(), 110))


def test_nothing_is_left_of_a_closed_executor(server: DaskServer, tmp_path: Path) -> None:
    async def run() -> None:
        before = {child.pid for child in psutil.Process().children()}
        async with opened(tmp_path / "spool", server.settings(), server.account) as use:
            assert (await use.run("true\n")).exit_status == 0
            descriptors = len(os.listdir("/proc/self/fd"))
            assert (await use.run("true\n")).exit_status == 0
            assert len(os.listdir("/proc/self/fd")) <= descriptors
        assert {child.pid for child in psutil.Process().children()} <= before

    server.start("w0")
    in_loop(run())


FORGERY = """
import asyncio, sys
from distributed import Client

async def main():
    async with Client(sys.argv[1], asynchronous=True, set_as_default=False) as client:
        ledger = client.scheduler.dm_ledger_1
        found = await ledger(act="attach", values={"owner": sys.argv[2]})
        forged = [None, {}, {"directory": 7, "streams": [b""], "sizes": "x"}, {
            "directory": "", "streams": [b"", b""], "sizes": [0, 0], "output": b"", "status": 10**9, "start": "now",
            "end": {}, "cpu": b"x", "memory": None,
        }]
        for (key, entry), result in zip(sorted(found["entries"].items()), forged):
            known = {"owner": sys.argv[2], "key": key, "token": entry["token"]}
            await ledger(act="end", values={**known, "result": result})

asyncio.run(main())
"""


@pytest.mark.long
def test_who_reaches_the_scheduler_can_forge_results_but_not_break_the_service(
    server: DaskServer, tmp_path: Path, work: Path
) -> None:
    """Also the client is pushed aside by the forger, and comes back."""

    async def run() -> None:
        async with opened(tmp_path / "spool", server.settings(), server.account) as use:
            keys = [await use.start(counted(work)) for _ in range(4)]
            for key in keys:
                await until(lambda key=key: runs(work, key))
            owner = (tmp_path / "spool" / ".owner").read_text()
            forger = await asyncio.create_subprocess_exec(
                *server.account.prefix,
                str(server.python),
                "-P",
                "-c",
                FORGERY,
                server.address,
                owner,
                env={"LD_LIBRARY_PATH": str(server.python.parent.parent / "lib"), "HOME": str(server.directory)},
            )
            assert await forger.wait() == 0
            done = await all_of(*map(use.executor.wait, keys))
            assert all(one.lost and one.exit_status is None for one in done), done
            (work / "go").touch()
            for key in keys:
                await use.executor.forget(key)
                await no_process_of(key)
            assert (await use.run("exit 4\n")).exit_status == 4

    server.start("w0", threads=4)
    in_loop(run())
