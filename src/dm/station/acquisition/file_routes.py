"""The part of the routes table that is about single files. No argument is understood as double
base64: a file may have a name that looks so.

``GET /daqs/{id}/files``, ``state``, ``pattern``, ``since``, ``skip``, ``limit``, ``after``: list of ledger records

``GET /daqs/{id}/fileCounts``: exact counts by state

``GET /daqs/{id}/file``, ``path``: one ledger record with its ``timeline``

``GET /daqs/{id}/files/export``, ``format``, ``state``, ``pattern``, ``since``: all records as CSV or JSON lines

``POST /daqs/{id}/retry``, ``path``, ``pattern``, ``state``: ``{"count": n}``, files made ready again

``POST /daqs/{id}/skip``, ``path``, ``pattern``, ``state``, ``reason``: ``{"count": n}``, files left out

``POST /daqs/{id}/reprocess``, ``path``, ``pattern``, ``plugins``: ``{"count": n}``, files the plugins see once more

The same below ``/uploads/{id}``.

``GET /fileExplanation``, ``id``, ``path``, ``experimentName``, ``root``, ``sourcePath``: why a file is not there

``GET /fileWait``, the same, ``until``, ``waitTime`` (seconds, at most 30): the file's record as soon as it is so far
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from dm.common.errors import ObjectNotFound
from dm.common.paths import display, encode, relative
from dm.common.web.routes import MANAGER, USER, Arguments, Request, Route, Stream
from dm.station.acquisition import amends, listing
from dm.station.acquisition.amends import Choice
from dm.station.acquisition.explain import explain
from dm.station.acquisition.exporting import FORMATS, exported
from dm.station.acquisition.filewait import wait_for_file
from dm.station.acquisition.office import Office
from dm.station.acquisition.store import Document
from dm.station.acquisition.task import DAQ, UPLOAD
from dm.station.acquisition.timeline import timeline
from dm.station.acquisition.whereabouts import Wanted

_PAGE = 1000
_LONGEST_WAIT = 30.0
_LONGEST_TEXT = 8192


def _bounded(text: str) -> str:
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"it has more than {_LONGEST_TEXT} characters")
    return text


# Length limits of the model itself would refuse texts with undecodable bytes, which names of files may have.
AnyText = Annotated[str, AfterValidator(_bounded)]

SeesTask = Callable[[Request, Document], bool]
Visible = Callable[[Request, str, str], None]


class IdArguments(Arguments):
    """One DAQ or upload."""

    id: str = Field(min_length=1, max_length=100, description="Of the DAQ or upload.")


class FileArguments(IdArguments):
    """One file of it."""

    path: AnyText = Field(description="Relative to the data directory.")


class QueryArguments(IdArguments):
    """Some files of it."""

    state: str | None = Field(default=None, description=f"Only files in this state: {', '.join(listing.STATES)}.")
    pattern: AnyText = Field(
        default="",
        description="Only files whose path, or name, matches this shell wildcard.",
    )
    since: float | None = Field(
        default=None, ge=0, description="Only files found whole or finished at or after this time (epoch seconds)."
    )

    def query(self) -> listing.Query:
        """Return them as the use cases take them."""
        return listing.Query(self.state or "", self.pattern, self.since)


class FilesArguments(QueryArguments):
    """A page of them."""

    skip: int = Field(default=0, ge=0, le=1 << 40, description="Leave out so many that fit.")
    limit: int = Field(default=_PAGE, ge=1, le=100_000, description="Most files of the page.")
    after: int | None = Field(
        default=None, ge=0, le=1 << 40, description="Go on after the file that had this position in the page before."
    )


class ExportArguments(QueryArguments):
    """Some files of it as a table."""

    format: str = Field(default="csv", description=f"One of {', '.join(FORMATS)}.")


class ChoiceArguments(IdArguments):
    """Files of it that a person decides about."""

    path: AnyText | None = Field(
        default=None,
        description="Only this file, relative to the data directory.",
    )
    pattern: AnyText = Field(default="", description="Only files whose path, or name, matches this shell wildcard.")

    def choice(self, who: str, state: str = "") -> Choice:
        """Return them as the use cases take them."""
        listing.Query(pattern=self.pattern)  # refuses what is no pattern
        return Choice(who, relative(self.path) if self.path is not None else None, self.pattern, state)


class RetryArguments(ChoiceArguments):
    """Files to be tried again."""

    state: Literal["failed", "skipped"] = Field(default="failed", description="Which: failed ones, or skipped ones.")


class SkipArguments(ChoiceArguments):
    """Files to be left out."""

    state: Literal["failed", "ready"] | None = Field(
        default=None, description="Only failed ones, or only those that wait for their turn; default: both."
    )
    reason: AnyText = Field(default="", description="Why; kept with each file.")


class ReprocessArguments(ChoiceArguments):
    """Files that plugins are to see once more."""

    plugins: list[str] | str = Field(default=[], description="Names (list, or comma list); default: all.")

    def names(self) -> list[str]:
        """Return the names."""
        given = self.plugins.split(",") if isinstance(self.plugins, str) else self.plugins
        return [name.strip() for name in given if name.strip()]


class WantedArguments(Arguments):
    """A file, told by DAQ and path, by experiment and path, or by where it lies at its source."""

    id: str = Field(default="", max_length=100, description="Of a DAQ or upload; path is below its data directory.")
    path: AnyText = Field(default="", description="Relative; see id and experimentName.")
    experiment_name: str = Field(
        default="", max_length=500, description="Of an experiment; path is the file's path in it, below root."
    )
    root: Literal["data", "analysis"] = Field(default="data", description="With experimentName: what path is below.")
    source_path: AnyText = Field(default="", description="Where the file lies, as data directories are written.")

    def wanted(self) -> Wanted:
        """Return it as the use cases take it."""
        return Wanted(self.id, self.path, self.experiment_name, self.source_path, self.root)


class FileWaitArguments(WantedArguments):
    """The same, with patience."""

    until: Literal["stored", "cataloged", "done"] = Field(default="done", description="What to wait for.")
    wait_time: float = Field(default=0, ge=0, le=86_400, description="Seconds to wait, at most 30.")


class FileDesk:
    """Answers the routes about files.

    :param visible: raises unless the caller may see a DAQ or upload. :param sees: whether the caller may.
    """

    def __init__(self, office: Office, visible: Visible, sees: SeesTask) -> None:
        self.office = office
        self.visible = visible
        self.sees = sees

    def listed(self, kind: str) -> Any:
        """Return the handler that lists files."""

        def handler(request: Request, arguments: FilesArguments) -> list[dict[str, Any]]:
            query = arguments.query()
            self.visible(request, kind, arguments.id)
            return listing.listed_files(
                self.office, arguments.id, query.state, arguments.skip, arguments.limit, query, arguments.after
            )

        return handler

    def counted(self, kind: str) -> Any:
        """Return the handler that counts files."""

        def handler(request: Request, arguments: IdArguments) -> dict[str, int]:
            self.visible(request, kind, arguments.id)
            return listing.counts(self.office, arguments.id)

        return handler

    def one(self, kind: str) -> Any:
        """Return the handler that shows one file."""

        def handler(request: Request, arguments: FileArguments) -> dict[str, Any]:
            path = relative(arguments.path)
            self.visible(request, kind, arguments.id)
            record = listing.one_file(self.office, arguments.id, path)
            if record is None:
                raise ObjectNotFound(
                    f"File {arguments.path[:300]!a} does not exist in the ledger of {arguments.id}; ask for its "
                    "explanation (dm-explain-file)."
                )
            return {**record, "timeline": timeline(record)}

        return handler

    def exported(self, kind: str) -> Any:
        """Return the handler that exports files."""

        def handler(request: Request, arguments: ExportArguments) -> Stream:
            chunks = exported(listing.once_each(self.office, arguments.id, arguments.query()), arguments.format)
            self.visible(request, kind, arguments.id)
            name = f"{kind}-{arguments.id}.{arguments.format}"
            return Stream(lambda _first, _length: chunks, None, name, "", content_type=FORMATS[arguments.format])

        return handler

    def retry(self, kind: str) -> Any:
        """Return the handler that lets files be tried again."""

        def handler(request: Request, arguments: RetryArguments) -> dict[str, Any]:
            choice = arguments.choice(request.principal.username, arguments.state)
            return self._decided(
                request, kind, arguments.id, lambda task: amends.retry(task, self.office.pipeline, choice)
            )

        return handler

    def skip(self, kind: str) -> Any:
        """Return the handler that leaves files out."""

        def handler(request: Request, arguments: SkipArguments) -> dict[str, Any]:
            choice = arguments.choice(request.principal.username, arguments.state or "")
            amends.check_skip(choice)
            return self._decided(
                request,
                kind,
                arguments.id,
                lambda task: amends.skip(task, self.office.pipeline, choice, display(encode(arguments.reason))),
            )

        return handler

    def reprocess(self, kind: str) -> Any:
        """Return the handler that has plugins see files once more."""

        def handler(request: Request, arguments: ReprocessArguments) -> dict[str, Any]:
            choice, names = arguments.choice(request.principal.username), arguments.names()
            document = self.office.document(kind, arguments.id)
            amends.check_plugins(names, list(document["plugins"]), kind)
            return self._decided(request, kind, arguments.id, lambda task: amends.reprocess(task, choice, names))

        return handler

    def _decided(self, request: Request, kind: str, task_id: str, decision: Any) -> dict[str, Any]:
        return {"count": self.office.decide(kind, task_id, request.principal, decision)}

    def explain(self, request: Request, arguments: WantedArguments) -> dict[str, Any]:
        """Explain where a file is."""
        return explain(
            self.office, request.principal, arguments.wanted(), lambda document: self.sees(request, document)
        )

    def wait(self, request: Request, arguments: FileWaitArguments) -> dict[str, Any]:
        """Wait for a file."""
        return wait_for_file(
            self.office,
            arguments.wanted(),
            lambda document: self.sees(request, document),
            arguments.until,
            min(arguments.wait_time, _LONGEST_WAIT),
        )


def file_routes(office: Office, visible: Visible, sees: SeesTask) -> list[Route]:
    """Return the rows."""
    desk = FileDesk(office, visible, sees)
    table = [
        Route("GET", "/fileExplanation", desk.explain, USER,
              "Say why a file is where it is, or is not: in a sentence, with the facts.", WantedArguments),
        Route("GET", "/fileWait", desk.wait, USER,
              "Wait until a file is stored, cataloged or done, or never will be.", FileWaitArguments),
    ]  # fmt: skip
    for kind, plural, what in ((DAQ, "daqs", "DAQ"), (UPLOAD, "uploads", "upload")):
        one = f"/{plural}/{{id}}"
        table += [
            Route("GET", f"{one}/files", desk.listed(kind), USER, f"List the files of one {what}.", FilesArguments),
            Route("GET", f"{one}/fileCounts", desk.counted(kind), USER, f"Count the files of one {what} by state.",
                  IdArguments),
            Route("GET", f"{one}/file", desk.one(kind), USER, f"Show one file of one {what} with its timeline.",
                  FileArguments),
            Route("GET", f"{one}/files/export", desk.exported(kind), USER,
                  f"Give the files of one {what} as CSV or JSON lines.", ExportArguments),
            Route("POST", f"{one}/retry", desk.retry(kind), MANAGER,
                  f"Try failed files of one {what} again, running or not.", RetryArguments),
            Route("POST", f"{one}/skip", desk.skip(kind), MANAGER,
                  f"Leave files of one {what} out.", SkipArguments),
            Route("POST", f"{one}/reprocess", desk.reprocess(kind), MANAGER,
                  f"Run plugins once more for files of one {what} that are done.", ReprocessArguments),
        ]  # fmt: skip
    return table
