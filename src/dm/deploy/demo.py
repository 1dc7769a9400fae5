"""A beamline's day in a minute: the suite on free ports, a detector that writes, and every file's way to its result."""

from __future__ import annotations

import os
import pwd
import secrets
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dm.common.environment import write_login_file
from dm.common.errors import CommunicationError, InvalidArgument, ServiceUnavailable, TaskTimeout
from dm.common.setupfile import read_setup
from dm.common.statuses import INACTIVE
from dm.deploy import components, demo_data, runtime
from dm.deploy.demo_checks import Claims, jobs_by_name, verify
from dm.deploy.demo_outcome import Outcome, Progress, Step
from dm.deploy.demo_process import look
from dm.deploy.install import ADMINISTRATOR, Installed, Plan, install
from dm.deploy.layout import Layout

STATION = "25IDC"
EXPERIMENT = "agbh-demo"
USERS = ("d100001", "d100002")
STAGE_USER = "proc25idc"
WORKFLOW = "look-and-draw"
PATIENCE = 300.0
_PAUSE = 0.08
_POLL = 0.3
_JOB_KEYS = ["id", "status", "stage", "experimentFilePath", "kind", "points", "maximum", "scans", "errorMessage"]


class Demo:
    """The suite in a directory of its own, and the day's work.

    :param root: directory of the installation; fresh or of an earlier run.
    :param data: folder whose files the detector writes; default: a small generated set.
    :param say: called with a line for people.
    :param show: called with :class:`Progress` again and again while files move (fault tests do their worst here).
    """

    def __init__(
        self,
        root: Path,
        data: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
        show: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        if data is not None and not data.is_dir():
            raise InvalidArgument(f"Data folder {data} is not a directory; name one.")
        if data is not None and not any(path.is_file() for path in data.rglob("*")):
            raise InvalidArgument(f"Data folder {data} holds no files; name another one.")
        self.root = root
        self.data = data
        self.say = say
        self.show = show
        self.outcome = Outcome()
        #: set to end the work at the next step (by a signal handler)
        self.interrupted = threading.Event()
        self.installed: Installed | None = None

    # --- the suite ---------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; the list takes the words for its outcome."""
        self._go_on()
        words: list[str] = []
        begun = time.monotonic()
        yield words
        done = Step(name, time.monotonic() - begun, ", ".join(words))
        self.outcome.steps.append(done)
        self.say(f"{done.seconds:6.1f} s  {done.name}" + (f": {done.outcome}" if done.outcome else ""))

    def _go_on(self) -> None:
        if self.interrupted.is_set():
            raise ServiceUnavailable("Interrupted.")

    def set_up(self, fresh: bool = True) -> Installed:
        """Install below the root, and start everything.

        :param fresh: refuse a directory that holds an installation.
        """
        if fresh and Layout.at(self.root).settings.exists():
            raise InvalidArgument(f"Directory {self.root} holds an installation already; name another one.")
        with self.step("install") as words:
            plan = Plan(self.root, STATION, host="localhost", listen="127.0.0.1", free_ports=True)
            self.installed = install(plan)
            words.append(str(self.root))
        with self.step("start services and databases") as words:
            parts = components.chosen("all", self.installed.layout.settings)
            components.start(parts)
            words.append(", ".join(part.name for part in parts))
        for name, value in read_setup(self.installed.layout.setup).items():
            os.environ[name] = value
        os.environ["DM_HOME"] = str(self.root / "home")
        return self.installed

    def stop(self) -> None:
        """Stop everything."""
        if self.installed is not None:
            self.interrupted.clear()
            with self.step("stop services and databases"):
                components.stop(components.chosen("all", self.installed.layout.settings))

    # --- the day -----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Do the day's work on the running suite and check it. :raises DmException: a service refuses something."""
        if self.installed is None:
            raise InvalidArgument("The suite is not set up yet; call set_up first.")
        with self.step("experiment and users") as words:
            self._people()
            words.append(f"experiment {EXPERIMENT} at {STATION}, users {', '.join(USERS)}")
        with self.step("workflow") as words:
            self._workflow()
            words.append(f"{WORKFLOW}: inspect, picture, upload")
        source = self._source()
        sources = {
            os.fspath(path.relative_to(source)): path
            for path in sorted(source.rglob("*"))
            if path.is_file() and not path.is_symlink()
        }
        with self.step("detector writes, files move, jobs run") as words:
            daq, jobs = self._acquire(source, sources)
            words.append(f"{len(sources)} files, {len(jobs)} jobs, DAQ {daq['status']}")
        with self.step("check everything against the disk") as words:
            self._check(sources, jobs)
            words.append("all as claimed" if self.outcome.ok else "NOT as claimed")
        return self.outcome

    def _people(self) -> None:
        from dm.site.storage.api import ExperimentDsApi, UserDsApi

        layout = self._layout
        administrator = _login(layout.login_file(ADMINISTRATOR))
        users = UserDsApi(*administrator)
        for number, username in enumerate(USERS, 1):
            users.addUser(username, secrets.token_urlsafe(18), firstName="Demo", lastName=f"User {number}")
        # Uploads are for managers: the stages get a login of their own, which only their account may read.
        password = secrets.token_urlsafe(18)
        users.addUser(STAGE_USER, password, lastName="Processing")
        users.addUserStationRole(STAGE_USER, "manager", STATION)
        users.close()
        login = layout.login_file(STAGE_USER)
        write_login_file(login, STAGE_USER, password)
        account = self._stage_account()
        if account is not None:
            os.chown(login, account.pw_uid, account.pw_gid)
        manager = _login(layout.login_file(self._plan.manager_account))
        experiments, members = ExperimentDsApi(*manager), UserDsApi(*manager)
        experiments.addExperiment(EXPERIMENT, stationName=STATION, typeName="TEST", description="The demo's experiment")
        for username, role in zip(USERS, ("PI", "User"), strict=True):
            members.addUserExperimentRole(username, role, EXPERIMENT, STATION)
        experiments.close()
        members.close()

    def _stage_account(self) -> pwd.struct_passwd | None:
        return runtime.account(self._plan.stage_account) if os.geteuid() == 0 else None

    def _workflow(self) -> None:
        from dm.station.processing.api import WorkflowProcApi

        layout = self._layout
        work = self.root / "work"
        work.mkdir(exist_ok=True)
        work.chmod(0o1777)
        program = layout.bin / "dm-demo-process"
        # The stages have the variables of the setup file already, but for the login: theirs is one of their own.
        environment = f"export DM_LOGIN_FILE={layout.login_file(STAGE_USER)} DM_HOME={work}/home"
        drawable = '"$kind" != "other"'
        owner = self._plan.manager_account
        api = WorkflowProcApi(*_login(layout.login_file(owner)))
        api.upsertWorkflow(
            {
                "name": WORKFLOW,
                "owner": owner,
                "description": "Numbers and a picture of each data file",
                "stages": {
                    "01-INSPECT": {
                        "command": f"{program} inspect $filePath",
                        "outputVariableRegexList": [
                            "Kind: (?P<kind>.*)",
                            "Points: (?P<points>.*)",
                            "Maximum: (?P<maximum>.*)",
                            "Scans: (?P<scans>.*)",
                        ],
                    },
                    "02-PICTURE": {
                        "command": f"{program} picture $filePath {work}",
                        "runIf": drawable,
                        "outputVariableRegexList": ["Picture: (?P<picture>.*)", "Results: (?P<results>.*)"],
                    },
                    "03-UPLOAD": {
                        "command": f'{environment}; {program} upload $experimentName "$results" "$experimentFilePath"',
                        "runIf": drawable,
                    },
                },
            }
        )
        api.close()

    def _source(self) -> Path:
        if self.data is not None:
            return self.data
        source = self.root / "generated"
        if not source.exists():
            demo_data.make_default_set(source)
        return source

    def _acquire(self, source: Path, sources: Mapping[str, Path]) -> tuple[Any, list[Mapping[str, Any]]]:
        from dm.station.acquisition.api import ExperimentDaqApi
        from dm.station.processing.api import WorkflowProcApi

        watched = self.root / "detector"
        watched.mkdir()
        manager = _login(self._layout.login_file(self._plan.manager_account))
        daqs, jobs = ExperimentDaqApi(*manager), WorkflowProcApi(*manager)
        try:
            daq = daqs.startDaq(
                EXPERIMENT,
                str(watched),
                {
                    "processExistingFiles": True,
                    "workflowName": WORKFLOW,
                    "workflowOwner": manager[0],
                    "beamtime": "demo",
                },
            )
            progress = Progress(total=len(sources))
            deadline = time.monotonic() + PATIENCE

            def poll() -> list[Mapping[str, Any]]:
                found: list[Mapping[str, Any]] = []
                with suppress(CommunicationError, ServiceUnavailable):  # a service that is down comes back
                    found = [dict(job) for job in jobs.listProcessingJobs(manager[0], limit=10_000, keyList=_JOB_KEYS)]
                    progress.stored = int(daqs.getDaqInfo(daq["id"]).get("nProcessedFiles", 0))
                finished = [job for job in found if job.get("status") in INACTIVE]
                progress.processed = len(jobs_by_name(sources, finished))
                self.show(progress)
                self._go_on()
                if time.monotonic() > deadline:
                    raise TaskTimeout(f"Not everything was done within {PATIENCE:g} s: {progress}.")
                return found

            def ended() -> bool:
                nonlocal daq
                with suppress(CommunicationError, ServiceUnavailable):
                    if not stopped:
                        daqs.stopDaq(EXPERIMENT, str(watched))
                        stopped.append(True)
                    daq = daqs.getDaqInfo(daq["id"])
                return bool(daq.is_over)

            self._detect(source, watched, progress, poll)
            stopped: list[bool] = []
            while not ended():
                poll()
                time.sleep(_POLL)
            while True:
                found = poll()
                if found and all(job.get("status") in INACTIVE for job in found):
                    return daq, [_explained(jobs, job) for job in found]
                time.sleep(_POLL)
        finally:
            daqs.close()
            jobs.close()

    def _detect(self, source: Path, watched: Path, progress: Progress, poll: Callable[[], Any]) -> None:
        """Run the detector's process to its end."""
        command = [sys.executable, "-P", "-m", demo_data.__name__, str(source), str(watched), str(_PAUSE)]
        whole: set[bytes] = set()
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/") as detector:
            if detector.stdout is None:
                raise ServiceUnavailable("The detector process has no output.")
            with selectors.DefaultSelector() as selector:
                selector.register(detector.stdout, selectors.EVENT_READ)
                while True:
                    if selector.select(_POLL):
                        lines = os.read(detector.stdout.fileno(), 1 << 16)
                        if not lines:
                            break
                        whole.update(lines.split())
                        progress.written = len(whole)
                    poll()
        if detector.returncode:
            raise ServiceUnavailable(f"The detector process ended with status {detector.returncode}.")

    def _check(self, sources: Mapping[str, Path], jobs: list[Mapping[str, Any]]) -> None:
        from dm.site.storage.api import ExperimentDsApi
        from dm.station.catalog.api import FileCatApi

        manager = _login(self._layout.login_file(self._plan.manager_account))
        experiments, catalog = ExperimentDsApi(*manager), FileCatApi(*manager)
        try:
            experiment = experiments.getExperimentByName(EXPERIMENT, STATION)
            records = [
                record
                for record in catalog.getExperimentFiles(EXPERIMENT, keyList="ALL")
                if isinstance(record, Mapping)
            ]
        finally:
            experiments.close()
            catalog.close()
        account = self._stage_account()
        by_root: dict[str, dict[str, Mapping[str, Any]]] = {"data": {}, "analysis": {}}
        for record in records:
            by_root[str(record.get("root", "data"))][str(record["experimentFilePath"])] = record
        claims = Claims(
            sources=sources,
            experiment=experiment,
            data_records=by_root["data"],
            analysis_records=by_root["analysis"],
            jobs=jobs,
            plain={name for name, path in sources.items() if look(os.fspath(path)).kind == "other"},
            group=account.pw_gid if account is not None else os.getegid(),
            owner=os.geteuid(),
        )
        self.outcome.checks = verify(claims)
        self.outcome.records = by_root["data"]
        self.outcome.jobs = jobs_by_name(sources, jobs)

    @property
    def _layout(self) -> Layout:
        if self.installed is None:
            raise InvalidArgument("The suite is not set up yet.")
        return self.installed.layout

    @property
    def _plan(self) -> Plan:
        if self.installed is None:
            raise InvalidArgument("The suite is not set up yet.")
        return self.installed.plan


def fresh_root() -> Path:
    """Return a new directory in the temporary folder that other accounts may pass (stages do not run as root)."""
    root = Path(tempfile.mkdtemp(prefix="dm-demo-"))
    root.chmod(0o711)
    return root


def remove(root: Path) -> None:
    """Delete an installation that is stopped."""
    shutil.rmtree(root, ignore_errors=True)


def _explained(api: Any, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a job that failed the last words of the process it failed in."""
    if job.get("status") == "done":
        return job
    stages = api.getProcessingJobById(None, job["id"])["workflow"]["stages"]
    last = [child.get("stdErr", "") for child in stages[job["stage"]]["childProcesses"].values()] if stages else []
    return {**job, "why": (last[-1] if last else "").strip()[-300:]}


def _login(file: Path) -> tuple[str, str]:
    from dm.common.environment import read_login_file

    return read_login_file(file)
