"""The Processing Service as a process: building it from objects or settings, and running it."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dm.common import plugins, program, statuses
from dm.common import settings as settings_files
from dm.common.errors import DmException
from dm.common.health import Health, Level
from dm.common.settings import StationSettings
from dm.common.web.application import Application, Authenticator, Authorizer
from dm.common.web.server import Server, serve
from dm.common.web.sessions import MemorySessionStore, SessionStore
from dm.station.processing import accounts
from dm.station.processing.artefacts import Artefacts
from dm.station.processing.catalogfiles import CatalogFiles
from dm.station.processing.context import Event
from dm.station.processing.engine import Engine
from dm.station.processing.executors.base import Executor
from dm.station.processing.executors.running import Executors
from dm.station.processing.jobs import Jobs
from dm.station.processing.logbook import Logbook
from dm.station.processing.outputs import Outputs
from dm.station.processing.rights import Rights
from dm.station.processing.routes import routes
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.store import Store
from dm.station.processing.submissions import Site, Submissions
from dm.station.processing.workflows import Workflows
from dm.station.processing.zeromq import build as zeromq
from dm.station.processing.zeromq.server import Gateway

NAME = "processing"
log = logging.getLogger(__name__)
_MIN_FREE = 64 << 20


@dataclass
class Processing:
    """The service's working parts.

    :param store: prepared database. :param executors: run processes. :param settings: of the service.
    :param spool: directory for the state of running processes. :param site: answers about experiments.
    :param logbook: of accepted jobs. :param artefacts: uploads what stages make. :param catalog: knows files of
        experiments.
    """

    store: Store
    executors: Executors
    settings: ProcessingSettings
    spool: Path
    site: Site
    health: Health
    station: str
    logbook: Logbook
    artefacts: Artefacts
    catalog: CatalogFiles
    listeners: list[Callable[[Event], None]] = field(default_factory=list)  # called in the engine's thread
    gateway: Gateway | None = field(default=None, init=False)
    _told: dict[str, str] = field(default_factory=dict, init=False)  # of executors, by the log
    engine: Engine = field(init=False)
    workflows: Workflows = field(init=False)
    jobs: Jobs = field(init=False)
    submissions: Submissions = field(init=False)
    outputs: Outputs = field(init=False)

    def __post_init__(self) -> None:
        rights = Rights(self.station, self.settings.users_may_author)
        ended = self.health.counter("processing_ended", "Jobs and processes that ended.", ("what", "status"))
        self.engine = Engine(
            self.store,
            self.executors,
            self.settings,
            self.spool,
            count=lambda what, status: ended.labels(what, status).inc(),
            events=self._tell,
        )
        self.workflows = Workflows(self.store, rights, self.executors.names)
        self.jobs = Jobs(self.store, self.engine, rights, self.site, self.settings.threads // 2)
        self.submissions = Submissions(
            store=self.store,
            engine=self.engine,
            workflows=self.workflows,
            rights=rights,
            settings=self.settings,
            site=self.site,
            logbook=self.logbook,
            catalog=self.catalog.find,
        )
        logs, waiters = self.engine.context.logs, self.settings.threads // 4
        self.outputs = Outputs(self.jobs, self.engine.output, logs.path, waiters)
        self.engine.context.publish = self.artefacts.of_stage
        for name in ("jobs", "queued", "running", "waiting"):
            gauge = self.health.gauge(f"processing_{name}", f"Processing: {name} at present.")
            gauge.set_function(functools.partial(self._load, name))
        for name, check in (
            ("database", self._check_database),
            ("engine", self._check_engine),
            ("executors", self._check_executors),
            ("stage account", self._check_account),
            ("spool", self._check_spool),
            ("logbook", self._check_logbook),
        ):
            self.health.check(name, check)

    def start(self) -> None:
        """Take over the jobs of an earlier run.

        :raises ConfigurationError: another service has the spool, or the logbook cannot be written.
        """
        self.logbook.prepare()
        self.engine.start()
        self.artefacts.sweep(self.engine.running)
        if self.gateway is not None:
            self.gateway.start()

    def stop(self) -> None:
        """Stop the engine (what runs goes on), close the connections to database and site."""
        if self.gateway is not None:
            self.gateway.stop()
        self.engine.close()
        self.artefacts.close()
        self.catalog.close()
        self.logbook.close()
        self.store.close()
        self.site.close()

    def _tell(self, event: Event) -> None:
        if event["event"] == "job" and event["status"] in statuses.INACTIVE:
            self.artefacts.forget(event["id"])
        for listener in self.listeners:
            listener(event)

    def _load(self, name: str) -> float:
        return float(self.engine.load()[name])

    def _check_database(self) -> tuple[Level, str]:
        try:
            self.store.ping()
        except DmException as error:
            return "critical", error.message
        return "ok", "The database answers."

    def _check_engine(self) -> tuple[Level, str]:
        if not self.engine.alive():
            return "critical", "The engine does not run; restart the service."
        load = self.engine.load()
        level: Level = "warning" if load["jobs"] >= self.settings.active_jobs else "ok"
        return level, f"{load['jobs']} jobs, {load['running']} processes running, {load['waiting']} waiting."

    def _check_executors(self) -> tuple[Level, str]:
        problems = self.engine.problems()
        if problems != self._told:
            self._told = problems
            for name, problem in sorted(problems.items()):
                log.warning("executor %s: %s", name, problem)
        if problems:
            # strangers read this: why, with directories and hosts, stands in the log
            return "warning", f"Executors that cannot be used at present: {', '.join(sorted(problems))}; see the log."
        return "ok", f"Executors: {', '.join(self.executors.names)}."

    def _check_account(self) -> tuple[Level, str]:
        try:
            account = accounts.default(self.settings.stage_account)
        except DmException as error:
            return "critical", error.message
        return "ok", f"Stages run under {account.name!r}."

    def _check_logbook(self) -> tuple[Level, str]:
        if problem := self.logbook.problem:
            return "critical", f"The logbook cannot be written, so no job is accepted: {problem}."
        return "ok", "The logbook is written."

    def _check_spool(self) -> tuple[Level, str]:
        try:
            status = os.statvfs(self.spool)
        except OSError as error:
            return "critical", f"The spool directory cannot be seen: {error.strerror}."
        free = status.f_bavail * status.f_frsize
        if free < _MIN_FREE:
            return "critical", f"The file system of the spool directory has only {free >> 20} MiB free."
        return "ok", f"The spool directory has {free >> 20} MiB free."


def build_app(
    processing: Processing, authenticator: Authenticator, authorizer: Authorizer, sessions: SessionStore
) -> Application:
    """Return the service's web application."""
    parts = processing
    table = routes(parts.workflows, parts.submissions, parts.jobs, parts.outputs, parts.logbook, parts.health)
    return Application(NAME, table, authenticator, authorizer, sessions, processing.health)


