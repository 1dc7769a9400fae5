"""The part of the published Python API that is about single files of DAQs and uploads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from dm.common.client import ApiClient, segment
from dm.common.errors import CommunicationError, ServiceUnavailable, TaskTimeout
from dm.common.records import DmObject

MAX_WAIT_TIME = 30.0
FILE_PAGE = 1000
PATIENCE = 60.0
"""Seconds that a waiting caller waits for a service which does not answer."""
PAUSE = 1.0
_SOON = 0.2
_LONG = 600.0


class LedgerFile(DmObject):
    """One file of a DAQ or upload, as the ledger has it: state, attempts, last error, digests, times."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = ["path", "state", "size", "attempts", "lastError"]


class FileCounts(DmObject):
    """How many files of a DAQ or upload are in which state."""


class FileExplanation(DmObject):
    """Why a file is where it is, or is not."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "reason",
        "daqId",
        "status",
        "experimentName",
        "root",
        "experimentFilePath",
        "dataDirectory",
        "path",
    ]


class FilesOfTasks(ApiClient):
    """What became of each file of a DAQ or upload, and what a person can have done about it.

    Every method comes twice, for DAQs and for uploads. A ``path`` is relative to the data directory; a ``pattern`` is a
    shell wildcard of that path, or of the file name alone when it has no ``/``.
    """

    # --- lists ----------------------------------------------------------------------------------------------

    def listDaqFiles(  # noqa: PLR0917 - the published order
        self,
        id: str,
        state: str | None = None,
        skip: int = 0,
        limit: int = FILE_PAGE,
        pattern: str | None = None,
        since: float | None = None,
        after: int | None = None,
    ) -> list[LedgerFile]:
        """Return the ledger of a DAQ: one record per file with its state and last error.

        :param state: only ``seen``, ``settling``, ``ready``, ``moving``, ``stored``, ``done``, ``failed``, ``skipped``
            or ``vanished``; without it, all that the ledger has (from ``ready`` on).
        :param skip: leave out so many. :param limit: most files returned.
        :param pattern: only files it matches. :param since: only files found whole or finished since (epoch seconds).
        :param after: ``position`` of the last record of the page before; quick in lists of any length.
        """
        return self._listed("daqs", id, state, skip, limit, pattern, since, after)

    def listUploadFiles(  # noqa: PLR0917 - the published order
        self,
        id: str,
        state: str | None = None,
        skip: int = 0,
        limit: int = FILE_PAGE,
        pattern: str | None = None,
        since: float | None = None,
        after: int | None = None,
    ) -> list[LedgerFile]:
        """Return the ledger of an upload; see :meth:`listDaqFiles`."""
        return self._listed("uploads", id, state, skip, limit, pattern, since, after)

    def countDaqFiles(self, id: str) -> FileCounts:
        """Return exact counts by state; ``countFiles`` is their sum, without ``seen`` and ``settling``."""
        return FileCounts(self.client.get(f"/daqs/{segment(id)}/fileCounts"))

    def countUploadFiles(self, id: str) -> FileCounts:
        """Return exact counts by state of an upload; see :meth:`countDaqFiles`."""
        return FileCounts(self.client.get(f"/uploads/{segment(id)}/fileCounts"))

    def getDaqFile(self, id: str, path: str | bytes) -> LedgerFile:
        """Return one file of a DAQ with its ``timeline``: a list of ``time``, ``timestamp``, ``event`` and ``text``.

        :raises ObjectNotFound: the ledger does not know the file; :meth:`explainFile` says why.
        """
        return LedgerFile(self.client.get(f"/daqs/{segment(id)}/file", path=path))

    def getUploadFile(self, id: str, path: str | bytes) -> LedgerFile:
        """Return one file of an upload with its timeline; see :meth:`getDaqFile`."""
        return LedgerFile(self.client.get(f"/uploads/{segment(id)}/file", path=path))

    def exportDaqFiles(
        self,
        id: str,
        format: str = "csv",
        state: str | None = None,
        pattern: str | None = None,
        since: float | None = None,
    ) -> Iterator[bytes]:
        """Yield the files of a DAQ as a table, in pieces of any size; any number of files.

        :param format: ``csv`` (no cell is a formula) or ``jsonl`` (one JSON object per line, names byte for byte).
        """
        return self._exported("daqs", id, format, state, pattern, since)

    def exportUploadFiles(
        self,
        id: str,
        format: str = "csv",
        state: str | None = None,
        pattern: str | None = None,
        since: float | None = None,
    ) -> Iterator[bytes]:
        """Yield the files of an upload as a table; see :meth:`exportDaqFiles`."""
        return self._exported("uploads", id, format, state, pattern, since)

    # --- decisions ------------------------------------------------------------------------------------------

    def retryDaqFiles(
        self, id: str, path: str | None = None, pattern: str | None = None, state: str | None = None
    ) -> DmObject:
        """Make failed files of a DAQ ready again; a DAQ that has ended goes on for them, without watching.

        Where storage has the file already, only the plugins run.

        :param path: only this one. :param pattern: only those it matches.
        :param state: ``skipped`` takes files up again that a person or a stop left out.
        :returns: ``{"count": n}``, how many.
        """
        return self._decided("daqs", id, "retry", path=path, pattern=pattern, state=state)

    def retryUploadFiles(
        self, id: str, path: str | None = None, pattern: str | None = None, state: str | None = None
    ) -> DmObject:
        """Make failed files of an upload ready again; see :meth:`retryDaqFiles`."""
        return self._decided("uploads", id, "retry", path=path, pattern=pattern, state=state)

    def skipDaqFiles(
        self,
        id: str,
        path: str | None = None,
        pattern: str | None = None,
        state: str | None = None,
        reason: str | None = None,
    ) -> DmObject:
        """Leave files of a DAQ out: failed ones and those that wait; one named by ``path`` before it is written, too.

        They count as skipped, with who decided it and why, and are not taken when they change.

        :param state: only ``failed`` or only ``ready`` ones. :param reason: why.
        :returns: ``{"count": n}``. :raises InvalidObjectState: the one file is in storage, or on its way there.
        """
        return self._decided("daqs", id, "skip", path=path, pattern=pattern, state=state, reason=reason)

    def skipUploadFiles(
        self,
        id: str,
        path: str | None = None,
        pattern: str | None = None,
        state: str | None = None,
        reason: str | None = None,
    ) -> DmObject:
        """Leave files of an upload out; see :meth:`skipDaqFiles`."""
        return self._decided("uploads", id, "skip", path=path, pattern=pattern, state=state, reason=reason)

    def reprocessDaqFiles(
        self, id: str, plugins: Sequence[str] = (), path: str | None = None, pattern: str | None = None
    ) -> DmObject:
        """Run plugins once more for files of a DAQ that are done, without moving them. Jobs are started anew.

        :param plugins: names (see ``listProcessingPlugins``); default: all of this DAQ.
        :returns: ``{"count": n}``, how many files.
        """
        return self._decided("daqs", id, "reprocess", plugins=list(plugins) or None, path=path, pattern=pattern)

    def reprocessUploadFiles(
        self, id: str, plugins: Sequence[str] = (), path: str | None = None, pattern: str | None = None
    ) -> DmObject:
        """Run plugins once more for files of an upload that are done; see :meth:`reprocessDaqFiles`."""
        return self._decided("uploads", id, "reprocess", plugins=list(plugins) or None, path=path, pattern=pattern)

    # --- one file, wherever it is ---------------------------------------------------------------------------

    def explainFile(
        self,
        path: str | bytes | None = None,
        id: str | None = None,
        experimentName: str | None = None,
        root: str | None = None,
        sourcePath: str | bytes | None = None,
    ) -> FileExplanation:
        """Say why a file is where it is, or is not: ``explanation`` is a sentence, ``reason`` a word for programs.

        :param path: of the file, with ``id`` relative to the data directory of that DAQ or upload, with
            ``experimentName`` in the experiment below ``root`` (``data`` or ``analysis``).
        :param sourcePath: instead of ``path``, where the file lies at its source.
        """
        return FileExplanation(
            self.client.get(
                "/fileExplanation", path=path, id=id, experimentName=experimentName, root=root, sourcePath=sourcePath
            )
        )

    def waitFile(  # noqa: PLR0917 - the published order
        self,
        path: str | bytes | None = None,
        id: str | None = None,
        experimentName: str | None = None,
        root: str | None = None,
        sourcePath: str | bytes | None = None,
        until: str = "done",
        timeout: float | None = None,
    ) -> LedgerFile:
        """Wait until a file is so far, or never will be; the first arguments as in :meth:`explainFile`.

        :param until: ``stored`` (in storage, verified), ``cataloged``, or ``done`` (every plugin has seen it).
        :param timeout: seconds; ``None`` waits as long as it takes.
        :returns: its record; ``reached`` says whether it is so far, ``state`` and ``lastError`` why not.
        :raises TaskTimeout: neither is so in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        answered = time.monotonic()
        state = "unknown"
        while True:
            left = MAX_WAIT_TIME if deadline is None else deadline - time.monotonic()
            wait = max(0.0, min(MAX_WAIT_TIME, left))
            try:
                asked = time.monotonic()
                record = LedgerFile(
                    self.client.get(
                        "/fileWait", path=path, id=id, experimentName=experimentName, root=root,
                        sourcePath=sourcePath, until=until, waitTime=wait,
                    )
                )  # fmt: skip
                answered, state = time.monotonic(), str(record["state"])
                if record["reached"] or record["over"]:
                    return record
                pause_after(asked, wait)
            except (CommunicationError, ServiceUnavailable):
                if time.monotonic() - answered > PATIENCE:
                    raise
                time.sleep(max(0.0, min(PAUSE, left)))
            if deadline is not None and time.monotonic() >= deadline:
                raise TaskTimeout(f"The file is not {until} after {timeout:g} s: its state is {state!r}.")

    # --------------------------------------------------------------------------------------------------------

    def _listed(  # noqa: PLR0917
        self,
        kind: str,
        id: str,
        state: str | None,
        skip: int,
        limit: int,
        pattern: str | None,
        since: float | None,
        after: int | None,
    ) -> list[LedgerFile]:
        found = self.client.get(
            f"/{kind}/{segment(id)}/files",
            state=state,
            skip=skip,
            limit=limit,
            pattern=pattern,
            since=since,
            after=after,
        )
        return self._records(LedgerFile, found)

    def _exported(  # noqa: PLR0917
        self, kind: str, id: str, format: str, state: str | None, pattern: str | None, since: float | None
    ) -> Iterator[bytes]:
        query = {"format": format, "state": state, "pattern": pattern, "since": since}
        return self.client.stream(f"/{kind}/{segment(id)}/files/export", timeout=_LONG, **query)

    def _decided(self, kind: str, id: str, verb: str, **choice: Any) -> DmObject:
        given = {key: value for key, value in choice.items() if value is not None}
        return DmObject(self.client.post(f"/{kind}/{segment(id)}/{verb}", given or None))


def pause_after(asked: float, wait: float) -> None:
    """Pause when a service answered a long poll at once, as it has no place for one more to wait.

    :param asked: monotonic seconds when it was asked. :param wait: seconds it was asked to wait.
    """
    if wait > _SOON > time.monotonic() - asked:
        time.sleep(min(PAUSE / 2, wait))
