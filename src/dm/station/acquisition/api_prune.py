"""The part of the published Python API that removes source files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from dm.common.client import ApiClient, segment
from dm.common.records import DmObject

_PAGE = 200
_SECONDS = 3600.0  # one page: large files are read again


class PrunedFile(DmObject):
    """A source file and its ``fate``: ``removed``, ``removable``, ``gone`` or ``kept`` for a ``reason``."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["path", "fate", "size", "reason"]


class SourcesOfTasks(ApiClient):
    """Source files of DAQs and uploads that have ended."""

    def pruneDaqSource(
        self, id: str, delete: bool = False, keepDays: float = 0, readAgain: bool = False
    ) -> Iterator[PrunedFile]:
        """Remove source files of a finished DAQ, each only with proof; yield what became of each, as it happens.

        The proof: storage, asked now, has the file as it verified it, and the source, read now, has that digest; no
        program has it open for writing. Interrupted, it is simply called again.

        :param delete: without it nothing is removed: files that would be are ``removable``.
        :param keepDays: files stored less than so many days ago stay.
        :param readAgain: storage reads and digests its files again, too.
        :raises InvalidObjectState: it is running, its files were not moved, or lie on another machine.
        """
        return self._pruned("daqs", id, delete, keepDays, readAgain)

    def pruneUploadSource(
        self, id: str, delete: bool = False, keepDays: float = 0, readAgain: bool = False
    ) -> Iterator[PrunedFile]:
        """Remove source files of a finished upload; see :meth:`pruneDaqSource`."""
        return self._pruned("uploads", id, delete, keepDays, readAgain)

    def _pruned(self, plural: str, id: str, delete: bool, keep_days: float, read_again: bool) -> Iterator[PrunedFile]:
        after: int | None = 0
        while after is not None:
            body: dict[str, Any] = {
                "delete": delete,
                "keepDays": keep_days,
                "readAgain": read_again,
                "after": after,
                "limit": _PAGE,
            }
            page = self.client.post(f"/{plural}/{segment(id)}/pruneSource", body, timeout=_SECONDS)
            yield from self._records(PrunedFile, page["files"])
            after = page["next"]
