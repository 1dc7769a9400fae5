"""What goes over the wire: requests, answers, events, and their limits.

The arguments of an operation are those of the REST route that does the same, checked by the same model; this table is
all there is beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from pydantic import ConfigDict, Field, ValidationError

from dm.common.errors import InvalidRequest
from dm.common.web.arguments import parse_json, shorten
from dm.common.web.common import LoginArguments
from dm.common.web.routes import Arguments, NoArguments

MAX_REQUEST = 5 << 20
MAX_REPLY = 8 << 20
MAX_FRAMES = 2  # of a request: the empty one of a REQ socket and the JSON
MAX_SUBSCRIPTION = 512

EVENTS = ("job", "file")
EVENT_KEYS = (
    "event",
    "id",
    "owner",
    "workflowName",
    "workflowOwner",
    "status",
    "stage",
    "time",
    "filePath",
    "exitStatus",
)


@dataclass(frozen=True)
class Operation:
    """One thing that can be asked for.

    :param summary: one line for the reference page. :param route: method and path of the REST route that does the
        same. :param by_owner: the route to use instead when an owner is given.
    :param finds_owner: whether ``owner``, which that route needs, is looked up when it is not given.
    """

    summary: str
    route: tuple[str, str] | None = None
    by_owner: tuple[str, str] | None = None
    finds_owner: bool = False


_JOB = "/processingJobsByOwner/{owner}/{jobId}"
_START = "/processingJobsByWorkflow/{owner}/{workflow}/startProcessingJob"

OPERATIONS: Mapping[str, Operation] = {
    "ping": Operation("Tell service, station and time; takes a key but no session."),
    "login": Operation("Begin a session of the key's account and return its id."),
    "logout": Operation("End the session."),
    "submit": Operation("Start a job of a workflow.", ("POST", _START)),
    "submitMany": Operation(
        "Start up to 500 jobs of a workflow; each answer is a job or an error.", ("POST", f"{_START}s")
    ),
    "status": Operation(
        "Get a job with its processes, perhaps after waiting for its end.",
        ("GET", "/processingJobsById/{jobId}"),
        ("GET", _JOB),
    ),
    "list": Operation(
        "List jobs, oldest first; skip and limit count from the newest.",
        ("GET", "/processingJobs"),
        ("GET", "/processingJobsByOwner/{owner}"),
    ),
    "abort": Operation("Stop a job.", ("POST", f"{_JOB}/stopProcessingJob"), finds_owner=True),
    "resume": Operation(
        "Let a failed or aborted job go on.", ("POST", f"{_JOB}/resumeProcessingJob"), finds_owner=True
    ),
    "restart": Operation(
        "Run an ended job anew from one of its stages.", ("POST", f"{_JOB}/restartProcessingJob"), finds_owner=True
    ),
}


class Envelope(Arguments):
    """What every request has beside the arguments of its operation."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str | int | None = Field(default=None, description="Any text or number; the answer has the same.")
    op: str = Field(max_length=40, description="The operation.")
    session: str | None = Field(
        default=None, max_length=200, repr=False, description="Id of a session of the key's account."
    )


@dataclass(frozen=True)
class Wish:
    """A request that was understood.

    :param id: to be repeated in the answer. :param arguments: of the operation, not checked yet.
    """

    op: str
    id: str | int | None = None
    session: str | None = field(default=None, repr=False)
    arguments: Mapping[str, Any] = field(default_factory=dict, repr=False)


def understood(text: bytes) -> Wish:
    """Return the request in a frame.

    :raises BadEnvelope: not JSON, not an object, or no known operation; with the request's id as far as it has one.
    """
    try:
        value = parse_json(text, "The request")
    except InvalidRequest as error:
        raise BadEnvelope(error.message) from None
    if not isinstance(value, dict):
        raise BadEnvelope(f"The request is {shorten(value)}, not a JSON object.")
    given = value.get("id")
    known = given if isinstance(given, str | int) and not isinstance(given, bool) and len(str(given)) <= 200 else None
    try:
        envelope = Envelope.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        what = ".".join(str(part) for part in first["loc"])
        raise BadEnvelope(f"Key {what!r} of the request: {first['msg'].lower()}.", known) from None
    if envelope.op not in OPERATIONS:
        raise BadEnvelope(f"Operation {shorten(envelope.op)} is unknown; known: {', '.join(OPERATIONS)}.", known)
    if known is None and given is not None:
        raise BadEnvelope("Key 'id' of the request is longer than 200 characters.")
    return Wish(envelope.op, known, envelope.session, envelope.__pydantic_extra__ or {})


class BadEnvelope(InvalidRequest):
    """A request nobody can carry out.

    :param id: of the request, where it has one.
    """

    def __init__(self, message: str, id: str | int | None = None) -> None:
        super().__init__(message)
        self.id = id

    def to_wire(self, request_id: str | None = None) -> dict[str, Any]:
        """Go over the wire as the published class."""
        return super().to_wire(request_id) | {"errorClass": InvalidRequest.__name__}


def topic(event: Mapping[str, Any]) -> str:
    """Return the topic of an event: ``<event>.<owner>.<id>``."""
    return f"{prefix(str(event['event']), str(event['owner']))}{event['id']}"


def prefix(event: str, owner: str) -> str:
    """Return what the topics of an owner begin with; a dot in the name would make it look like another owner's."""
    return f"{event}.{quote(owner, safe='@').replace('.', '%2E')}."


def public(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return what subscribers see of an event: which job, which file, what became of it; no values and no output."""
    return {key: event[key] for key in EVENT_KEYS if event.get(key) is not None}


OWN_ARGUMENTS: Mapping[str, type[Arguments]] = {"ping": NoArguments, "login": LoginArguments, "logout": NoArguments}
"""The argument models of operations without a REST route."""
