"""A real Grid Engine cluster of one host for tests: a qmaster and an execd of our own, on free ports.

::

    from tests.service.sge_server import sge     # a fixture: started when the first test asks for it

    sge.environment    # what clients need: SGE_ROOT, SGE_CELL, the ports; the commands are in the usual PATH
    sge.settings       # the same as a shell file to source, as sites have it
    sge.account        # who submits: nobody for root, else the account of the tests; jobs run as who submitted them
    sge.queue          # all.q with 32 slots and the parallel environment smp
    sge.run("qsub", "-terse", "-b", "y", "-wd", directory, "/bin/true")     # as that account

It needs the packages ``gridengine-master``, ``gridengine-exec`` and ``gridengine-client``; nothing of what these set up
themselves is used or changed. Each cluster has directories, ports and a range of group ids of its own, so several run
side by side. ``nobody`` has no home directory: a job needs ``-cwd`` or ``-wd``.
"""

from __future__ import annotations

import contextlib
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

PROGRAMS = Path("/usr/lib/gridengine")
SHARED = Path("/usr/share/gridengine")
CELL = "dm"
HOST = "localhost"
_ROOT = os.geteuid() == 0
_START_SECONDS = 30.0


class SgeCluster:
    """A cluster of this host. :param directory: made; other accounts must be able to reach it."""

    queue = "all.q"
    slots = 32
    parallel_environment = "smp"

    def __init__(self, directory: Path) -> None:
        assert (PROGRAMS / "sge_qmaster").exists(), "Grid Engine is not installed; run: make test-deps"
        self.directory = directory
        self.account = "nobody" if _ROOT else pwd.getpwuid(os.geteuid()).pw_name
        self.root = directory / "root"
        self.common = self.root / CELL / "common"
        self.settings = self.common / "settings.sh"
        self.accounting = self.common / "accounting"
        self.environment: dict[str, str] = {}
        self._spool = directory / "spool"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._orphans: list[int] = []

    # --- life

    def start(self) -> None:
        """Set the cluster up and start its daemons; returns when the queue takes jobs."""
        qmaster, execd = free_port(), free_port()
        self.environment = {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": CELL,
            "SGE_QMASTER_PORT": str(qmaster),
            "SGE_EXECD_PORT": str(execd),
        }
        self._make_directories()
        if not _resolves(socket.gethostname()):
            self.environment["LD_PRELOAD"] = str(self._host_name_library())
        self.settings.write_text("".join(f"export {name}={value}\n" for name, value in self.environment.items()))
        self._make_spool(first_group=100_000 + 100 * qmaster)
        try:
            self.start_qmaster()
            self._configure()
            self.start_execd()
            _until(self._ready, "The queue of the Grid Engine takes no jobs", self._log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the daemons and whatever jobs have left."""
        execd = self._daemons.get("execd")
        jobs = _descendants(execd.pid) if execd else []
        self.stop_execd()
        self.stop_qmaster(signal.SIGKILL)
        for process in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(jobs, timeout=10)

    def start_qmaster(self) -> None:
        """Start the qmaster, also again after :meth:`stop_qmaster`; returns when it answers."""
        self._start("qmaster")
        _until(lambda: self._admin("qconf", "-sh", check=False).returncode == 0, "The qmaster is silent", self._log)

    def stop_qmaster(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the qmaster; jobs go on running, commands fail."""
        self._end("qmaster", number)

    def start_execd(self) -> None:
        """Start the execd, also again; it finds its running jobs."""
        self._start("execd")

    def stop_execd(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the execd; its jobs go on under their shepherds, which somebody has to :meth:`reap`."""
        execd = self._daemons.get("execd")
        self._orphans += [process.pid for process in _descendants(execd.pid)] if execd else []
        self._end("execd", number)

    def reap(self) -> None:
        """Collect shepherds that ended after their execd: this process may be their parent now, as init would be."""
        for pid in self._orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

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
        """Wait for the accounting record of a job and return it as ``qacct`` shows it."""
        found: dict[str, str] = {}

        def there() -> bool:
            self.reap()
            done = self.run("qacct", "-j", str(job), check=False)
            lines = [line.split(None, 1) for line in done.stdout.splitlines()]
            found.update({line[0]: line[1].strip() for line in lines if len(line) == 2})
            return done.returncode == 0

        _until(there, f"There is no accounting record of job {job}", self._log)
        return found

    def jobs(self) -> list[str]:
        """Return the ids of all jobs that wait or run."""
        return [line.split()[0] for line in self.run("qstat", "-u", "*").stdout.splitlines()[2:]]

    # --- set-up

    def _make_directories(self) -> None:
        for place in (self.common, self._spool / "qmaster" / "job_scripts", self._spool / "execd"):
            place.mkdir(parents=True)
        (self.root / "util").symlink_to(SHARED / "util")
        architecture = subprocess.run(
            ["/bin/sh", SHARED / "util" / "arch"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("bin", "lib", "utilbin"):
            (self.root / name).mkdir()
            (self.root / name / architecture).symlink_to(PROGRAMS)
        (self.common / "act_qmaster").write_text(f"{HOST}\n")
        names = dict.fromkeys([HOST, socket.gethostname(), socket.getfqdn()])
        (self.common / "host_aliases").write_text(" ".join(names) + "\n")
        (self.common / "bootstrap").write_text(
            f"admin_user {'root' if _ROOT else self.account}\ndefault_domain none\nignore_fqdn true\n"
            f"spooling_method classic\nspooling_lib libspoolc\nspooling_params {self._spooling}\n"
            f"binary_path {PROGRAMS}\nqmaster_spool_dir {self._spool}/qmaster\nsecurity_mode none\n"
            "listener_threads 2\nworker_threads 2\nscheduler_threads 1\n"
        )

    def _host_name_library(self) -> Path:
        """Make a library by which programs take this host, whose own name leads nowhere, for localhost."""
        library = self.common / "hostname.so"
        body = f'strncpy(name, "{HOST}", size); return 0;'
        source = f"#include <string.h>\nint gethostname(char *name, size_t size) {{ {body} }}\n"
        command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", library]
        subprocess.run(command, input=source, check=True, capture_output=True, text=True)
        return library

    @property
    def _spooling(self) -> str:
        return f"{self.common};{self._spool}/qmaster"

    def _make_spool(self, first_group: int) -> None:
        self._admin(PROGRAMS / "spoolinit", "classic", "libspoolc", self._spooling, "init")
        changes = {
            "execd_spool_dir": f"{self._spool}/execd",
            "mailer": "/bin/true",
            "min_uid": "0",
            "min_gid": "0",
            "loglevel": "log_info",
            "load_report_time": "00:00:01",
            "gid_range": f"{first_group}-{first_group + 99}",  # by these the execd knows the processes of its jobs
            "reporting_params": "accounting=true reporting=false flush_time=00:00:01 "
            "accounting_flush_time=00:00:00 joblog=false sharelog=00:00:00",
            "execd_params": "PDC_INTERVAL=00:00:01",
        }
        configuration = _changed((SHARED / "default-configuration").read_text(), changes)
        defaults = PROGRAMS / "spooldefaults"
        self._admin(defaults, "configuration", self._file("configuration", configuration))
        self._admin(defaults, "complexes", SHARED / "util/resources/centry")
        self._admin(defaults, "usersets", SHARED / "util/resources/usersets")
        self._admin(defaults, "managers", "root" if _ROOT else self.account)

    def _configure(self) -> None:
        """Tell a new qmaster what there is."""
        scheduling = {
            "schedule_interval": "0:0:1",
            "flush_submit_sec": "1",
            "flush_finish_sec": "1",
            "job_load_adjustments": "NONE",
            "load_adjustment_decay_time": "0:0:0",
        }
        now = self._admin("qconf", "-ssconf").stdout
        self._admin("qconf", "-Msconf", self._file("scheduler", _changed(now, scheduling)))
        self._admin("qconf", "-as", HOST)
        host = f"hostname {HOST}\nload_scaling NONE\ncomplex_values NONE\nuser_lists NONE\nxuser_lists NONE\n"
        more = "projects NONE\nxprojects NONE\nusage_scaling NONE\nreport_variables NONE\n"
        self._admin("qconf", "-Ae", self._file("host", host + more))
        environment = _changed((SHARED / "util/resources/pe/smp").read_text(), {"slots": "999"})
        self._admin("qconf", "-Ap", self._file("smp", environment))
        queue = {
            "qname": self.queue,
            "hostlist": HOST,
            "slots": str(self.slots),
            "shell": "/bin/sh",
            "pe_list": self.parallel_environment,
            "load_thresholds": "NONE",
            "min_cpu_interval": "00:00:01",
            "notify": "00:00:02",
        }
        self._admin("qconf", "-Aq", self._file("queue", _changed(_QUEUE, queue)))

    def _ready(self) -> bool:
        lines = self._admin("qstat", "-f", check=False).stdout.splitlines()
        rows = [line.split() for line in lines if line.startswith(f"{self.queue}@")]
        return len(rows) == 1 and len(rows[0]) == 5  # a sixth column would name what is wrong with the queue

    def _file(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    # --- processes

    def _admin(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **self.environment}
        done = subprocess.run([*command], env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, (command, done.stdout, done.stderr)
        return done

    def _start(self, name: str) -> None:
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "SGE_ND": "1",  # stay in the foreground
            **self.environment,
        }
        with (self.directory / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [PROGRAMS / f"sge_{name}"],
                env=environment,
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
        texts = []
        for path in [*self.directory.glob("*.log"), *self._spool.glob("*/messages"), *self._spool.glob("*/*/messages")]:
            texts.append(f"{path}:\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)


_running: dict[Path, SgeCluster] = {}  # every module that imports the fixture has it anew; they share one cluster


@pytest.fixture(scope="session")
def sge(run_directory: Path) -> Iterator[SgeCluster]:
    """The run's Grid Engine."""
    directory = run_directory / "sge"
    if directory in _running:
        yield _running[directory]
        return
    cluster = SgeCluster(directory)
    cluster.start()
    _running[directory] = cluster
    yield cluster
    del _running[directory]
    cluster.stop()
    shutil.rmtree(directory, ignore_errors=True)


def _changed(text: str, changes: Mapping[str, str]) -> str:
    """Return a Grid Engine configuration with other values of some keys, which it must have."""
    rows = [line.partition(" ") for line in text.replace("\\\n", " ").replace("\t", " ").splitlines()]
    assert {key for key, _, _ in rows} >= changes.keys(), changes
    return "".join(f"{key} {changes.get(key, value)}\n" for key, _, value in rows)


def _resolves(name: str) -> bool:
    try:
        socket.gethostbyname(name)
    except OSError:
        return False
    return True


def _until(condition: Callable[[], bool], otherwise: str, more: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{otherwise}. {more()}"
        time.sleep(0.05)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


_QUEUE = """qname all.q
hostlist NONE
seq_no 0
load_thresholds np_load_avg=1.75
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list NONE
rerun FALSE
slots 1
tmpdir /tmp
shell /bin/sh
prolog NONE
epilog NONE
shell_start_mode posix_compliant
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
s_rt INFINITY
h_rt INFINITY
s_cpu INFINITY
h_cpu INFINITY
s_fsize INFINITY
h_fsize INFINITY
s_data INFINITY
h_data INFINITY
s_stack INFINITY
h_stack INFINITY
s_core INFINITY
h_core INFINITY
s_rss INFINITY
h_rss INFINITY
s_vmem INFINITY
h_vmem INFINITY
"""
