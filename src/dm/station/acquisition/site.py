"""The acquisition side of the conversation with the storage service: grants and batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dm.common.client import RestClient, segment
from dm.common.errors import DmException, ObjectNotFound
from dm.common.paths import decode, encode

Record = dict[str, Any]
_log = logging.getLogger(__name__)
_WARM_SECONDS = 5.0
_CHECKED = 1000  # files that storage checks with one call
_READING_SECONDS = 3600.0


@dataclass(frozen=True)
class Grant:
    """Leave to publish into one experiment while its user is away."""

    id: str
    secret: str = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The request header that carries the grant."""
        return {"Dm-Grant": f"{self.id}.{self.secret}"} if self.id else {}


class StorageSite:
    """Calls the storage service.

    :param client: under the station's service account.
    """

    def __init__(self, client: RestClient) -> None:
        self.client = client

    def grant(self, user: RestClient, experiment: str, station: str, purpose: str) -> Grant:
        """Get a grant with the user's own session (``user``).

        :param purpose: ``daq`` or ``upload``.
        """
        body = {"experimentName": experiment, "stationName": station, "purpose": purpose}
        with user:
            record = user.post("/grants", body)
        return Grant(str(record["id"]), str(record["secret"]))

    def warm(self) -> None:
        """Log in, so that the first files need not wait for it; when that fails, they do."""
        try:
            self.client.get("/session", timeout=_WARM_SECONDS)
        except DmException as error:
            _log.warning("The storage service does not answer now: %s", error)

    def revoke(self, grant: Grant) -> None:
        """Give a grant back; one that is gone already is fine."""
        try:
            self.client.delete(f"/grants/{segment(grant.id)}", headers=grant.headers)
        except ObjectNotFound:
            return

    def open_batch(
        self, batch: str, *, experiment_id: int, root: str, source: str, on_conflict: str, grant: Grant
    ) -> Record:
        """Open a batch, or find it open already.

        :returns: ``stagingDirectory`` and ``stagingHost``.
        """
        body = {
            "batchId": batch,
            "experimentId": experiment_id,
            "root": root,
            "source": source,
            "onConflict": on_conflict,
        }
        return dict(self.client.post("/batches", body, headers=grant.headers))

    def submit(self, batch: str, files: list[Record], grant: Grant, wait: float) -> Record:
        """Hand the staged files over for publishing; repeating it changes nothing.

        :returns: as :meth:`result`, after waiting up to ``wait`` seconds for the verdict.
        """
        body = {"files": files, "waitTime": round(wait, 3)}
        return dict(self.client.put(f"/batches/{segment(batch)}/files", body, headers=grant.headers, timeout=wait + 60))

    def result(self, batch: str, wait: float, grant: Grant) -> Record:
        """Return a batch's state, waiting up to ``wait`` seconds for it to change."""
        query = {"waitTime": round(wait, 3)} if wait else {}
        return dict(self.client.get(f"/batches/{segment(batch)}", headers=grant.headers, timeout=wait + 30, **query))

    def abandon(self, batch: str, grant: Grant) -> None:
        """Sweep a batch that will not be handed over."""
        try:
            self.client.delete(f"/batches/{segment(batch)}", headers=grant.headers)
        except ObjectNotFound:
            return

    def check_files(
        self, experiment_id: int, root: str, paths: Sequence[bytes], *, read_again: bool = False
    ) -> dict[bytes, Record]:
        """Ask storage whether files are there as they were verified.

        :param read_again: have it read and digest them; takes as long as that does.
        :returns: path -> ``verified`` and, if so, ``fileSize``, ``version`` and ``digests``, else ``reason``.
        """
        answers: dict[bytes, Record] = {}
        for first in range(0, len(paths), _CHECKED):
            part = [decode(path) for path in paths[first : first + _CHECKED]]
            body = {"root": root, "paths": part, "readAgain": read_again}
            timeout = _READING_SECONDS if read_again else None
            found = self.client.post(f"/experimentsById/{experiment_id}/files/check", body, timeout=timeout)
            answers |= {encode(str(record["experimentFilePath"])): dict(record) for record in found["files"]}
        return answers
