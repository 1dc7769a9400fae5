"""Local source files themselves: digesting them where they are (``skipTransfer``), and removing them after proof."""

from __future__ import annotations

import os
from typing import Any

from dm.common.digests import VERIFICATION, digest_stream
from dm.common.errors import DmException, ObjectNotFound
from dm.common.paths import display, opened_file, opened_parent
from dm.station.acquisition.batch import Load
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import FileOutcome, FileStamp

_ALGORITHMS = (VERIFICATION, "md5")


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def in_place(task: Task, load: Load) -> FileOutcome:
    """Look at a file that is not moved; the outcome is like a transport's. ``skipChecksum`` leaves out the digests."""
    outcome = FileOutcome(load.staged_name)
    try:
        with opened_file(task.source.root, load.item.path) as descriptor:
            before = os.fstat(descriptor)
            outcome.before, outcome.mode = _stamp(before), before.st_mode & 0o7777
            outcome.size = before.st_size
            if not task.spec.skip_checksum:
                with open(descriptor, "rb", buffering=0, closefd=False) as stream:
                    outcome.size, outcome.digests = digest_stream(stream, _ALGORITHMS)
                outcome.md5 = outcome.digests.pop("md5")
            outcome.after = _stamp(os.fstat(descriptor))
    except ObjectNotFound as error:
        outcome.error, outcome.vanished = error.message, True
    except (DmException, OSError) as error:
        outcome.error = f"File {display(load.item.path)!r} cannot be read: {error}."
        outcome.transient = isinstance(error, OSError)
    return outcome


def verdict_in_place(load: Load) -> dict[str, Any]:
    """Return what storage would have said of a file that lies there already."""
    outcome = load.outcome
    assert outcome is not None
    return {
        "status": "unchanged",
        "size": outcome.size,
        "digests": outcome.digests,
        "md5Sum": outcome.md5 or None,
        "version": 1,
    }


def remove_source(task: Task, load: Load) -> str:  # noqa: PLR0911
    """Remove a source file, if it is still what storage verified.

    :returns: why it was left, or empty text.
    """
    item = load.item
    proof = (load.result or {}).get("digests", {}).get(VERIFICATION)
    if not proof:
        return "Source file kept: storage named no digest to compare."
    if load.outcome is not None and load.outcome.digests.get(VERIFICATION) not in (proof, None):
        return "Source file kept: its digest is not the stored one."
    if not task.source.is_local:
        before = load.outcome.before if load.outcome else FileStamp(item.size, item.mtime_ns)
        assert before is not None
        removed = task.transport.remove(task.source, item.path, before)
        return "" if removed else "Source file kept: it could not be removed, or has changed."
    try:
        if load.outcome is None:  # after a restart nothing is known of the bytes we read: read them again
            with opened_file(task.source.root, item.path) as descriptor, open(descriptor, "rb", closefd=False) as file:
                _size, digests = digest_stream(file, (VERIFICATION,))
            if digests[VERIFICATION] != proof:
                return "Source file kept: its digest is not the stored one."
        with opened_parent(task.source.root, item.path) as (parent, name):
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns):
                return "Source file kept: it has changed since it was stored."
            os.unlink(name, dir_fd=parent)
    except ObjectNotFound:
        return ""
    except (DmException, OSError) as error:
        return f"Source file kept: {error}."
    return ""
