"""The manifest: an append-only account, inside the experiment, of everything that was published into it.

``system/manifest/<year>-<month>.jsonl`` holds one JSON object per line. A batch writes a ``file`` line for each file it
is about to put in place, and, when all is in place and on disk, a ``committed`` line. Without its ``committed`` line a
batch does not count; a batch that was replayed has its lines twice, the last ones hold. A line that a crash cut short
is not JSON and does not count either. A ``deleted`` line says that the file of that root and path was deleted on
purpose, or replaced by a compressed or decompressed one of another name, whose ``file`` line has the same batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dm.common.spent import part
from dm.site.storage.directories import DIRECTORY_MODE, FILE_MODE, Owner, enter, opened_directory

DIRECTORY = b"manifest"


class Manifest:
    """The manifest of one experiment.

    :param storage_directory: of the experiment. :param owner: of manifest files.
    """

    def __init__(self, storage_directory: str, owner: Owner) -> None:
        self._system = f"{storage_directory}/system"
        self._owner = owner

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append lines and return when they are on disk. :raises OSError: they are not, or not all."""
        text = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries).encode("ascii")
        name = f"{datetime.now(UTC):%Y-%m}.jsonl".encode()
        with opened_directory(self._system) as system:
            directory, _ = enter(system, DIRECTORY, self._owner, DIRECTORY_MODE)
            try:
                self._append(directory, name, text)
            finally:
                os.close(directory)

    def _append(self, directory: int, name: bytes, text: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        made = False
        try:
            descriptor = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            descriptor = os.open(name, flags | os.O_CREAT, 0o600, dir_fd=directory)
            made = True
        try:
            if made:
                self._owner.apply(descriptor, FILE_MODE)
                os.fsync(directory)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # a crash cut the last line short; ours must not become part of it
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            with part("fsync"):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lines_of(storage_directory: str, batch_id: str) -> dict[str, dict[str, Any]]:
    """Return the ``file`` lines of a batch, committed or not, by path: its last try counts."""
    found: dict[str, dict[str, Any]] = {}
    mark = json.dumps(batch_id).encode("ascii")
    for file in sorted(Path(storage_directory, "system", "manifest").glob("*.jsonl")):
        with file.open("rb") as stream:
            for line in stream:
                if mark not in line:
                    continue
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if entry.get("event") == "file" and entry.get("batch") == batch_id:
                    found[entry["path"]] = entry
    return found


def read(storage_directory: str) -> Iterator[dict[str, Any]]:
    """Yield the ``file`` entries of committed batches in order of commit, each file of a batch once.

    Entries have ``batch``, ``root``, ``path``, ``size``, ``mtimeNs``, ``digests``, ``version``, ``source``, ``time``
    and, where a file was replaced, ``previous``.
    """
    directory = Path(storage_directory, "system", "manifest")
    pending: dict[str, dict[str, dict[str, Any]]] = {}
    told: dict[str, set[str]] = {}  # committed batches -> their files that failed then
    try:
        files = sorted(directory.glob("*.jsonl"))
    except FileNotFoundError:
        return
    for file in files:
        with file.open("rb") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if entry.get("event") == "file":
                    pending.setdefault(entry["batch"], {})[entry["path"]] = entry
                elif entry.get("event") == "committed":
                    # One replayed after its end, as the database had not heard of it, has its lines twice.
                    before = told.get(entry["batch"])
                    failed = told[entry["batch"]] = set(entry.get("failed", ()))
                    for path, found in pending.pop(entry["batch"], {}).items():
                        if path not in failed and (before is None or path in before):
                            yield found