def build_executors(settings: ProcessingSettings, spool: Path, file: Path) -> Executors:
    """Return the executors the settings name.

    :param spool: of the service; each executor gets a directory below it. :param file: said in errors.
    :raises ConfigurationError: none of that name, or bad settings.
    """
    made: dict[str, Executor] = {}
    for name in {settings.executor: None, **settings.executors}:
        given = dict(settings.executors.get(name, {}))
        executor_class = plugins.load("dm.executors", str(given.pop("plugin", name)))
        values = settings_files.build(executor_class.settings_model, given, f"processing.executors.{name}", file)
        made[name] = executor_class(spool / name, values)
    return Executors(settings.executor, made)


def build_from_settings(
    settings: ProcessingSettings, station: StationSettings, file: Path = Path("settings")
) -> tuple[Processing, Server]:
    """Return the working parts and a server; neither is started.

    :param file: the settings file, said in errors.
    :raises ConfigurationError: unusable settings. :raises ServiceUnavailable: the database does not answer.
    """
    from dm.station.identity import SiteIdentity

    identity = SiteIdentity(station)
    spool = (settings.spool or station.var_dir / NAME).absolute()
    store = Store(settings.database_url)
    store.prepare()
    executors = build_executors(settings, spool, file)
    processing = Processing(
        store=store,
        executors=executors,
        settings=settings,
        spool=spool,
        site=identity,
        health=Health(NAME, station.name),
        station=station.name,
        logbook=Logbook((station.var_dir / "logbook").absolute(), settings.logbook_days),
        artefacts=Artefacts(settings, station),
        catalog=CatalogFiles(station, settings.catalog_url),
    )
    sessions = MemorySessionStore(*settings.session_limits)
    application = build_app(processing, identity, identity.authorizer(), sessions)
    processing.gateway = zeromq.gateway(settings, application, processing.health, station.name, station.var_dir)
    if processing.gateway is not None:
        processing.listeners.append(processing.gateway.publish)
    server = Server.of(application, settings)
    return processing, server


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM.

    :returns: see :func:`dm.common.program.run`.
    """
    return program.run(NAME, "Run the Processing Service of a station.", ProcessingSettings, _run, arguments)


def _run(settings: ProcessingSettings, file: Path) -> None:
    processing, server = build_from_settings(settings, settings_files.load(StationSettings, "station", file), file)
    try:
        processing.start()
        serve(server, NAME)
    finally:
        processing.stop()


if __name__ == "__main__":
    sys.exit(main())
