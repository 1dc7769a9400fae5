"""Clusters the dask executor makes itself: on this host, and of jobs of a real Grid Engine by dask-jobqueue."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dm.station.processing.executors.dask_settings import DaskSettings
from tests.service.dask_fixtures import all_of, in_loop, marked, no_process_of, open_to, opened, text, until
from tests.service.dask_server import interpreter, stage_account
from tests.service.sge_server import SgeCluster, sge  # noqa: F401 - a fixture

ACCOUNT = stage_account()


@pytest.fixture
def settings(run_directory: Path, open_directory: Path) -> Iterator[dict[str, object]]:
    """Settings of a cluster below the test's directory, which is ended after the test."""
    directory = open_to(open_directory / "clusters", ACCOUNT)
    python = interpreter(run_directory, ACCOUNT)
    mine = {"account": ACCOUNT.name, "python": str(python)} if ACCOUNT.prefix else {}
    yield {**mine, "cluster_directory": str(directory), "maximum": 2, "idle": 2, "output_grace": 1.0}
    for pid in pids(directory):
        with contextlib.suppress(psutil.NoSuchProcess):
            cluster = psutil.Process(pid)
            cluster.terminate()
            ended(cluster)


def pids(directory: Path) -> list[int]:
    """Return the processes of the clusters in a directory."""
    return [json.loads(file.read_text())["pid"] for file in directory.glob("*/scheduler.json")]


def ended(process: psutil.Process) -> None:
    """Wait for the end of a process that is nobody's child, or became ours."""
    deadline = time.monotonic() + 30
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the cluster does not end"
        time.sleep(0.05)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)


def test_a_cluster_on_this_host(settings: dict[str, object], tmp_path: Path, open_directory: Path) -> None:
    """It grows with the work, outlives the service, keeps strangers out, and ends by itself."""
    made = DaskSettings(cluster="local", linger=3, **settings)
    work = open_to(open_directory / "marks", ACCOUNT)
    directory = Path(str(settings["cluster_directory"]))
    script = f"echo x >>{work}/ran-$DM_PROCESSING_KEY; while [ ! -e {work}/go ]; do sleep 0.05; done; id -un\n"

    async def run() -> None:
        async with opened(tmp_path / "spool", made, ACCOUNT) as use:
            keys = [await use.start(script) for _ in range(2)]
            for key in keys:  # one thread per worker: both have come
                await until(lambda key=key: marked(key))
        address = json.loads(next(directory.glob("*/scheduler.json")).read_text())["address"]
        assert address.startswith("tls://")
        stranger = DaskSettings(
            scheduler=address.replace("tls:", "tcp:"), account=made.account, python=made.python, patience=1
        )
        async with opened(tmp_path / "stranger", stranger, ACCOUNT) as use:
            refused = await use.run("id\n")
            assert refused.exit_status is None and "has not answered" in refused.reason
        before = pids(directory)
        async with opened(tmp_path / "spool", made, ACCOUNT, *keys) as use:
            assert [await use.executor.find(key) for key in keys] == [True, True]
            (work / "go").touch()
            done = await all_of(*map(use.executor.wait, keys))
            assert {(one.exit_status, text(one.stdout)) for one in done} == {(0, f"{ACCOUNT.name}\n")}
            assert pids(directory) == before
            for key in keys:
                await use.executor.forget(key)
        assert [(work / f"ran-{key}").read_text() for key in keys] == ["x\n", "x\n"]
        await until(lambda: not pids(directory))

    cluster = None
    try:
        in_loop(run())
    finally:
        if found := pids(directory):
            cluster = psutil.Process(found[0])
            cluster.terminate()
            ended(cluster)


@pytest.mark.long
def test_a_cluster_of_grid_engine_jobs(
    settings: dict[str, object],
    sge: SgeCluster,  # noqa: F811
    tmp_path: Path,
    open_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in sge.environment.items():
        monkeypatch.setenv(name, value)
    options = {"cores": 1, "memory": "1 GB", "queue": sge.queue, "interface": "lo"}
    made = DaskSettings(cluster="sge", cluster_options=options, **settings)
    work = open_to(open_directory / "marks", ACCOUNT)
    script = (
        f'echo x >>{work}/ran; test -n "$JOB_ID" && while [ ! -e {work}/go ]; do sleep 0.05; done; id -un; exit 3\n'
    )

    async def run() -> None:
        async with opened(tmp_path / "spool", made, ACCOUNT) as use:
            keys = [await use.start(script) for _ in range(2)]
            for key in keys:
                await until(lambda key=key: marked(key))
            jobs = sge.jobs()
            assert len(jobs) == 2
        async with opened(tmp_path / "spool", made, ACCOUNT, *keys) as use:
            assert [await use.executor.find(key) for key in keys] == [True, True]
            (work / "go").touch()
            done = await all_of(*map(use.executor.wait, keys))
            assert {(one.exit_status, text(one.stdout)) for one in done} == {(3, f"{ACCOUNT.name}\n")}
            for key in keys:
                await use.executor.forget(key)
            await until(lambda: not sge.jobs())  # idle workers are given up

            (work / "go").unlink()
            key = await use.start(script)
            await until(lambda: marked(key))
            sge.run("qdel", *sge.jobs())
            lost = await use.executor.wait(key)
            assert lost.lost and "went away while it ran" in lost.reason
            await no_process_of(key)
        assert (work / "ran").read_text() == "x\n" * 3

    in_loop(run())
