"""What the facts about a file amount to: a word for programs and a sentence for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dm.common import statuses, timestamps
from dm.common.paths import display
from dm.station.acquisition.ledger import Ledger
from dm.station.acquisition.rows import State
from dm.station.acquisition.selection import Selection
from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.whereabouts import Candidate, Record

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office

_FILTERS = {
    "experimentFilePath": ("only", "takes a single other file"),
    "excludeFileExtensions": ("exclude_file_extensions", "leaves out its extension"),
    "includeFileExtensions": ("include_file_extensions", "does not name its extension"),
    "skipFilePathPattern": ("skip_file_path_pattern", "matches it"),
    "filePathPattern": ("file_path_pattern", "does not match it"),
}
_KINDS = {
    "link": "a symbolic link; links are not followed",
    "directory": "a directory; ask for a file in it",
    "other": "no regular file but a fifo, socket or device",
}


@dataclass
class Case:
    """One file under question.

    :param source: what lies at the source: ``exists``, ``kind``, ``size`` ..., or ``problem``. :param record: ledger.
    """

    office: Office
    candidate: Candidate
    record: Record | None
    source: Record
    storage: Record
    records: Record = field(default_factory=dict)

    @property
    def live(self) -> Any:
        """The running task, if it runs."""
        live = self.office.live.get(self.candidate.id)
        return live if live is not None and live.document.get("open") else None

    @property
    def status(self) -> str:
        """The status of the task; of one that should run and does not, why."""
        live, document = self.live, self.candidate.document
        status = str(live.status if live is not None else document["status"])
        if live is None and status not in statuses.INACTIVE:
            return str(document.get("errorMessage") or status)
        return status


def judge(case: Case) -> tuple[str, str]:
    """Return the reason why a file is where it is: a word, and a sentence."""
    record = case.record
    if record is None:
        return _without_row(case)
    judges: dict[str, Callable[[Case, Record], tuple[str, str]]] = {
        "seen": _settling,
        "settling": _settling,
        "ready": _ready,
        "moving": _moving,
        "stored": _stored,
        "done": _done,
        "failed": _failed,
        "skipped": _skipped,
        "vanished": _vanished,
    }
    return judges[record["state"]](case, record)


def _settling(case: Case, record: Record) -> tuple[str, str]:
    why = "; ".join(record.get("notes") or [])
    since = _ago((record.get("times") or {}).get("seen"))
    return "beingWritten", f"The file was seen {since} and does not count as whole yet: {why or 'it still changes'}."


def _ready(case: Case, record: Record) -> tuple[str, str]:
    task, pipeline = case.live, case.office.pipeline
    if task is None:
        return "interrupted", f"The {case.candidate.called} does not run; the file waits in its ledger for a restart."
    if pipeline.paused:
        return "paused", f"The file waits: {pipeline.paused}"
    retry = record.get("nextRetryTime")
    if record.get("lastError") and retry:
        return "transferProblem", (
            f"The last try ({record.get('attempts')} so far) failed: {_bare(record['lastError'])}. "
            f"It is tried again {_when(float(retry))}."
        )
    with pipeline.condition:
        before = next((n for n, item in enumerate(task.queue) if item.path == case.candidate.path), len(task.queue))
    trouble = f" At the moment: {_bare(task.trouble)}." if task.trouble else ""
    return "waiting", f"The file is whole and waits for its turn; {before} files are before it.{trouble}"


def _moving(case: Case, record: Record) -> tuple[str, str]:
    task = case.live
    phase = ""
    if task is not None:
        with case.office.pipeline.condition:
            for batch in task.batches.values():
                if any(load.item.path == case.candidate.path for load in batch.loads):
                    phase = batch.phase
    doing = {
        "move": "is being moved to storage",
        "result": "has arrived at storage, which is verifying it",
        "plugins": "is in storage and on its way through the plugins",
    }.get(phase, "is on its way to storage")
    trouble = f" At the moment: {_bare(task.trouble)}." if task is not None and task.trouble else ""
    return "moving", f"The file {doing}.{trouble}"


def _stored(case: Case, record: Record) -> tuple[str, str]:
    names = ", ".join(record.get("pendingPlugins") or []) or "its plugins"
    error = f" The last try failed: {_bare(record['lastError'])}." if record.get("lastError") else ""
    return "pluginWaiting", f"The file is in storage, verified; what remains is: {names}.{error}"


def _done(case: Case, record: Record) -> tuple[str, str]:
    called, storage = case.candidate.called, case.storage
    place = f"{case.candidate.spec.root}/{display(case.candidate.target)}"
    when = _at((record.get("times") or {}).get("done") or record.get("finishTime"))
    digest = ", ".join(f"{name} {value}" for name, value in sorted((record.get("digests") or {}).items()))
    brought = f"{called} brought it{when} as version {record.get('version', 1)}" + (f" ({digest})" if digest else "")
    if storage.get("exists") is False:
        return "goneFromStorage", f"The {brought}, but storage has no file {place!r} any more; somebody removed it."
    if storage.get("exists") and storage.get("readyForProcessing") is False and not case.candidate.spec.skip_transfer:
        return "changedInStorage", f"The {brought}, but the file {place!r} in storage was changed since by other means."
    version = storage.get("version")
    newer = bool(version) and version != record.get("version")
    later = f" Storage has version {version} by now, which came later." if newer else ""
    changed = _changed(case, record)
    if changed:
        return "changedSince", f"The {brought}; since then the source file has changed. {changed}"
    for name, found in case.records.items():
        if found == {}:
            return "notRecorded", (
                f"The {brought} to {place!r}, but {name} has no record of it; have it made with "
                f"dm-reprocess-daq-files --id {case.candidate.id} --plugins {name}."
            )
    if case.candidate.spec.skip_catalog:
        return (
            "done",
            f"It is there: {place!r}; the {brought}. It is not cataloged, as skipCatalog was set.{later}",
        )
    unknown = f" Storage could not be asked: {_bare(storage['problem'])}." if storage.get("problem") else ""
    return "done", f"It is there: {place!r}; the {brought}.{later}{unknown}"


def _failed(case: Case, record: Record) -> tuple[str, str]:
    error, id = _bare(record.get("lastError") or "no reason is recorded"), case.candidate.id
    if record.get("pendingPlugins"):
        return "pluginFailed", (
            f"The file is in storage, but a plugin failed: {error}. Try again with dm-retry-daq-files --id {id}."
        )
    tries = record.get("attempts") or 1
    said = f"after {tries} tries" if tries != 1 else "at the first try"
    reason = "refusedByStorage" if "already exists" in error or "storage" in error.lower() else "failed"
    return reason, f"It failed for good {said}: {error}. When that is mended: dm-retry-daq-files --id {id}."


def _skipped(case: Case, record: Record) -> tuple[str, str]:
    error = _bare(record.get("lastError") or "no reason is recorded")
    if record.get("skippedBy"):
        return "skippedByPerson", (
            f"{error}. To have it moved after all: dm-retry-daq-files --id {case.candidate.id} --state skipped."
        )
    return "skipped", f"It was not taken. {error}."


def _vanished(case: Case, record: Record) -> tuple[str, str]:
    again = " It is there again now." if case.source.get("exists") else ""
    return "vanished", f"The file disappeared from the source before its turn; perhaps it was renamed.{again}"


def _without_row(case: Case) -> tuple[str, str]:  # noqa: PLR0911 - a case list
    """Judge a file the ledger knows nothing of."""
    candidate, source, live = case.candidate, case.source, case.live
    shown, called = repr(display(candidate.path)), candidate.called
    if refusal := _refusal(case):
        return refusal
    known = _remembered(case)
    if known is State.PRIOR:
        other = _bringer(case)
        return "takenBefore", f"It was not taken again, as {other} had brought it in this size and time already."
    if known is State.BASELINE:
        return "before", (
            f"It lay there when the {called} began, which takes only new files; start it with processExistingFiles, or "
            "upload the directory."
        )
    if source.get("problem"):
        return source["reason"], f"{_bare(source['problem'])}."
    if source.get("exists") is False:
        return "missing", f"There is no file {shown} in {display(candidate.place.source.root)!r}."
    if source.get("kind") not in (None, "file"):
        return "notAFile", f"{shown} is {_KINDS[source['kind']]}."
    if candidate.document.get("open") and live is None:
        return "interrupted", f"The {called} does not run at the moment: {case.status}."
    if live is not None:
        trouble = f" At the moment: {_bare(live.trouble)}." if live.trouble else ""
        return "notSeenYet", (
            f"The {called} runs and would take the file, but has not seen it yet; all of the directory is looked "
            f"through every {case.office.parts.settings.scan_seconds:g} s.{trouble}"
        )
    ended = _at(candidate.document.get("endTime"))
    return "ended", f"The {called} ended{ended} without having seen the file; upload its directory to get it."


def _refusal(case: Case) -> tuple[str, str] | None:
    """Say which key of the DAQ or upload keeps the file out by its name, if one does."""
    read, path = case.candidate.spec, case.candidate.path
    if read.selection().takes(path):
        return None
    shown, called = repr(display(path)), case.candidate.called
    for key, (argument, does) in _FILTERS.items():
        value: Any = read.only if argument == "only" else getattr(read, argument)
        if value and not Selection.parse(**{argument: value}, process_hidden_files=True).takes(path):
            text = display(value) if isinstance(value, bytes) else value
            return "filtered", f"The {called} leaves {shown} out: its {key} {text!r} {does}."
    return "hidden", (
        f"The {called} leaves {shown} out: a name in its path begins with a dot, and processHiddenFiles is not set."
    )


def _remembered(case: Case) -> State | None:
    """Return what the memory of the task, or of one like it, has of a file without a row."""
    size, mtime_ns = case.source.get("size"), case.source.get("mtimeNs")
    live = case.live
    if live is not None:
        state: State | None = live.ledger.state(case.candidate.path)
        return state if state in (State.PRIOR, State.BASELINE) else None
    if size is None or mtime_ns is None:
        return None
    memory = Ledger(case.office.store, case.candidate.id)
    memory.load_baseline()
    return memory.knows(case.candidate.path, FileStamp(size, mtime_ns))


def _bringer(case: Case) -> str:
    """Return the earlier DAQ or upload that brought a file."""
    from dm.station.acquisition.rows import row_id

    for document in case.office.store.tasks_at(str(case.candidate.document["place"])):
        row = case.office.store.row(row_id(str(document["_id"]), case.candidate.path))
        if row is not None and str(row["slot"]).endswith((":done", ":stored")):
            kind = "DAQ" if document["kind"] == "daq" else "upload"
            return f"{kind} {document['_id']}" + _at((row.get("times") or {}).get("done"))
    return "an earlier DAQ or upload"


def _changed(case: Case, record: Record) -> str:
    """Say what comes of a source file that is no longer what was taken; empty when it is, or cannot be seen."""
    source = case.source
    if not source.get("exists") or source.get("kind") != "file" or "size" not in source:
        return ""
    if (source["size"], source["mtimeNs"]) == (record.get("size"), record.get("mtimeNs")):
        return ""
    if case.live is not None and not case.live.document.get("reopened"):
        return "The DAQ takes it again as soon as it is whole."
    return f"The {case.candidate.called} has ended; upload its directory to get the new version."


def _bare(text: str) -> str:
    return str(text).strip().rstrip(".")


def _at(moment: Any) -> str:
    return f" at {timestamps.text(float(moment))}" if moment else ""


def _ago(moment: Any) -> str:
    return f"{max(0.0, time.time() - float(moment)):.0f} s ago" if moment else "a moment ago"


def _when(moment: float) -> str:
    left = moment - time.time()
    return f"in {left:.0f} s" if left >= 1 else "in a moment"
