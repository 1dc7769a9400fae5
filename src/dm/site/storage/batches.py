"""Batches: how a station hands files over.

Open a batch and get a staging directory, write into it, hand over the list of files, wait for the outcome of each.
Every step can be repeated; the caller's UUID makes it once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
from typing import Any

from sqlalchemy import RowMapping

from dm.common import digests, paths
from dm.common.errors import (
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.web.routes import Principal
from dm.site.database.store import Store
from dm.site.storage import batch_store, grants
from dm.site.storage.directories import PRIVATE_MODE, ROOTS, STAGING, Owners, enter, opened_directory
from dm.site.storage.experiments import Reference, find

ON_CONFLICT = ("fail", "replace", "version")
TAKEN = ".taken"
_LONGEST_WAIT = 30.0
_POLL = 1.0
_HEX = {"md5": 32, "sha256": 64, "xxh3_128": 32}
_HEX_TEXT = re.compile(r"[0-9a-f]*")
_KEYS = {"path", "stagedName", "size", "mtimeNs", "mode", "digests", "md5Sum", "sourceUrl"}


class Signal:
    """Tells waiting requests and idle publishers of this process that something changed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def ring(self, everybody: bool = True) -> None:
        """Wake everybody, or one of those who all do the same."""
        with self._condition:
            self._count += 1
            if everybody:
                self._condition.notify_all()
            else:
                self._condition.notify()

    def count(self) -> int:
        """Return the number of rings so far; hand it to :meth:`wait` to miss none."""
        with self._condition:
            return self._count

    def wait(self, seen: int, seconds: float) -> None:
        """Wait until there were more rings than ``seen``, or so many seconds passed."""
        with self._condition:
            self._condition.wait_for(lambda: self._count != seen, seconds)


