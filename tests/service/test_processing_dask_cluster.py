"""Clusters the dask executor makes itself: on this host, and of jobs of a real Grid Engine by dask-jobqueue."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.station.processing.executors import dask_cluster
from dm.station.processing.executors.dask_settings import DaskSettings
from tests.service import storage_fixtures as storage
from tests.service.dask_fixtures import all_of, in_loop, marked, no_process_of, open_to, opened, text, until
from tests.service.dask_server import DaskServer, interpreter, stage_account
from tests.service.processing_fixtures import running_processing
from tests.service.sge_server import SgeCluster, sge  # noqa: F401 - a fixture
from tests.service.test_processing_dask_workflows import result_on, same

ACCOUNT = stage_account()


@pytest.fixture
def settings(run_directory: Path, open_directory: Path) -> Iterator[dict[str, object]]:
    """Settings of a cluster below the test's directory, which is ended after the test."""
    directory = open_to(open_directory / "clusters", ACCOUNT)
    python = interpreter(run_directory, ACCOUNT)
    mine = {"account": ACCOUNT.name, "python": str(python)} if ACCOUNT.prefix else {}
    yield {**mine, "cluster_directory": str(directory), "maximum": 2, "idle": 2, "output_grace": 1.0}
    for log in directory.glob("*/cluster.log"):
        print(log.read_text())
    for pid in pids(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    for lock in directory.glob("*/lock"):  # held while the cluster's process lives
        while dask_cluster.is_locked(lock.parent):
            assert time.monotonic() < deadline, "the cluster does not end"
            time.sleep(0.05)


def pids(directory: Path) -> list[int]:
    """Return the processes of the clusters in a directory."""
    return [json.loads(file.read_text())["pid"] for file in directory.glob("*/scheduler.json")]


@pytest.mark.long
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
            assert {(one.exit_status, text(one.stdout)) for one in done} == {(0, f"{ACCOUNT.name}\n")}, done
            assert pids(directory) == before
            for key in keys:
                await use.executor.forget(key)
        assert [(work / f"ran-{key}").read_text() for key in keys] == ["x\n", "x\n"]
        await until(lambda: not pids(directory))

    in_loop(run())


@pytest.mark.long
def test_a_scheduler_with_tls(run_directory: Path, open_directory: Path, tmp_path: Path) -> None:
    """A client with a certificate of the authority gets in; others do not."""
    keys = open_to(open_directory / "keys", ACCOUNT)
    python = interpreter(run_directory, ACCOUNT)
    make = "import pathlib, sys; from dm.station.processing.executors.dask_cluster import make_keys"
    subprocess.run([sys.executable, "-c", f"{make}; make_keys(pathlib.Path(sys.argv[1]))", keys], check=True)
    for file in keys.iterdir() if ACCOUNT.prefix else ():
        shutil.chown(file, ACCOUNT.name)
    certificate, key = str(keys / "cluster.pem"), str(keys / "cluster.key")
    words = ("--tls-ca-file", certificate, "--tls-cert", certificate, "--tls-key", key)
    server = DaskServer(open_directory / "work", ACCOUNT, python, words)
    files = {"ca_file": certificate, "certificate": certificate, "key": key}

    async def run() -> None:
        async with opened(tmp_path / "spool", server.settings(**files), ACCOUNT) as use:
            assert text((await use.run("echo in\n")).stdout) == "in\n"
        async with opened(tmp_path / "other", server.settings(patience=1), ACCOUNT) as use:
            assert "has not answered" in (await use.run("echo in\n")).reason

    try:
        server.start("w0")
        assert server.address.startswith("tls://")
        in_loop(run())
    finally:
        server.stop()


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


@pytest.mark.long
def test_the_same_workflow_on_grid_engine(
    settings: dict[str, object],
    sge: SgeCluster,  # noqa: F811
    postgres_url: str,
    mongo_url: str,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in sge.environment.items():
        monkeypatch.setenv(name, value)
    options = {"cores": 2, "memory": "1 GB", "queue": sge.queue, "interface": "lo"}
    jobs = {"plugin": "dask", "cluster": "sge", "cluster_options": options, "worker_environment": [], **settings}
    executors = {"local": {"output_grace": 1.0}, "jobs": jobs}
    with (
        storage.running_site(postgres_url, certificates, tmp_path / "site") as site,
        running_processing(site, mongo_url, certificates, tmp_path / "p", executors=executors) as service,
    ):
        there = result_on(service, "jobs", more_time=True)
        same(there, result_on(service, "local", more_time=True))
        assert service.processing is not None and service.processing.engine.problems() == {}
