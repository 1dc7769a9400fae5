"""A dask scheduler and workers of DM's own, in a process that outlives the service.

The process is started by the service's dask client under the account of the stages, finds its settings on standard
input, and holds the lock of its directory while it lives. The directory has ``scheduler.json`` (the address), the keys
that scheduler, workers and client know each other by, and the log. It ends on SIGTERM, or by itself when neither stages
nor their results are there and no service has asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dm.station.processing.executors.dask_settings import DaskSettings

_CLASSES = {"sge": "SGECluster", "slurm": "SLURMCluster", "pbs": "PBSCluster", "htcondor": "HTCondorCluster"}
_START_SECONDS = 60.0
_LOCK, _ADDRESS, _LOG, _CERTIFICATE, _KEY = "lock", "scheduler.json", "cluster.log", "cluster.pem", "cluster.key"
_MAX_LOG = 10 << 20


@dataclass(frozen=True)
class Found:
    """A running cluster: its scheduler's address and the directory of its keys."""

    address: str
    directory: Path

    def security(self, security_class: Any) -> Any:
        """Return the ``distributed.Security`` to talk to it."""
        certificate, key = str(self.directory / _CERTIFICATE), str(self.directory / _KEY)
        roles = {f"tls_{role}_{what}" for role in ("client", "worker", "scheduler") for what in ("cert", "key")}
        files = {name: certificate if name.endswith("cert") else key for name in roles}
        return security_class(tls_ca_file=certificate, require_encryption=True, **files)


def place(settings: DaskSettings, owner: str) -> Path:
    """Return the directory of a service's cluster."""
    base = settings.cluster_directory or Path.home() / ".dm-dask"
    return base.absolute() / owner


async def ensure(settings: DaskSettings, owner: str) -> Found:
    """Return the running cluster, started if need be.

    :raises OSError: its directory cannot be made. :raises RuntimeError: it does not start; the end of its log.
    """
    directory = place(settings, owner)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + _START_SECONDS
    started: subprocess.Popen[bytes] | None = None
    while True:
        if is_locked(directory):
            with contextlib.suppress(OSError, ValueError, KeyError):
                return Found(json.loads((directory / _ADDRESS).read_text())["address"], directory)
        elif started is None:
            started = _start(directory, settings)
        elif started.poll() is not None:
            raise RuntimeError(f"the dask cluster does not start: {_tail(directory / _LOG)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the dask cluster in {directory} has not started within {_START_SECONDS:g} s")
        await asyncio.sleep(0.05)


def is_locked(directory: Path) -> bool:
    """Whether the cluster of a directory lives."""
    with (directory / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _start(directory: Path, settings: DaskSettings) -> subprocess.Popen[bytes]:
    (directory / _ADDRESS).unlink(missing_ok=True)
    log = directory / _LOG
    with log.open("wb" if log.exists() and log.stat().st_size > _MAX_LOG else "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            cwd=directory,
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(settings.model_dump_json().encode())
    return process


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = path.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no word"
    return "no log"


def make_keys(directory: Path) -> None:
    """Make new keys in a directory: one certificate that scheduler, workers and clients trust and show."""
    from distributed import Security

    made = Security.temporary()
    for name, text in ((_CERTIFICATE, made.tls_ca_file), (_KEY, made.tls_scheduler_key)):
        path = directory / name
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)


def _make(settings: DaskSettings, directory: Path) -> tuple[Any, int]:
    """Return a cluster, not yet started, and the threads of one worker."""
    from distributed import LocalCluster, Security

    options = dict(settings.cluster_options)
    common = {
        "security": Found("", directory).security(Security),
        "protocol": "tls://",
        "asynchronous": True,
        "n_workers": 0,
    }
    if settings.cluster == "local":
        options.setdefault("threads_per_worker", 1)
        options.setdefault("dashboard_address", "127.0.0.1:0")
        options.setdefault("worker_dashboard_address", "127.0.0.1:0")
        options.setdefault("local_directory", str(directory))
        return LocalCluster(**common, **options), int(options["threads_per_worker"])
    import dask_jobqueue

    scheduler = {"dashboard_address": "127.0.0.1:0", **options.pop("scheduler_options", {})}
    (directory / "logs").mkdir(exist_ok=True)
    options.setdefault("log_directory", str(directory / "logs"))
    if (libraries := os.environ.get("LD_LIBRARY_PATH")) and "python" not in options:  # of this interpreter
        prologue = [f"export LD_LIBRARY_PATH={shlex.quote(libraries)}", *options.get("job_script_prologue", ())]
        options["job_script_prologue"] = prologue
    cluster = getattr(dask_jobqueue, _CLASSES[str(settings.cluster)])(scheduler_options=scheduler, **common, **options)
    job = cluster._dummy_job
    return cluster, max(1, int(job.worker_process_threads))


def _adaptive(ledger: Any, threads: int) -> type:
    from distributed.deploy import Adaptive

    class Wanted(Adaptive):
        """As many workers as the stages at hand need; none is closed that has one."""

        async def target(self) -> int:
            return math.ceil(ledger.wanted() / threads)

        async def workers_to_close(self, target: int) -> list[Any]:
            cluster, busy = cast(Any, self.cluster), self._busy()
            here = {str(state.name) for state in cluster.scheduler.workers.values()}
            idle: list[Any] = []
            for name, spec in list(cluster.worker_spec.items()):
                job = [f"{name}{suffix}" for suffix in spec["group"]] if "group" in spec else [name]
                names = {str(worker) for worker in job}
                if names & here and not names & busy and len(idle) + len(job) <= len(self.plan) - target:
                    idle += job
            return idle

        async def scale_down(self, workers: Collection[Any]) -> None:  # type: ignore[override]
            """Close workers, but for those that were given something since they were chosen."""
            scheduler, busy = cast(Any, self.cluster).scheduler, self._busy()
            names = {str(worker) for worker in workers} - busy
            ledger.closing |= {address for address, state in scheduler.workers.items() if str(state.name) in names}
            await super().scale_down([worker for worker in workers if str(worker) in names])

        def _busy(self) -> set[str]:
            busy, workers = ledger.busy(), cast(Any, self.cluster).scheduler.workers
            return {str(state.name) for address, state in workers.items() if address in busy}

    return Wanted


async def _run(settings: DaskSettings, directory: Path) -> None:
    from dm.station.processing.executors.dask_ledger import Ledger

    make_keys(directory)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    made, threads = _make(settings, directory)
    async with made as cluster:
        ledger = Ledger()
        await cluster.scheduler.register_scheduler_plugin(ledger, idempotent=True)
        cluster.adapt(
            Adaptive=_adaptive(ledger, threads),
            minimum=settings.minimum,
            maximum=settings.maximum,
            interval="1s",
            wait_count=math.ceil(settings.idle),
        )
        text = json.dumps({"address": cluster.scheduler_address, "pid": os.getpid()})
        part = directory / f"{_ADDRESS}.part"
        part.write_text(text)
        part.rename(directory / _ADDRESS)
        while not stopped.is_set() and ledger.idle_seconds() < settings.linger:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), 1.0)
        (directory / _ADDRESS).unlink(missing_ok=True)


def main() -> None:
    """Run the cluster of the directory that is the only argument."""
    directory = Path(sys.argv[1])
    if os.geteuid() == 0:
        sys.exit("A dask cluster never runs as root.")
    with (directory / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another one was faster
        os.set_inheritable(lock.fileno(), False)
        settings = DaskSettings.model_validate_json(sys.stdin.buffer.read())
        asyncio.run(_run(settings, directory))


if __name__ == "__main__":
    main()