class Batches:
    """The use cases of a station's service.

    :param queued: rung when a batch is handed over. :param ended: rung by publishers when one is committed.
    :param waiters: how many requests may wait at the same time; further ones are answered at once.
    """

    def __init__(
        self,
        store: Store,
        owners: Owners,
        *,
        queued: Signal,
        ended: Signal,
        max_files: int = 20_000,
        waiters: int = 8,
    ) -> None:
        self._store = store
        self._owners = owners
        self._queued = queued
        self._ended = ended
        self._max_files = max_files
        self._waiters = threading.BoundedSemaphore(waiters)

    def open(
        self,
        principal: Principal,
        grant_header: str | None,
        *,
        batch_id: str,
        experiment_id: int,
        root: str,
        source: str,
        on_conflict: str = "fail",
    ) -> dict[str, Any]:
        """Open a batch and make its staging directory; again with the same arguments returns the same.

        :param source: id of the DAQ or upload; rewrites by the same source replace, others follow ``on_conflict``.
        :returns: batchId, experimentId, state, stagingDirectory, stagingHost.
        :raises AuthorizationError: no valid grant. :raises ObjectAlreadyExists: the id is used for something else.
        :raises InvalidObjectState: the root is frozen, or the batch was abandoned.
        """
        batch_id = grants.uuid_text(batch_id, "Batch id")
        if root not in ROOTS:
            raise InvalidArgument(f"Root {root[:80]!a} is unknown; choose data or analysis.")
        if on_conflict not in ON_CONFLICT:
            raise InvalidArgument(f"onConflict {on_conflict[:80]!a} is unknown; choose {', '.join(ON_CONFLICT)}.")
        if not 1 <= len(source) <= 200 or not source.isprintable():
            raise InvalidArgument(f"Source {source[:80]!a} is no id of 1 to 200 printable characters.")
        # Not durable, as handing over and claiming: a station whose batch is unknown, or open once more, begins again.
        with self._store.transaction(durable=False) as connection:
            grant = grants.check(connection, principal, grant_header)
            if grant.experiment_id != experiment_id:
                raise AuthorizationError(f"Grant {grant.id} is for another experiment than {experiment_id}.")
            experiment = find(connection, Reference(id=experiment_id))
            if experiment[f"{root}_directory_frozen"]:
                raise InvalidObjectState(f"The {root} directory of experiment {experiment['name']!a} is frozen.")
            asked = {
                "experiment_id": experiment_id,
                "root": root,
                "source": source,
                "on_conflict": on_conflict,
            }
            batch_store.add(connection, asked | {"id": batch_id, "grant_id": grant.id, "state": "open"})
            row = batch_store.get(connection, batch_id, lock=True)
            if row is None or any(row[key] != value for key, value in asked.items()):
                raise ObjectAlreadyExists(f"Batch {batch_id} already exists for something else; choose another id.")
            if row["state"] == "abandoned":
                raise InvalidObjectState(f"Batch {batch_id} was abandoned; open another one.")
            if row["state"] == "open":
                self._make_staging(row)
        return _opened(row)

    def _make_staging(self, row: RowMapping) -> None:
        owner = self._owners.of_experiment(row)
        try:
            with contextlib.ExitStack() as stack:
                top = stack.enter_context(opened_directory(row["storage_directory"]))
                staging, _made = enter(top, STAGING.encode(), owner, PRIVATE_MODE)
                stack.callback(os.close, staging)
                area, batch = self._owners.area(owner), self._owners.batch()
                if area.faults(staging, os.fstat(staging)):
                    area.apply(staging)  # the settings of staging may be newer than the experiment
                descriptor, _ = enter(staging, row["id"].encode(), batch.owner, batch.mode)
                os.close(descriptor)
        except OSError as error:
            raise ServiceUnavailable(
                f"The staging directory below {row['storage_directory']!a} cannot be made: {error.strerror}."
            ) from error

    def submit(
        self,
        principal: Principal,
        grant_header: str | None,
        batch_id: str,
        files: list[dict[str, Any]],
        wait_seconds: float = 0.0,
    ) -> dict[str, Any]:
        """Hand over the list of files; the same list again is fine.

        :param files: see :func:`checked_file`. :param wait_seconds: wait up to so long (at most 30 s) for the commit.
        :returns: as :meth:`get`: the outcome if there is one by then.
        :raises InvalidObjectState: abandoned, or handed over before with another list.
        """
        if len(files) > self._max_files:
            raise ServiceLimit(f"The batch has {len(files)} files; {self._max_files} is the limit.")
        checked = [checked_file(entry) for entry in files]
        for key in ("path", "stagedName"):
            _refuse_doubles(checked, key)
        request = json.dumps(checked, separators=(",", ":"))
        request_hash = hashlib.sha256(request.encode()).digest()
        with self._store.transaction(durable=False) as connection:
            grant = grants.check(connection, principal, grant_header)
            row = batch_store.get(connection, grants.uuid_text(batch_id, "Batch id"), lock=True)
            if row is None or row["experiment_id"] != grant.experiment_id:
                raise ObjectNotFound(f"Batch {batch_id[:80]!a} does not exist.")
            if row["state"] == "abandoned":
                raise InvalidObjectState(f"Batch {batch_id} was abandoned; open another one.")
            if row["state"] == "open":
                batch_store.queue(connection, row["id"], request, request_hash)
            elif row["request_hash"] != request_hash:
                raise InvalidObjectState(f"Batch {batch_id} was handed over before with another list of files.")
        if row["state"] == "open":
            self._queued.ring(everybody=False)
        return self.get(principal, row["id"], wait_seconds)

    def get(self, principal: Principal, batch_id: str, wait_seconds: float = 0.0) -> dict[str, Any]:
        """Return a batch's state and, once committed, the outcome of each of its files.

        :param wait_seconds: wait up to so long (at most 30 s) for the commit.
        :returns: batchId, state, files; a file has path, status (stored, unchanged, failed), and either size, digests,
            md5Sum, version, or errorCode, errorMessage, transient.
        """
        batch_id = grants.uuid_text(batch_id, "Batch id")
        deadline = time.monotonic() + min(max(wait_seconds, 0.0), _LONGEST_WAIT)
        waiting = wait_seconds > 0 and self._waiters.acquire(blocking=False)
        try:
            while True:
                seen = self._ended.count()
                with self._store.transaction() as connection:
                    state = batch_store.state(connection, batch_id)
                    if state in (None, "committed", "abandoned", "open") or not waiting or _over(deadline):
                        return _outcome(self._visible(batch_store.get(connection, batch_id), batch_id, principal))
                self._ended.wait(seen, min(_POLL, max(deadline - time.monotonic(), 0.01)))
        finally:
            if waiting:
                self._waiters.release()

    def abandon(self, principal: Principal, batch_id: str) -> dict[str, Any]:
        """Give a batch up and remove what was staged; one that was committed stays as it is.

        :raises InvalidObjectState: it is being published at this moment.
        """
        batch_id = grants.uuid_text(batch_id, "Batch id")
        with self._store.transaction() as connection:
            row = self._visible(batch_store.get(connection, batch_id, lock=True), batch_id, principal)
            if row["state"] == "publishing":
                raise InvalidObjectState(f"Batch {batch_id} is being published; wait for its outcome.")
            if row["state"] in ("open", "queued"):
                batch_store.abandon(connection, batch_id)
        remove_staging(row["storage_directory"], batch_id)
        return {"batchId": batch_id, "state": "committed" if row["state"] == "committed" else "abandoned"}

    @staticmethod
    def _visible(row: RowMapping | None, batch_id: str, principal: Principal) -> RowMapping:
        if row is None or not principal.manages(row["station_name"]):
            raise ObjectNotFound(f"Batch {batch_id} does not exist.")
        return row


