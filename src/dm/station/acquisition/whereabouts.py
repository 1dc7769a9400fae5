"""Which DAQ or upload a file belongs to, for people who know only its name here or there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dm.common.errors import DmException, InvalidArgument
from dm.common.paths import decode, display, encode, relative
from dm.station.acquisition import sources, spec
from dm.station.acquisition.listing import one_file
from dm.station.acquisition.sources import Place
from dm.station.acquisition.store import Document
from dm.station.acquisition.task import DAQ, UPLOAD
from dm.station.acquisition.transports.base import Source

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

_CONSIDERED = 50  # tasks that may have a file and are asked for it
_SEARCHED = 2000  # DAQs and uploads of the past that are looked through, newest first

Sees = Callable[[Document], bool]
Record = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which file is meant: ``id`` and ``path``, or ``experiment_name`` and ``path``, or ``source_path``.

    :param id: of a DAQ or upload; ``path`` is then relative to its data directory.
    :param experiment_name: ``path`` is then the file's path in the experiment, below ``root``.
    :param source_path: where the file lies, written as data directories are (6.2): an absolute path, ``@host:/path`` or
        a URL. With ``experiment_name``, only DAQs and uploads into that experiment count.
    :raises InvalidArgument: none of the three, or a path that cannot be.
    """

    id: str = ""
    path: str = ""
    experiment_name: str = ""
    source_path: str = ""
    root: str = "data"

    def __post_init__(self) -> None:
        if self.source_path:
            enough = not self.id and not self.path
        else:
            enough = bool(self.path) and bool(self.id) != bool(self.experiment_name)
        if not enough:
            raise InvalidArgument(
                "Say which file: the id of a DAQ or upload and a path relative to its data directory, or an experiment "
                "and the file's path in it, or the path of the file at its source."
            )
        if self.root not in ("data", "analysis"):
            raise InvalidArgument(f"Root {self.root[:80]!r} is unknown; choose data or analysis.")
        if self.path:
            relative(self.path)


@dataclass(frozen=True)
class Candidate:
    """A DAQ or upload that a file may belong to.

    :param path: of the file, relative to the data directory. :param place: the data directory.
    """

    document: Document
    experiment: Record
    spec: spec.TaskSpec
    place: Place
    path: bytes

    @property
    def id(self) -> str:
        """Of the DAQ or upload."""
        return str(self.document["_id"])

    @property
    def kind(self) -> str:
        """``daq`` or ``upload``."""
        return str(self.document["kind"])

    @property
    def called(self) -> str:
        """What to call it in a sentence."""
        return f"{'DAQ' if self.kind == DAQ else 'upload'} {self.id}"

    @property
    def target(self) -> bytes:
        """The file's path in the experiment, below its root."""
        below = self.spec.destination
        return below + b"/" + self.path if below else self.path


def responsible(office: Office, wanted: Wanted, sees: Sees) -> tuple[Candidate, Record | None] | None:
    """Return the DAQ or upload that a file belongs to, and what its ledger says of it; ``None``: none takes it.

    :param sees: whether the caller may see a task. :raises InvalidArgument: the source path cannot be read.
    """
    return _best(office, list(itertools.islice(_candidates(office, wanted, sees), _CONSIDERED)))


def _candidates(office: Office, wanted: Wanted, sees: Sees) -> Iterator[Candidate]:
    """Yield the DAQs and uploads a file may belong to: running ones first, then the newest first."""
    if wanted.id:
        document = office.store.task(wanted.id)
        if document is not None and not document.get("pruned") and sees(document):
            found = _understood(office, document, lambda *_: relative(wanted.path))
            yield from [found] if found else []
        return
    source = _source(office, wanted.source_path) if wanted.source_path else None

    def fits(document: Document, place: Place, read: spec.TaskSpec) -> bytes | None:
        if source is not None:
            return _below(source, place.source)
        if read.root != wanted.root:
            return None
        path, below = relative(wanted.path), read.destination
        if not below:
            return path
        return path[len(below) + 1 :] if path.startswith(below + b"/") and len(path) > len(below) + 1 else None

    for document in _documents(office):
        if wanted.experiment_name and json.loads(document["experiment"])["name"] != wanted.experiment_name:
            continue
        found = _understood(office, document, fits)
        if found is not None and sees(document):
            yield found


def _best(office: Office, found: list[Candidate]) -> tuple[Candidate, Record | None] | None:
    """Return the candidate that knows most of its file, and what its ledger says."""
    for one in found:
        record = record_of(office, one)
        if record is not None:
            return one, record
    for one in found:
        if one.id in office.live and one.spec.selection().takes(one.path):
            return one, None
    return (found[0], None) if found else None


def record_of(office: Office, candidate: Candidate) -> Record | None:
    """Return what is known of the file at this moment, as in a list of files."""
    return one_file(office, candidate.id, candidate.path)


def _documents(office: Office) -> Iterator[Document]:
    running = sorted(office.live.values(), key=lambda task: str(task.document["startTime"]), reverse=True)
    seen = {task.id for task in running}
    yield from (task.document for task in running)
    past = list(itertools.islice(office.store.list_tasks(DAQ), _SEARCHED))
    past += itertools.islice(office.store.list_tasks(UPLOAD), _SEARCHED)
    past.sort(key=lambda document: float(document["startTime"]), reverse=True)
    yield from (document for document in past if str(document["_id"]) not in seen and not document.get("pruned"))


def _understood(office: Office, document: Document, fits: Callable[..., bytes | None]) -> Candidate | None:
    """Return a task as a candidate, or ``None`` when the file cannot be one of its own."""
    request, experiment = json.loads(document["request"]), json.loads(document["experiment"])
    try:
        read, _echo = spec.parse(request["taskInfo"])
        place = sources.parse(request["dataDirectory"], office.parts.settings, experiment, read.root)
    except DmException:  # it was possible with the settings of its time
        return None
    path = fits(document, place, read)
    return Candidate(document, experiment, read, place, path) if path else None


def _source(office: Office, text: str) -> Source:
    """Return where a file lies, its path as the root."""
    experiment: Record = {"storageDirectory": "/"}
    if text.startswith("/"):
        return Source(text, b"/" + relative(text.strip("/")))
    found = sources.parse(text, office.parts.settings, experiment, "data").source
    relative(decode(found.root).strip("/"))
    return found


def _below(file: Source, directory: Source) -> bytes | None:
    """Return the path of a file relative to a directory, if it lies below it."""
    if (file.host, file.port) != (directory.host, directory.port):
        return None
    root = directory.root.rstrip(b"/") + b"/"
    return file.root[len(root) :] if file.root.startswith(root) else None


def described(wanted: Wanted) -> str:
    """Return which file was asked for, for a sentence."""
    return repr(display(encode(wanted.source_path or wanted.path)))
