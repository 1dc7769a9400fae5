"""Local source files themselves: digesting them where they are (``skipTransfer``), and removing them after proof."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dm.common.digests import VERIFICATION, digest_stream
from dm.common.errors import DmException, ObjectNotFound
from dm.common.paths import display, encode, opened_file
from dm.station.acquisition.batch import Load
from dm.station.acquisition.info import source_url
from dm.station.acquisition.removal import Fate, Proof, remove
from dm.station.acquisition.site import StorageSite
from dm.station.acquisition.task import Task
from dm.station.acquisition.transports.base import FileOutcome, FileStamp

_AUDIT = logging.getLogger("dm.audit")


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp.of(status)


def in_place(task: Task, load: Load, digest: str = VERIFICATION) -> FileOutcome:
    """Look at a file that is not moved; the outcome is like a transport's. ``skipChecksum`` leaves out the digests.

    :param digest: wanted beside the usual one.
    """
    outcome = FileOutcome(load.staged_name)
    try:
        with opened_file(task.source.root, load.item.path) as descriptor:
            before = os.fstat(descriptor)
            outcome.before, outcome.mode = _stamp(before), before.st_mode & 0o7777
            outcome.size = before.st_size
            if not task.spec.skip_checksum:
                with open(descriptor, "rb", buffering=0, closefd=False) as stream:
                    outcome.size, outcome.digests = digest_stream(stream, {VERIFICATION, digest, "md5"})
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


def remove_sources(task: Task, loads: Sequence[Load], site: StorageSite) -> dict[bytes, str]:
    """Remove the sources of files that are done, if storage, asked now, has them as it verified them.

    :returns: path -> why it was kept, for those that were. Nothing is raised: what is kept can be removed later.
    """
    kept: dict[bytes, str] = {}
    try:
        targets = [task.target(load.item.path) for load in loads]
        checked = site.check_files(int(task.experiment["id"]), task.spec.root, targets)
    except DmException as error:
        return {load.item.path: f"Source file kept: storage cannot be asked: {error.message}" for load in loads}
    for load, target in zip(loads, targets, strict=True):
        answer = checked.get(target) or {"reason": "Storage said nothing of it."}
        why = _remove_source(task, load, answer) if answer.get("verified") else str(answer.get("reason"))
        if why:
            kept[load.item.path] = f"Source file kept: {why.rstrip('.')}."
    return kept


def _remove_source(task: Task, load: Load, answer: Mapping[str, Any]) -> str:
    """Remove one source file; return why it was kept, or empty text."""
    item, outcome, digests = load.item, load.outcome, dict(answer["digests"])
    read = outcome.digests if outcome is not None else {}
    same = any(name in read for name in digests) and all(
        read.get(name, value) == value for name, value in digests.items()
    )
    if task.source.is_local:
        seen = outcome.after if outcome is not None and same else None
        stored = os.path.join(encode(task.root_directory), task.target(item.path))
        fate, why = remove(task.source.root, item.path, Proof(int(answer["fileSize"]), digests, seen, stored))
    elif outcome is None or not same or outcome.after is None:
        # its bytes cannot be read again here, and nobody remembers in which shape they were read
        fate, why = Fate.KEPT, "the service was restarted after it was read on another machine"
    elif task.transport.remove(task.source, item.path, outcome.after):
        fate, why = Fate.REMOVED, ""
    else:
        fate, why = Fate.KEPT, "it could not be removed, or has changed"
    if fate is Fate.REMOVED:
        where = source_url(task.source, item.path)
        audit(where, answer, kind=task.kind, task=task.id, user=str(task.document["owner"]))
    return why


def audit(url: str, proof: Mapping[str, Any], *, kind: str, task: str, user: str) -> None:
    """Write who removed which source file of which DAQ or upload, and what storage has of it."""
    digests = ",".join(f"{name}:{value}" for name, value in sorted(dict(proof["digests"]).items()))
    _AUDIT.info(
        "source file removed kind=%s id=%s user=%s file=%s size=%s version=%s digests=%s",
        kind,
        task,
        user,
        ascii(url),
        proof["fileSize"],
        proof["version"],
        digests,
    )