def remove_staging(storage_directory: str, batch_id: str) -> None:
    """Remove what a batch left in staging, following no link."""
    try:
        with opened_directory(storage_directory) as top:
            for name in (batch_id, batch_id + TAKEN):
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(f"{STAGING}/{name}", dir_fd=top)
    except ServiceUnavailable:
        return  # the experiment's directory itself is gone


def checked_file(entry: dict[str, Any]) -> dict[str, Any]:
    """Return one file of a batch in canonical form.

    :param entry: ``path`` (below the root), ``stagedName`` (below the staging directory), ``size`` in bytes,
        ``mtimeNs``, and optionally ``mode``, ``digests`` (algorithm -> hex), ``md5Sum`` (empty: none is
            wanted), ``sourceUrl``.
    :raises InvalidArgument: naming path and field.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise InvalidArgument(f"File entry {str(entry)[:80]!a} has no path.")
    shown = ascii(entry["path"][:160])
    if unknown := set(entry) - _KEYS:
        raise InvalidArgument(f"File {shown}: unknown key {sorted(unknown)[0][:80]!a}.")
    staged = entry.get("stagedName")
    if not isinstance(staged, str):
        raise InvalidArgument(f"File {shown}: stagedName is missing.")
    result: dict[str, Any] = {
        "path": paths.decode(paths.relative(entry["path"])),
        "stagedName": paths.decode(paths.relative(staged)),
        "size": _integer(shown, entry, "size", 0, (1 << 63) - 1),
        "mtimeNs": _integer(shown, entry, "mtimeNs", -(1 << 62), (1 << 63) - 1),
    }
    if entry.get("mode") is not None:
        result["mode"] = _integer(shown, entry, "mode", 0, (1 << 32) - 1)
    claimed = entry.get("digests") or {}
    if not isinstance(claimed, dict):
        raise InvalidArgument(f"File {shown}: digests is no object of algorithm and hex digest.")
    claimed = dict(claimed)
    if entry.get("md5Sum"):
        claimed["md5"] = entry["md5Sum"]
    for name, value in claimed.items():
        if name not in digests.ALGORITHMS:
            raise InvalidArgument(f"File {shown}: unknown digest {str(name)[:40]!a}.")
        if not isinstance(value, str) or len(value) != _HEX[name] or not _HEX_TEXT.fullmatch(value):
            raise InvalidArgument(f"File {shown}: {name} {str(value)[:80]!a} is no lower-case hex digest.")
    if claimed:
        result["digests"] = claimed
    result |= {"withoutMd5": True} if entry.get("md5Sum") == "" else {}
    if entry.get("sourceUrl") is not None:
        if not isinstance(entry["sourceUrl"], str) or len(entry["sourceUrl"]) > 8192:
            raise InvalidArgument(f"File {shown}: sourceUrl is no text of at most 8192 characters.")
        result["sourceUrl"] = entry["sourceUrl"]
    return result


def _integer(shown: str, entry: dict[str, Any], key: str, low: int, high: int) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"File {shown}: {key} {str(value)[:40]!a} is no whole number in range.")
    return value


def _refuse_doubles(files: list[dict[str, Any]], key: str) -> None:
    seen: set[str] = set()
    for entry in files:
        if entry[key] in seen:
            raise InvalidArgument(f"{key} {entry[key][:160]!a} occurs twice in the batch.")
        seen.add(entry[key])


def _over(deadline: float) -> bool:
    return time.monotonic() >= deadline


def _opened(row: RowMapping) -> dict[str, Any]:
    return {
        "batchId": row["id"],
        "experimentId": row["experiment_id"],
        "state": row["state"],
        "stagingDirectory": f"{row['storage_directory']}/{STAGING}/{row['id']}",
        "stagingHost": row["storage_host"],
    }


def _outcome(row: RowMapping) -> dict[str, Any]:
    files = json.loads(row["result"]) if row["result"] else []
    return {"batchId": row["id"], "experimentId": row["experiment_id"], "state": row["state"], "files": files}
