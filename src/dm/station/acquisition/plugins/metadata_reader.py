"""Reads metadata in a process of its own: the libraries that parse data files can crash or hang on damaged ones.

Run as a program it answers one JSON line per JSON line: ``{"path": ...}`` gives the metadata. :class:`Reader` is the
other end: it starts the program, gives each file a time limit, and starts it afresh when a file has killed it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from dm.station.acquisition.helper import Helper, answer_forever
from dm.station.acquisition.plugins import metadata_kind


def extract(path: str) -> dict[str, Any]:
    """Return the metadata inside one file; at least ``mimeType``. Damaged files may crash or hang the process.

    :param path: text by ``os.fsdecode``.
    :returns: flat, JSON-able, bounded; ``metadataError`` is a sentence when the file could not be understood.
    """
    try:
        descriptor = metadata_kind.opened(path)
    except ValueError:
        return {"metadataError": "Not a regular file."}
    try:
        kind = metadata_kind.kind_of(descriptor, path)
        # Opened once, by bytes-safe name; the libraries then get a name all of them can take.
        return {"mimeType": kind} | _inside(kind, f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _inside(kind: str, opened: str) -> dict[str, Any]:
    from dm.station.acquisition.plugins import metadata_hdf5, metadata_spec

    try:
        if kind == metadata_kind.HDF5:
            return metadata_hdf5.extract(opened)
        if kind == metadata_kind.SPEC:
            return metadata_spec.extract(opened)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return {"metadataError": f"The file cannot be read: {reason}."}
    return {}


class Reader:
    """A reading process, started when first needed. Safe to use from several threads; they take turns.

    :param seconds: time limit per file.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._helper = Helper(__name__)

    def extract(self, path: str) -> dict[str, Any]:
        """Return the metadata of one file (see :func:`extract`); a file that kills the process gets a note instead.

        The process is only asked about files that say something inside: asking costs more than moving a small file.

        :raises ProcessingError: the process cannot be started at all.
        """
        with suppress(OSError, ValueError):  # the process then says what is wrong
            descriptor = metadata_kind.opened(path)
            try:
                kind = metadata_kind.kind_of(descriptor, path)
            finally:
                os.close(descriptor)
            if kind not in (metadata_kind.HDF5, metadata_kind.SPEC):
                return {"mimeType": kind}
        try:
            found = self._helper.ask({"path": path}, self.seconds)
        except TimeoutError:
            return {"metadataError": f"The file could not be read within {self.seconds:g} s."}
        except (OSError, ValueError):
            return {"metadataError": "The file makes the reading library crash; it is probably damaged."}
        return {"metadataError": f"The file cannot be read: {found['error']}."} if set(found) == {"error"} else found

    def close(self) -> None:
        """End the process."""
        self._helper.close()


if __name__ == "__main__":
    answer_forever(lambda question: extract(question["path"]))
