"""The routes table of the Data Acquisition Service. ``*`` marks arguments that may come as double base64.

``POST /experimentsByName/{experimentName*}/startDaq/{dataDirectory*}``, ``taskInfo*`` (object): daqInfo

``POST /experimentsByName/{experimentName*}/stopDaq/{dataDirectory*}``: daqInfo

``POST /experimentsByName/{experimentName*}/upload/{dataDirectory*}``, ``taskInfo*`` (object): uploadInfo

``GET /daqs``, ``experimentName*``, ``status``: list of daqInfo, newest last

``GET /daqs/{id}``, ``waitTime`` (seconds, at most 30), ``revision``: daqInfo

``POST /daqs/{id}/stop``: daqInfo

``DELETE /daqs/{id}`` (clear): the last daqInfo

``GET /uploads``, ``GET /uploads/{id}``, ``POST /uploads/{id}/stop``, ``DELETE /uploads/{id}``: the same for uploads

``GET /uploadRecords``, ``queryDict*`` (object), ``skip``, ``limit``: list of uploadInfo, newest last

Files of one of them: see :mod:`dm.station.acquisition.file_routes`.

``POST /daqs/{id}/completeFiles``, ``paths`` (list), ``waitTime``: what became of files their writer says are whole

``GET /processingPlugins``: list of ``{name, description}``

With ``waitTime`` an info call answers when the record changed status or the time has passed, whichever is first; with
the ``revision`` of the record that the caller has, as soon as the counts are others, too.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from pydantic import Field

from dm.common.errors import AuthorizationError, InvalidArgument, ObjectNotFound
from dm.common.health import Health
from dm.common.web.common import reset_alarms
from dm.common.web.routes import MANAGER, USER, Arguments, Request, Route
from dm.station.acquisition.file_routes import AnyText, IdArguments, file_routes
from dm.station.acquisition.office import Office
from dm.station.acquisition.prune import Pruner
from dm.station.acquisition.prune_routes import prune_routes
from dm.station.acquisition.store import Document
from dm.station.acquisition.task import DAQ, UPLOAD
from dm.station.acquisition.telling import MOST, complete

_PAGE = 1000
_LONGEST_WAIT = 30.0


class DirectoryArguments(Arguments):
    """A data directory of an experiment."""

    experiment_name: str = Field(min_length=1, max_length=500)
    data_directory: AnyText


class StartArguments(DirectoryArguments):
    """The same, with the keys of 6.1; ``daqInfo`` is another name for them."""

    task_info: dict[str, Any] = Field(default_factory=dict)
    daq_info: dict[str, Any] = Field(default_factory=dict)


class ListArguments(Arguments):
    """Filters of a list."""

    experiment_name: str | None = None
    status: str | None = None


class InfoArguments(IdArguments):
    """The same, with patience."""

    wait_time: float = Field(default=0, ge=0, le=86_400)
    revision: str = Field(default="", max_length=100)


class CompleteArguments(IdArguments):
    """Files that are whole, as their writer says."""

    paths: list[str] = Field(min_length=1, max_length=MOST)
    wait_time: float = Field(default=10, ge=0, le=_LONGEST_WAIT)


class RecordsArguments(Arguments):
    """A page of upload records."""

    query_dict: dict[str, Any] = Field(default_factory=dict)
    skip: int = Field(default=0, ge=0)
    limit: int = Field(default=_PAGE, ge=1, le=100_000)


class Desk:
    """Answers the routes for one :class:`~dm.station.acquisition.office.Office`."""

    def __init__(self, office: Office) -> None:
        self.office = office

    # --- who sees what ----------------------------------------------------------------------------------------------
    def _sees(self, request: Request, record: dict[str, Any], known: dict[str, int | None]) -> bool:
        """Whether a record may be shown: to managers and to members of the experiment.

        Who started it and is neither any more sees it no longer: what counts is what somebody is now. And names of
        experiments are used again: what counts is the number of the one that the caller sees by that name.
        """
        principal = request.principal
        if principal.manages(self.office.parts.station):
            return True
        name = str(record["experimentName"])
        if name not in known:
            try:
                known[name] = int(self.office.parts.identity.experiment(principal, name)["id"])
            except (ObjectNotFound, AuthorizationError):
                known[name] = None
        return known[name] == record["experimentId"]

    def sees_task(self, request: Request, document: Document) -> bool:
        """Whether the caller may see a DAQ or upload."""
        experiment = json.loads(document["experiment"])
        record = {
            "experimentId": int(experiment["id"]),
            "experimentName": experiment["name"],
        }
        return self._sees(request, record, {})

    def visible(self, request: Request, kind: str, task: str) -> None:
        """Check that the caller may see a DAQ or upload. :raises ObjectNotFound: no."""
        record = self.office.info(kind, task)
        if not self._sees(request, record, {}):
            what = "DAQ" if kind == DAQ else "Upload"
            raise ObjectNotFound(f"{what} {task[:80]!r} does not exist.")

    def _list(self, kind: str, request: Request, arguments: ListArguments) -> list[dict[str, Any]]:
        known: dict[str, int | None] = {}
        return [
            record
            for record in self.office.list(kind, experiment=arguments.experiment_name or "")
            if arguments.status in (None, "", record["status"]) and self._sees(request, record, known)
        ]

    # --- handlers ---------------------------------------------------------------------------------------------------
    def start_daq(self, request: Request, arguments: StartArguments) -> dict[str, Any]:
        """Start a DAQ."""
        return self._start(DAQ, request, arguments)

    def upload(self, request: Request, arguments: StartArguments) -> dict[str, Any]:
        """Start an upload."""
        return self._start(UPLOAD, request, arguments)

    def _start(self, kind: str, request: Request, arguments: StartArguments) -> dict[str, Any]:
        keys = {**arguments.daq_info, **arguments.task_info}
        return self.office.start(kind, request.principal, arguments.experiment_name, arguments.data_directory, keys)

    def stop_daq(self, request: Request, arguments: DirectoryArguments) -> dict[str, Any]:
        """Stop the DAQ of an experiment and directory."""
        wanted = (arguments.experiment_name, arguments.data_directory.rstrip("/"))
        for task in list(self.office.live.values()):
            found = (task.experiment["name"], task.data_directory.rstrip("/"))
            if task.kind == DAQ and found == wanted and task.document.get("open"):
                return self.office.stop(DAQ, task.id, abort=False)
        for info in self.office.records(DAQ):
            if (info["experimentName"], info["dataDirectory"].rstrip("/")) == wanted:
                return info
        raise ObjectNotFound(
            f"A DAQ of experiment {arguments.experiment_name!r} on {arguments.data_directory!r} does not exist."
        )

    def list_daqs(self, request: Request, arguments: ListArguments) -> list[dict[str, Any]]:
        """List DAQs."""
        return self._list(DAQ, request, arguments)

    def list_uploads(self, request: Request, arguments: ListArguments) -> list[dict[str, Any]]:
        """List uploads."""
        return self._list(UPLOAD, request, arguments)

    def upload_records(self, request: Request, arguments: RecordsArguments) -> list[dict[str, Any]]:
        """List upload records, cleared ones included."""
        for key, value in arguments.query_dict.items():
            if key.startswith("$") or isinstance(value, dict):
                raise InvalidArgument(f"queryDict key {key!r}: upload records are found by plain equality only.")
        known: dict[str, int | None] = {}
        experiment = arguments.query_dict.get("experimentName")
        found = (
            record
            for record in self.office.records(UPLOAD, cleared=True, experiment=str(experiment or ""))
            if all(_equal(record.get(key), value) for key, value in arguments.query_dict.items())
            and self._sees(request, record, known)
        )
        return list(itertools.islice(found, arguments.skip, arguments.skip + arguments.limit))[::-1]

    def plugins(self, request: Request, arguments: Arguments) -> list[dict[str, Any]]:
        """List the processing plugins."""
        return [
            {"name": plugin.name, "description": plugin.summary or (type(plugin).__doc__ or "").split("\n")[0]}
            for plugin in self.office.parts.plugins
        ]

    def info(self, kind: str) -> Any:
        """Return the handler that shows one."""

        def handler(request: Request, arguments: InfoArguments) -> dict[str, Any]:
            self.visible(request, kind, arguments.id)
            wait = min(arguments.wait_time, _LONGEST_WAIT)
            return self.office.info(kind, arguments.id, wait, arguments.revision)

        return handler

    def stop(self, kind: str) -> Any:
        """Return the handler that stops one."""

        def handler(request: Request, arguments: IdArguments) -> dict[str, Any]:
            return self.office.stop(kind, arguments.id, abort=kind == UPLOAD)

        return handler

    def clear(self, kind: str) -> Any:
        """Return the handler that takes one off the list."""

        def handler(request: Request, arguments: IdArguments) -> dict[str, Any]:
            return self.office.clear(kind, arguments.id)

        return handler

    def complete(self, request: Request, arguments: CompleteArguments) -> dict[str, Any]:
        """Take files of a DAQ as whole because their writer says so."""
        with self.office.waits.place() as held:
            seconds = arguments.wait_time if held else 0.0
            return complete(self.office, arguments.id, arguments.paths, seconds)


def _equal(found: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one; commands know texts only."""
    return bool(found == wanted) or (isinstance(wanted, str) and isinstance(found, int) and str(found) == wanted)


