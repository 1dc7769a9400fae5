"""A real Slurm cluster of one host for tests: munged, slurmctld and slurmd of our own, and slurmdbd on a MariaDB.

::

    from tests.service.slurm_server import slurm      # a fixture: started when the first test asks for it

    slurm.environment      # what clients need: SLURM_CONF; the commands are in the usual PATH
    slurm.account          # who submits: nobody for root, else the account of the tests
    slurm.partition        # main, 32 CPUs
    slurm.run("sbatch", "--parsable", "--wrap", "true", cwd=directory)      # as that account

``SlurmCluster(directory, accounting=False)`` is one as small sites have it: without slurmdbd, so that ``sacct`` tells
nothing. It needs the packages ``slurmctld``, ``slurmd``, ``slurm-client``, ``slurmdbd``, ``munge`` and
``mariadb-server-core``; nothing of what these set up themselves is used or changed. There are no cgroups: processes
are followed by their parents, and memory limits are enforced by what is measured every second. slurmd needs root to
run jobs as others.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.service.acquisition_hosts import free_port

_ROOT = os.geteuid() == 0
_ADMIN = "root" if _ROOT else pwd.getpwuid(os.geteuid()).pw_name
_PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
_START_SECONDS = 30.0


def _program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    assert found, f"{name} is not installed; run: make test-deps"
    return found


class SlurmCluster:
    """A cluster of this host. :param directory: made; other accounts must be able to reach it."""

    partition = "main"
    slots = 32

    def __init__(self, directory: Path, accounting: bool = True) -> None:
        self.directory = directory
        self.accounting = accounting
        self.account = "nobody" if _ROOT else _ADMIN
        self.environment = {"SLURM_CONF": str(directory / "slurm.conf")}
        self._ports = {name: free_port() for name in ("mariadbd", "slurmdbd", "slurmctld", "slurmd")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    # --- life

    def start(self) -> None:
        """Set the cluster up and start its daemons; returns when the partition takes jobs."""
        self._write()
        try:
            self._start("munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in self._munge.items()))
            _until(Path(self._munge["socket"]).exists, "munged does not start", self._log)
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            self.start_node()
            _until(self._ready, "The partition takes no jobs", self._log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the daemons and whatever jobs have left."""
        if "slurmctld" in self._daemons:
            self._admin("scancel", "--full", "--signal=KILL", f"--partition={self.partition}", check=False)
        node = self._daemons.get("slurmd")
        jobs = [p for p in psutil.Process().children(recursive=True) if "slurmstepd" in p.name()] if node else []
        for name in ("slurmd", "slurmctld", "slurmdbd", "munged", "mariadbd"):
            self._end(name, signal.SIGKILL)
        for process in jobs:
            for each in [*_descendants(process), process]:
                _kill(each)

    def start_controller(self) -> None:
        """Start slurmctld, also again after :meth:`stop_controller`; returns when it answers."""
        self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
        _until(lambda: self._admin("scontrol", "ping", check=False).returncode == 0, "slurmctld is silent", self._log)

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End slurmctld; jobs go on running, commands fail."""
        self._end("slurmctld", number)

    def start_node(self) -> None:
        """Start slurmd, also again."""
        self._start("slurmd", "-D", "-f", self.environment["SLURM_CONF"])

    def stop_node(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End slurmd; its jobs go on under their slurmstepd."""
        self._end("slurmd", number)

    def node(self, state: str) -> None:
        """Take the node down, with its jobs, or up again (``RESUME``); returns when that is so."""
        name = self._admin("sinfo", "-h", "-N", "-o", "%N").stdout.split()[0]
        command = ["scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test"]
        self._admin(*command, check=state != "RESUME")  # it may be up again by itself
        if state == "RESUME":
            _until(self._ready, "The partition takes no jobs", self._log)

    # --- use

    def run(
        self, *command: str | Path, check: bool = True, cwd: Path | None = None, environment: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the account that submits. :param environment: more variables than the cluster's."""
        return subprocess.run(
            [*command],
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **self.environment, **environment},
            cwd=cwd or "/",
            check=check,
            capture_output=True,
            text=True,
            timeout=60,
            **self.identity,
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Arguments of ``subprocess`` functions by which a process runs as :attr:`account`."""
        if not _ROOT:
            return {}
        entry = pwd.getpwnam(self.account)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def record(self, job: str | int) -> dict[str, str]:
        """Wait for the end of a job and return its accounting record, by ``sacct``'s field names."""
        names = ["JobID", "State", "ExitCode", "User", "JobName"]
        found: dict[str, str] = {}

        def ended() -> bool:
            done = self.run("sacct", "-X", "-n", "-P", "-j", str(job), "-o", ",".join(names), check=False)
            found.update(zip(names, done.stdout.strip().split("|"), strict=False))
            return found.get("State", "PENDING").split(" ")[0] not in ("", "PENDING", "RUNNING", "COMPLETING")

        _until(ended, f"There is no accounting record of job {job}", self._log)
        return found

    def jobs(self) -> list[str]:
        """Return the ids of all jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%A").stdout.split()

    # --- set-up

    @property
    def _munge(self) -> dict[str, Path]:
        names = {"socket": "socket", "pid-file": "pid", "log-file": "log", "key-file": "key", "seed-file": "seed"}
        return {option: self.directory / "munge" / name for option, name in names.items()}

    def _write(self) -> None:
        for name in ("munge", "state", "spool"):
            (self.directory / name).mkdir()
        (self.directory / "munge").chmod(0o755)  # clients find the socket in it
        self._munge["key-file"].write_bytes(os.urandom(128))
        self._munge["key-file"].chmod(0o400)
        host = socket.gethostname().split(".")[0]
        memory = psutil.virtual_memory().total >> 20
        storage = ["AccountingStorageType=accounting_storage/none"]
        if self.accounting:
            storage = [
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={self._ports['slurmdbd']}",
                f"AccountingStoragePass={self._munge['socket']}",
            ]
        self._file(
            "slurm.conf",
            "ClusterName=dm",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={self._ports['slurmctld']}",
            f"SlurmdPort={self._ports['slurmd']}",
            f"SlurmUser={_ADMIN}",
            f"SlurmdUser={_ADMIN}",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={self._munge['socket']}",
            f"StateSaveLocation={self.directory}/state",
            f"SlurmdSpoolDir={self.directory}/spool",
            f"SlurmctldPidFile={self.directory}/slurmctld.pid",
            f"SlurmdPidFile={self.directory}/slurmd.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "SlurmdParameters=config_overrides",
            "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0",
            "JobAcctGatherType=jobacct_gather/linux",
            "JobAcctGatherFrequency=1",
            "JobAcctGatherParams=OverMemoryKill",
            f"DefMemPerCPU={memory // 64}",
            "KillWait=2",
            "MessageTimeout=2",
            "MinJobAge=300" if not self.accounting else "MinJobAge=2",
            "SlurmdTimeout=300",
            "ReturnToService=2",
            "JobCompType=jobcomp/none",
            *storage,
            f"NodeName={host} NodeAddr=127.0.0.1 CPUs={self.slots} RealMemory={memory} State=UNKNOWN",
            f"PartitionName={self.partition} Nodes={host} Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP",
        ).chmod(0o644)
        (self.directory / "cgroup.conf").write_text("CgroupAutomount=no\n")
        self._file(
            "slurmdbd.conf",
            "AuthType=auth/munge",
            f"AuthInfo=socket={self._munge['socket']}",
            "DbdHost=localhost",
            "DbdAddr=127.0.0.1",
            f"DbdPort={self._ports['slurmdbd']}",
            f"SlurmUser={_ADMIN}",
            f"PidFile={self.directory}/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=127.0.0.1",
            f"StoragePort={self._ports['mariadbd']}",
            "StorageUser=slurm",
            "StoragePass=slurm",
            "StorageLoc=slurm",
        ).chmod(0o600)

    def _start_accounting(self) -> None:
        data = self.directory / "database"
        self._admin(
            _program("mariadb-install-db"), "--no-defaults", f"--datadir={data}", f"--user={_ADMIN}",
            "--auth-root-authentication-method=normal", "--skip-test-db",
        )  # fmt: skip
        begin = self._file(
            "begin.sql",
            "CREATE DATABASE slurm;",
            "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'slurm';",
            "GRANT ALL ON slurm.* TO slurm@'127.0.0.1';",
        )
        self._start(
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--user={_ADMIN}", "--bind-address=127.0.0.1",
            f"--port={self._ports['mariadbd']}", f"--socket={data}/socket", f"--pid-file={data}/pid",
            "--skip-name-resolve", f"--init-file={begin}", "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=32M", "--innodb-lock-wait-timeout=900",
        )  # fmt: skip
        _until(lambda: _listens(self._ports["mariadbd"]), "MariaDB does not start", self._log)
        self._start("slurmdbd", "-D")
        _until(lambda: _listens(self._ports["slurmdbd"]), "slurmdbd does not start", self._log)

    def _ready(self) -> bool:
        done = self._admin("sinfo", "-h", "-o", "%T", check=False)
        return done.stdout.strip() == "idle"

    def _file(self, name: str, *lines: str) -> Path:
        path = self.directory / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    # --- processes

    def _admin(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": _PATH, "LANG": "C.UTF-8", **self.environment}
        done = subprocess.run([*command], env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return done

    def _start(self, name: str, *arguments: str | Path) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [_program(name), *arguments],
                env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", **self.environment},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self._daemons.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    def _log(self) -> str:
        return "\n".join(
            f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in self.directory.glob("*.log")
        )


@pytest.fixture(scope="session")
def slurm(run_directory: Path) -> Iterator[SlurmCluster]:
    """The run's Slurm, with accounting."""
    yield from _running(run_directory / "slurm", accounting=True)


@pytest.fixture(scope="session")
def small_slurm(run_directory: Path) -> Iterator[SlurmCluster]:
    """The run's Slurm without accounting."""
    yield from _running(run_directory / "small-slurm", accounting=False)


_clusters: dict[Path, SlurmCluster] = {}  # every module that imports a fixture has it anew; they share one cluster


def _running(directory: Path, accounting: bool) -> Iterator[SlurmCluster]:
    if directory in _clusters:
        yield _clusters[directory]
        return
    directory.mkdir()
    directory.chmod(0o755)
    cluster = SlurmCluster(directory, accounting)
    cluster.start()
    _clusters[directory] = cluster
    yield cluster
    del _clusters[directory]
    cluster.stop()
    shutil.rmtree(directory, ignore_errors=True)


def _until(condition: Callable[[], bool], otherwise: str, more: Callable[[], str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{otherwise}. {more()}"
        time.sleep(0.05)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
