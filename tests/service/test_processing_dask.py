"""The dask executor on a real scheduler and two real workers: what it runs, returns, refuses and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from dm.common.accounts import Account
from dm.common.errors import ConfigurationError, ProcessingError
from dm.station.processing.executors.base import MAX_OUTPUT_FILE, Task
from dm.station.processing.executors.dask import Dask
from dm.station.processing.executors.dask_settings import DaskSettings
from tests.service.dask_fixtures import (
    Kept,
    Use,
    all_of,
    in_loop,
    kept_open,
    marked,
    no_process_of,
    open_to,
    opened,
    text,
    until,
)
from tests.service.dask_server import DaskServer

NOBODY_ELSE = Account("games", "/", ())


LIMIT = 3_000_000


@pytest.fixture(scope="module")
def kept(dask_server: DaskServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    settings = dask_server.settings(output_limit=LIMIT, output_grace=0.5)
    with kept_open(tmp_path_factory.mktemp("dask") / "spool", settings, dask_server.account) as executor:
        yield executor


@pytest.fixture
def work(open_directory: Path, dask_server: DaskServer) -> Path:
    return open_to(open_directory / "work", dask_server.account)


def test_what_a_process_leaves_is_returned(kept: Kept) -> None:
    async def go(use: Use) -> None:
        script = 'echo "out $0"; id -un; echo err >&2; env; printf \'{"a": 1}\' >"$DM_OUTPUT_FILE"; exit 7\n'
        key = await use.start(script)
        done = await use.executor.wait(key)
        assert (done.exit_status, done.signal, done.lost, done.reason) == (7, None, False, "")
        lines = text(done.stdout).splitlines()
        assert lines[:2] == ["out sh", use.account.name] and text(done.stderr) == "err\n"
        assert f"DM_PROCESSING_KEY={key}" in lines and done.output == b'{"a": 1}'
        names = {line.partition("=")[0] for line in lines[2:]}
        assert names == {"DM_PROCESSING_KEY", "DM_OUTPUT_FILE", "PATH", "LANG", "PWD"}
        assert done.start_time and done.start_time <= done.end_time
        assert done.cpu_seconds is not None and done.max_memory and done.max_memory > 100_000
        assert (await use.executor.wait(key)) == done
        await use.executor.forget(key)
        assert not (use.executor.spool / key).exists()

        killed = await use.run("kill -9 $$\n")
        assert (killed.exit_status, killed.signal) == (137, 9)
        missing = await use.run("/no/such/program\n")
        assert missing.exit_status == 127 and "not found" in text(missing.stderr)

    kept.run(go)


def test_many_processes_on_few_threads(kept: Kept, work: Path) -> None:
    """Each runs once, and no more at a time than the workers have threads."""

    async def go(use: Use) -> None:
        script = f"echo x >>{work}/ran-$DM_PROCESSING_KEY; mkdir {work}/on-$DM_PROCESSING_KEY; sleep 0.05\n"
        script += f"ls -d {work}/on-* | wc -l; rmdir {work}/on-$DM_PROCESSING_KEY\n"
        keys = [await use.start(script) for _ in range(24)]
        done = await all_of(*(use.executor.wait(key) for key in keys))
        assert {one.exit_status for one in done} == {0}
        assert max(int(text(one.stdout)) for one in done) <= 4
        assert {path.name: path.read_text() for path in work.iterdir()} == {f"ran-{key}": "x\n" for key in keys}

    kept.run(go)


def test_a_stop_reaches_all_a_process_started(kept: Kept, work: Path) -> None:
    async def go(use: Use) -> None:
        polite = await use.start(f"trap 'echo bye; exit 9' TERM; touch {work}/up; while :; do sleep 0.05; done\n")
        await until((work / "up").exists)
        await use.executor.stop(polite, signal.SIGTERM)
        done = await use.executor.wait(polite)
        assert (done.exit_status, text(done.stdout)) == (9, "bye\n")

        stubborn = await use.start(
            f"trap '' TERM; (setsid sh -c 'trap \"\" TERM; touch {work}/away; sleep 600; sleep 600' &) ; "
            f"while :; do sleep 600; done\n"
        )
        await until((work / "away").exists)
        await use.executor.stop(stubborn, signal.SIGTERM)
        await use.executor.stop(stubborn, signal.SIGKILL)
        assert (await use.executor.wait(stubborn)).signal == signal.SIGKILL
        await no_process_of(stubborn)

        full = [await use.start("sleep 600\n") for _ in range(4)]
        for key in full:
            await until(lambda key=key: marked(key))
        queued = await use.start(f"touch {work}/never\n")
        await use.executor.stop(queued, signal.SIGTERM)
        done = await use.executor.wait(queued)
        assert (done.exit_status, done.lost) == (None, False) and "before a dask worker started it" in done.reason
        for key in full:
            await use.executor.stop(key, signal.SIGKILL)
        assert {one.signal for one in await all_of(*map(use.executor.wait, full))} == {9}
        assert not (work / "never").exists()

        given_up = await use.start("setsid sleep 600 & sleep 600\n")
        await until(lambda: marked(given_up))
        await use.executor.forget(given_up)  # the engine does so when it cannot be stopped
        await no_process_of(given_up)

    kept.run(go)


def test_output_of_any_size_and_kind(kept: Kept) -> None:
    async def go(use: Use) -> None:
        whole = await use.run("head -c 3000000 /dev/zero | tr '\\0' a; echo -n e >&2\n")
        assert whole.stdout and whole.stdout.read_bytes() == b"a" * 3_000_000 and text(whole.stderr) == "e"
        cut = await use.run("head -c 3000001 /dev/zero; head -c 9000000 /dev/zero >&2; exit 4\n")
        assert cut.exit_status == 4 and cut.stdout and cut.stderr
        assert cut.stdout.read_bytes() == bytes(3_000_000) + b"\n[cut: the first 3000000 of 3000001 bytes]\n"
        assert cut.stderr.read_bytes()[3_000_000:] == b"\n[cut: the first 3000000 of 9000000 bytes]\n"
        odd = await use.run('head -c 1000 /dev/urandom | tee "$DM_OUTPUT_FILE"; printf \'\\0\\377{"op": "ended"}\'\n')
        assert odd.stdout and odd.stdout.read_bytes()[:1000] == odd.output and len(odd.output) == 1000

        for hostile in ("ln -s /etc/passwd $DM_OUTPUT_FILE", "mkfifo $DM_OUTPUT_FILE", "mkdir $DM_OUTPUT_FILE"):
            done = await use.run(f"{hostile}\n")
            assert (done.exit_status, done.output) == (0, b"")
        large = await use.run("head -c 5000000 /dev/zero >$DM_OUTPUT_FILE\n")
        assert len(large.output) == MAX_OUTPUT_FILE + 1
        gone = await use.run("echo here; rm -rf ${DM_OUTPUT_FILE%/*}; exit 3\n")
        assert gone.exit_status == 3

    kept.run(go)


def test_what_a_process_leaves_running_does_not_hold_it(kept: Kept) -> None:
    async def go(use: Use) -> None:
        for redirection in ("", ">/dev/null 2>&1 "):
            key = await use.start(f"sleep 600 {redirection}& (setsid sleep 600 {redirection}&); echo started\n")
            done = await use.executor.wait(key)
            assert (done.exit_status, text(done.stdout)) == (0, "started\n")
            await no_process_of(key)

    kept.run(go)


def test_a_killed_supervisor_is_told(kept: Kept) -> None:
    async def go(use: Use) -> None:
        key = await use.start("setsid sleep 600 & kill -9 $PPID; sleep 600\n")
        done = await use.executor.wait(key)
        assert (done.exit_status, done.lost) == (None, True) and "nobody saw its end" in done.reason
        await no_process_of(key)
        await use.run("kill -9 $(cut -d' ' -f4 /proc/$PPID/stat)\n")  # the parent of all supervisors of this worker
        assert {(await use.run("exit 6\n")).exit_status for _ in range(4)} == {6}

    kept.run(go)


def test_a_new_executor_goes_on_with_what_the_old_one_started(
    dask_server: DaskServer, tmp_path: Path, work: Path
) -> None:
    spool, settings = tmp_path / "spool", dask_server.settings()
    script = f"echo x >>{work}/ran-$DM_PROCESSING_KEY; while [ ! -e {work}/go ]; do sleep 0.02; done; seq 100000\n"

    async def run() -> None:
        async with opened(spool, settings, dask_server.account) as use:
            ended = await use.start("echo over; exit 5\n")
            await use.executor.wait(ended)
            given_up = await use.start("sleep 600\n")
            running = [await use.start(script) for _ in range(3)]
            for key in [given_up, *running]:
                await until(lambda key=key: marked(key))
            queued = await use.start(script)
        known = [ended, *running, queued, "never-started"]
        async with opened(spool, settings, dask_server.account, *known) as use:
            assert [await use.executor.find(key) for key in known] == [True, True, True, True, False, False]
            await no_process_of(given_up)
            (work / "go").touch()
            assert text((await use.executor.wait(ended)).stdout) == "over\n"
            for key in running:
                done = await use.executor.wait(key)
                assert (done.exit_status, len(text(done.stdout))) == (0, 588_895)
            assert (await use.executor.wait(await use.start(script, queued))).exit_status == 0
            for key in [ended, *running, queued]:
                await use.executor.forget(key)
            assert not [path for path in spool.iterdir() if not path.name.startswith(".")]
        async with opened(spool, settings, dask_server.account, *known) as use:
            assert [await use.executor.find(key) for key in known] == [False] * len(known)
        assert {path.name: path.read_text() for path in work.glob("ran-*")} == {
            f"ran-{key}": "x\n" for key in [*running, queued]
        }

    in_loop(run())


def test_who_it_runs_as(kept: Kept) -> None:
    async def go(use: Use) -> None:
        with pytest.raises(ProcessingError, match=r"Stages on dask run under .* not under 'games'"):
            await use.executor.start(Task("other", b"id\n", NOBODY_ELSE))
        assert not (use.executor.spool / "other").exists()

    kept.run(go)


def test_a_worker_of_another_account_gets_nothing(
    dask_server: DaskServer, tmp_path: Path, open_directory: Path
) -> None:
    """Of the tests' own account, which is root where workers run under another; else there is no other worker."""
    alone = DaskServer(open_directory / "work", python=dask_server.python)
    me = Account("me", str(open_directory))

    async def run() -> None:
        async with opened(tmp_path / "spool", alone.settings(), alone.account) as use:
            key = await use.start("id -u\n")
            if os.geteuid() != 0:
                assert (await use.executor.wait(key)).exit_status == 0
                return
            done = await use.executor.wait(key)
            assert (done.exit_status, done.lost) == (None, False)
            assert "None of the 1 dask workers can run it" in done.reason and "runs as root" in done.reason

    try:
        alone.start()
        alone.add("mine", account=me)
        in_loop(run())
    finally:
        alone.stop()