def routes(office: Office, health: Health) -> list[Route]:
    """Return the table for an office and the health it reports."""
    desk = Desk(office)
    named = frozenset({"experimentName", "dataDirectory"})
    start = named | {"taskInfo", "daqInfo"}
    by_name = "/experimentsByName/{experimentName}"
    table = [
        Route(
            "POST",
            by_name + "/startDaq/{dataDirectory}",
            desk.start_daq,
            MANAGER,
            "Start a DAQ: watch a directory and move, verify, catalog and process each file; idempotent.",
            StartArguments,
            start,
        ),
        Route(
            "POST",
            by_name + "/stopDaq/{dataDirectory}",
            desk.stop_daq,
            MANAGER,
            "Stop a DAQ; files written before are finished.",
            DirectoryArguments,
            named,
        ),
        Route(
            "POST",
            by_name + "/upload/{dataDirectory}",
            desk.upload,
            MANAGER,
            "Upload what a directory holds now.",
            StartArguments,
            start,
        ),
        Route(
            "GET",
            "/uploadRecords",
            desk.upload_records,
            USER,
            "List uploads of the past, newest last.",
            RecordsArguments,
            frozenset({"queryDict"}),
        ),
        Route("GET", "/processingPlugins", desk.plugins, USER, "List the processing plugins of this station."),
        reset_alarms(health, MANAGER),
        *file_routes(office, desk.visible, desk.sees_task),
        *prune_routes(Pruner(office.store, office.parts.site, office.parts.settings, office.pipeline.stop_event)),
    ]
    table.append(
        Route(
            "POST",
            "/daqs/{id}/completeFiles",
            desk.complete,
            MANAGER,
            "Say that files of a running DAQ are whole: paths, relative or absolute; a directory means all in it.",
            CompleteArguments,
        )
    )
    listed = frozenset({"experimentName"})
    for kind, plural, what, lister, starter in (
        (DAQ, "daqs", "DAQ", desk.list_daqs, desk.start_daq),
        (UPLOAD, "uploads", "upload", desk.list_uploads, desk.upload),
    ):
        one = f"/{plural}/{{id}}"
        table += [
            Route(
                "POST",
                f"/{plural}",
                starter,
                MANAGER,
                f"Start one {what} with plain arguments, as curl sends them in a form or in JSON.",
                StartArguments,
                start,
            ),
            Route("GET", f"/{plural}", lister, USER, f"List {what}s, newest last.", ListArguments, listed),
            Route("GET", one, desk.info(kind), USER, f"Show one {what}; waitTime waits for a change.", InfoArguments),
            Route("POST", f"{one}/stop", desk.stop(kind), MANAGER, f"Stop one {what}.", IdArguments),
            Route("DELETE", one, desk.clear(kind), MANAGER, f"Take a finished {what} off the list.", IdArguments),
        ]
    return table
