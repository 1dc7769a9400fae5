"""What people decide about files of a DAQ or upload: try again, leave out, process again.

Each function here changes the ledger of a task that runs (a finished one is reopened for it, see
:mod:`dm.station.acquisition.reopening`), durably and a few thousand files at a time, and wakes the task. A file that
storage has already is marked ``stored`` with the plugins it still needs; :func:`feed` then brings such files to the
pipeline, also after a restart.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dm.common.errors import InvalidArgument, InvalidObjectState
from dm.common.paths import display
from dm.station.acquisition import batch as phases
from dm.station.acquisition.batch import Batch
from dm.station.acquisition.completion import look
from dm.station.acquisition.listing import Query
from dm.station.acquisition.plugins.base import Order, still_needed
from dm.station.acquisition.resume import load_of
from dm.station.acquisition.rows import Item, State, item_of, path_key, row_id
from dm.station.acquisition.store import Document
from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.watch.scan import kind_of

if TYPE_CHECKING:
    from dm.station.acquisition.pipeline import Pipeline
    from dm.station.acquisition.task import Task

_CHUNK = 2000
_AHEAD = 4  # batches of stored files given to the pipeline beyond those it works on
_NO_END = 1 << 31
_DECLINED_MOST = 100_000


@dataclass(frozen=True)
class Choice:
    """Which files of a task a person means, and who that is.

    :param path: only this one, relative to the data directory. :param pattern: see :class:`~.listing.Query`.
    :param state: only files in this state, or empty for those the decision is usually about.
    """

    who: str
    path: bytes | None = None
    pattern: str = ""
    state: str = ""

    def fits(self, path: bytes) -> bool:
        """Whether a file is meant, by its path."""
        if self.path is not None and path != self.path:
            return False
        return not self.pattern or Query(pattern=self.pattern).names(path.decode("utf-8", "surrogateescape"))


def retry(task: Task, pipeline: Pipeline, choice: Choice) -> int:
    """Let failed files (or, with state ``skipped``, files a person or a stop left out) be tried again.

    Where storage has the file already only the plugins run.

    :returns: how many. :raises ServiceUnavailable: the database is down.
    """
    state = choice.state or "failed"
    if state not in ("failed", "skipped"):
        raise InvalidArgument(f"Files in state {state!r} cannot be tried again; choose failed or skipped.")

    def again(rows: list[Document]) -> int:
        move: list[Item] = []
        outcomes: list[tuple[Item, State, Document]] = []
        for row in rows:
            item = item_of(row)
            if path_key(item.path) in task.busy or (state == "skipped" and not _movable(task, row)):
                continue
            item.attempts = 0
            item.happened("retried", f"{choice.who} had it tried again.")
            fields: Document = {"lastError": "", "attempts": 0, "skippedBy": None}
            if row.get("pendingPlugins"):
                fields.update(pendingPlugins=_all(task), times=_times(row))
                outcomes.append((item, State.STORED, fields))
            else:
                move.append(item)
                outcomes.append((item, State.READY, fields))
        task.ledger.finish(outcomes)
        pipeline.add(task, move)
        task.unfed, task.feed_at = True, 0.0
        if state == "skipped":
            _remember_declined(task, task.declined - {path_key(item.path) for item, _state, _fields in outcomes})
        return len(outcomes)

    return _each(task, state, choice, again)


def skip(task: Task, pipeline: Pipeline, choice: Choice, reason: str) -> int:
    """Leave files out: failed ones, those that wait for their turn, and - named by their path - one that is still
    being written or not there yet. They count as skipped, and stay so when they change.

    :param reason: why, for the ledger. :returns: how many.
    :raises InvalidObjectState: the one named file is in storage already, or on its way there at this moment.
    """
    check_skip(choice)
    sentence = f"Left out by {choice.who}" + (f": {reason}" if reason else ".")

    def leave(items: list[Item]) -> int:
        for item in items:
            item.happened("skipped", sentence)
        fields = {"lastError": sentence, "skippedBy": choice.who, "pendingPlugins": []}
        task.ledger.finish([(item, State.SKIPPED, dict(fields)) for item in items])
        _remember_declined(task, task.declined | {path_key(item.path) for item in items})
        return len(items)

    count = 0
    if choice.state in ("", "ready"):
        count += _skip_waiting(task, pipeline, choice, leave)
    if choice.state in ("", "failed"):
        count += _each(task, "failed", choice, lambda rows: leave([item_of(row) for row in rows]))
    if not count and choice.path is not None and not choice.state:
        count = _skip_unwritten(task, choice.path, leave)
    task.wake.set()
    return count


def check_skip(choice: Choice) -> None:
    """Check a choice for :func:`skip`. :raises InvalidArgument: it names no files, or a state that cannot be."""
    if choice.path is None and not choice.pattern and not choice.state:
        raise InvalidArgument("Say which files to leave out: give a path, a pattern, or a state.")
    if choice.state not in ("", "failed", "ready"):
        raise InvalidArgument(f"Files in state {choice.state!r} cannot be left out; choose failed or ready.")


def check_plugins(names: list[str], known: list[str], kind: str) -> None:
    """Check names for :func:`reprocess`. :raises InvalidArgument: not one of the plugins, or there are none."""
    for name in names:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise InvalidArgument(f"{name[:80]!r} is no plugin of this {kind} (its plugins: {listed}).")
    if not known:
        raise InvalidArgument(f"This {kind} has no plugins; there is nothing to run.")


def _skip_waiting(task: Task, pipeline: Pipeline, choice: Choice, leave: Callable[[list[Item]], int]) -> int:
    """Take files out of the queue, and out of what found no place in it."""
    with pipeline.condition:
        spilled = task.ledger.refill(_NO_END) if task.spilled else []  # before anything changes, as it may fail
        chosen = [item for item in task.queue if choice.fits(item.path)]
        chosen += [entry[2] for entry in task.delayed if choice.fits(entry[2].path)]
        taken = {id(item) for item in chosen}
        if taken:
            task.queue = type(task.queue)(item for item in task.queue if id(item) not in taken)
            task.delayed[:] = sorted(entry for entry in task.delayed if id(entry[2]) not in taken)
        for item in spilled:
            if path_key(item.path) not in task.busy and choice.fits(item.path):
                task.busy.add(path_key(item.path))
                chosen.append(item)
    try:
        count = leave(chosen) if chosen else 0
    except BaseException:
        with pipeline.condition:
            for item in chosen:
                task.push(item)
        raise
    with pipeline.condition:
        for item in chosen:
            task.leave(item)
    return count


def _skip_unwritten(task: Task, path: bytes, leave: Callable[[list[Item]], int]) -> int:
    """Leave out one file that nothing is known of yet."""
    state = task.ledger.state(path)
    if state in (State.DONE, State.STORED) or path_key(path) in task.busy:
        where = "on its way to storage at this moment" if path_key(path) in task.busy else "in storage already"
        raise InvalidObjectState(f"File {display(path)!r} is {where}; it cannot be left out any more.")
    if state is State.SKIPPED:
        return 0
    stamp = look(os.path.join(task.source.root, path))[0] if task.source.is_local else None
    return leave([Item(path, stamp.size if stamp else 0, stamp.mtime_ns if stamp else 0, "")])


def reprocess(task: Task, choice: Choice, names: list[str]) -> int:
    """Run plugins once more for files that are done, without moving them.

    :param names: of the plugins; empty for all the task has. With one that records what others find (the catalog),
        those others run, too. Jobs are started anew: the count of such decisions is part of their idempotency key.
    :returns: how many files. :raises InvalidArgument: the task has no such plugin.
    """
    known = {plugin.name: plugin for plugin in task.plugins}
    check_plugins(names, list(known), task.kind)
    wanted = set(names) or set(known)
    if any(known[name].order == Order.CATALOG for name in wanted):
        wanted |= {name for name, plugin in known.items() if plugin.order == Order.METADATA}
    chosen = [name for name in known if name in wanted]
    if choice.state not in ("", "done"):
        raise InvalidArgument(f"Files in state {choice.state!r} cannot be processed again; only those that are done.")
    run = int(task.document.get("runs") or 0) + 1
    once = {plugin.name for plugin in task.plugins if plugin.once_per_directory}
    of_directory = once & set(chosen) if task.spec.processing_mode == "directory" else set()
    task.set(
        runs=run,
        directoryPlugins=[name for name in task.document.get("directoryPlugins") or [] if name not in of_directory],
    )
    pending = [name for name in chosen if name not in of_directory]

    def again(rows: list[Document]) -> int:
        outcomes: list[tuple[Item, State, Document]] = []
        for row in rows:
            item = item_of(row)
            if path_key(item.path) in task.busy:
                continue
            item.happened("reprocessed", f"{choice.who} had it processed again by {', '.join(chosen)}.")
            fields = {"lastError": "", "pendingPlugins": pending, "run": run, "times": _times(row)}
            outcomes.append((item, State.STORED if pending else State.DONE, fields))
        task.ledger.finish(outcomes)
        task.unfed, task.feed_at = True, 0.0
        return len(outcomes) if pending else 0

    count = _each(task, "done", choice, again)
    return count if pending else task.ledger.count(State.DONE)


def feed(task: Task, pipeline: Pipeline) -> None:
    """Bring stored files that no batch carries to the pipeline, some batches at a time.

    :raises ServiceUnavailable: the database is down; to be called again.
    """
    size = pipeline.settings.batch_files
    with pipeline.condition:
        room = _AHEAD + pipeline.settings.batches_per_task - len(task.batches)
        busy = set(task.busy)
        if room <= 0:
            return
        task.unfed = False  # what is left waiting from now on says so itself
    whole = False
    try:
        whole = _feed(task, pipeline, size, size * room + len(busy), busy)
    finally:
        if not whole:
            task.unfed = True
    task.wake.set()


def _feed(task: Task, pipeline: Pipeline, size: int, limit: int, busy: set[int]) -> bool:
    """Make batches of waiting files; return whether all that wait were looked at.

    :param size: files of a batch. :param limit: files looked at. :param busy: those on their way before that.
    """
    skip = task.feed_skip
    rows = task.store.rows_in(task.id, "stored", skip, limit)
    groups: dict[str, list[Document]] = {}
    for row in rows:
        path = bytes(row["pathBytes"])
        same = task.ledger.knows(path, FileStamp(int(row["size"]), int(row["mtimeNs"])))
        if path_key(path) not in busy and same is State.STORED:  # else it changed, and is on its way again
            groups.setdefault(repr((row.get("pendingPlugins"), row.get("run"), _times(row))), []).append(row)
    for group in groups.values():
        for first in range(0, len(group), size):
            batch = _batch(task, group[first : first + size])
            task.store.add_batch(batch.document())
            pipeline.adopt(batch)
    # the next ones next time, so that files for which a plugin fails again and again hide nobody
    task.feed_skip = skip + len(rows) if len(rows) == limit else 0
    return len(rows) < limit and not skip


def _batch(task: Task, rows: list[Document]) -> Batch:
    """Return a batch of stored files that need the same."""
    names = _all(task)
    batch = Batch.of(task, [])
    batch.names, batch.run = rows[0].get("pendingPlugins") or None, int(rows[0].get("run") or 0)
    for row in rows:
        load = load_of(row)
        load.pending = still_needed(task.plugins, [n for n in row.get("pendingPlugins") or names if n in names])
        load.run = batch.run
        batch.loads.append(load)
    batch.phase, batch.recorded, batch.times = phases.PLUGINS, True, _times(rows[0])
    return batch


def _each(task: Task, state: str, choice: Choice, change: Callable[[list[Document]], int]) -> int:
    """Call ``change`` with the rows that are meant, some at a time; it returns how many left the state."""
    if choice.path is not None:
        row = task.store.row(row_id(task.id, choice.path))
        meant = row is not None and str(row["slot"]).endswith(f":{state}") and choice.fits(choice.path)
        return change([row]) if row is not None and meant else 0
    count = passed = 0
    while rows := task.store.rows_in(task.id, state, passed, _CHUNK):
        chosen = [row for row in rows if choice.fits(bytes(row["pathBytes"]))]
        changed = change(chosen) if chosen else 0
        count += changed
        passed += len(rows) - changed
    return count


def _all(task: Task) -> list[str]:
    return [plugin.name for plugin in task.plugins]


def _times(row: Document) -> dict[str, Any]:
    """Return the times of a row that a later outcome does not tell anew."""
    return {key: value for key, value in (row.get("times") or {}).items() if key in ("moved", "stored")}


def _movable(task: Task, row: Document) -> bool:
    """Whether a skipped file can be taken at all: links and fifos are skipped, too."""
    if task.source.is_local:
        return kind_of(look(os.path.join(task.source.root, bytes(row["pathBytes"])))[1]) == "file"
    return bool(row.get("skippedBy")) or not str(row.get("lastError") or "").startswith("Skipped:")


def _remember_declined(task: Task, declined: set[int]) -> None:
    """Keep, over restarts, which files stay left out even when they change."""
    if declined != task.declined:
        kept = set(sorted(declined)[:_DECLINED_MOST])
        task.set(declined=b"".join(key.to_bytes(8, "little") for key in kept))
        task.declined = kept