def test_settings_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, words in (
        ({}, "one of scheduler and cluster"),
        ({"scheduler": "tcp://h:1", "cluster": "sge"}, "one of scheduler and cluster"),
        ({"scheduler": "tls://h:1", "ca_file": "/ca"}, "all of ca_file"),
        ({"cluster": "local", "minimum": 5}, "minimum is more"),
        ({"scheduler": "tcp://h:1", "workers": 5}, "workers"),
    ):
        with pytest.raises(ValidationError, match=words):
            DaskSettings(**wrong)

    async def fails(settings: DaskSettings, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            await Dask(tmp_path / "spool", settings).open([])

    in_loop(fails(DaskSettings(scheduler="tcp://127.0.0.1:1", account="no-such-account"), "no-such-account"))
    in_loop(fails(DaskSettings(scheduler="tcp://127.0.0.1:1", account="root"), "root"))
    light = "import sys, dm.station.processing.executors.dask; assert 'distributed' not in sys.modules"
    subprocess.run([sys.executable, "-c", light], check=True)
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    in_loop(fails(DaskSettings(cluster="slurm"), r"needs dask_jobqueue: pip install 'beamline-dm\[dask\]'"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    in_loop(fails(DaskSettings(scheduler="tcp://127.0.0.1:1"), r"needs distributed: pip install"))
