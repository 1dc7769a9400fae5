"""Fetching files from GridFTP servers, into a staging directory here or straight to other servers.

The server is asked for size, time and inode of every file before and after, and, where it can, for its own digest after
the bytes have left: what arrived is then proven to be what lies there. Without that, a change that keeps the size
within the same second would stay unseen. Names are sent percent-encoded and must come back as they were asked for; one
that the server would hear as another is refused.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from dm.common.errors import InvalidArgument, TransferError
from dm.common.paths import display
from dm.station.acquisition.transports.base import FileOutcome, TransferBatch, TransferFile
from dm.station.acquisition.transports.copying import (
    CopyError,
    changed,
    copy_digesting,
    note,
    opened_source,
    require_space,
)
from dm.station.acquisition.transports.gridftp_control import Fact, require_speakable
from dm.station.acquisition.transports.gridftp_copy import Ended, copy, place, url
from dm.station.acquisition.transports.gridftp_push import ROUNDS, Staging, Tools, not_arrived, require_reason, whole
from dm.station.acquisition.transports.gridftp_settings import Server
from dm.station.acquisition.transports.local import open_staging

_FEATURE = b"CKSM"


@dataclass
class _Wanted:
    """One file to fetch.

    :param there: its path as the server calls it. :param known: what the server said of it before.
    """

    file: TransferFile
    outcome: FileOutcome
    there: bytes
    known: Fact


def pull(tools: Tools, batch: TransferBatch) -> list[FileOutcome]:
    """Fetch a batch; see :meth:`..base.Transport.move`."""
    return _Pull(tools, batch).outcomes()


class _Pull:
    """One fetched batch."""

    def __init__(self, tools: Tools, batch: TransferBatch) -> None:
        self.tools = tools
        self.batch = batch
        self.staging = Staging(tools, batch)
        self.here = batch.staging_host is None
        self.shown = tools.fleet.of_source(batch.source)
        self.root = batch.source.root.rstrip(b"/")
        self.secure = self.shown.servers[0].secure

    def outcomes(self) -> list[FileOutcome]:
        """Return what became of each file."""
        found = [FileOutcome(file.staged_name) for file in self.batch.files]
        wanted = self._look(found)
        if not wanted:
            return found
        missing = self._fetch(wanted)
        for one in wanted:
            why = missing.get(one.file.staged_name)
            if why is not None:
                self._fail(one, why)
        came = [one for one in wanted if not one.outcome.error]
        if self.here:
            list(self.tools.workers.map(self._take, came))
        self._compare([one for one in came if not one.outcome.error])
        return found

    def _there(self, path: bytes) -> bytes:
        return place(self.shown, self.root + b"/" + path, f"Data directory {self.batch.source.text!r}")

    def _servers(self) -> list[Server]:
        return self.tools.fleet.answering(self.shown.servers, self._there(b"").rstrip(b"/") or b"/")

    def _fail(self, one: _Wanted, why: Exception) -> None:
        note(one.outcome, why, one.file.path)
        if self.here:
            _discard(self.batch.staging_directory, one.file.staged_name)

    # --- before ---------------------------------------------------------------------------------------------
    def _look(self, outcomes: Sequence[FileOutcome]) -> list[_Wanted]:
        """Ask for all files, and for the directories on the way; the others get their error."""
        server = self._servers()[0]
        asked: list[tuple[TransferFile, FileOutcome, bytes]] = []
        for file, outcome in zip(self.batch.files, outcomes, strict=True):
            there = self._there(file.path)
            try:
                require_speakable(there, server.secure)
            except InvalidArgument as error:
                note(outcome, CopyError(error.message, transient=False), file.path)
                continue
            asked.append((file, outcome, there))
        parents = sorted({parent for file, _, _ in asked for parent in _parents(file.path)})
        with self.tools.fleet.control(server) as control:
            above = control.status([self._there(parent) for parent in parents])
            facts = control.status([there for _, _, there in asked])
        linked = [parent for parent, fact in zip(parents, above, strict=True) if fact and fact.kind == "link"]
        wanted: list[_Wanted] = []
        for (file, outcome, there), fact in zip(asked, facts, strict=True):
            try:
                wanted.append(_Wanted(file, outcome, there, _regular(file.path, fact, linked)))
            except CopyError as error:
                note(outcome, error, file.path)
        for one in wanted:
            one.outcome.before, one.outcome.mode = one.known.stamp, one.known.mode
        return self._fitting(wanted)

    def _fitting(self, wanted: list[_Wanted]) -> list[_Wanted]:
        """Refuse files that cannot fit into a staging directory here."""
        if not self.here:
            return wanted
        with open_staging(self.batch.staging_directory) as staging:
            for one in wanted:
                try:
                    require_space(
                        one.known.stamp.size,
                        self.batch.staging_directory,
                        staging.descriptor,
                        display(one.file.path),
                    )
                except CopyError as error:
                    note(one.outcome, error, one.file.path)
        return [one for one in wanted if not one.outcome.error]

    # --- the bytes ------------------------------------------------------------------------------------------
    def _fetch(self, wanted: Sequence[_Wanted]) -> dict[str, CopyError]:
        """Fetch files, in as many rounds as bring something.

        :returns: staged name -> why it did not arrive.
        """
        left = {one.file.staged_name: one for one in wanted}
        ended: Ended | None = None
        stuck = ""
        with (
            tempfile.TemporaryDirectory(prefix="dm-gridftp-") as private,
            self.tools.connections.share() as connections,
        ):
            for _round in range(ROUNDS):
                sources, targets = self._servers(), self.staging.servers()
                hosts = {"source": sources} | ({"destination": targets} if targets else {})
                ended, stuck = None, ""
                try:
                    ended = copy(
                        [
                            (url("source", sources, one.there), self.staging.url(targets, name))
                            for name, one in left.items()
                        ],
                        private,
                        self.tools.settings,
                        self.tools.credentials.environment(),
                        connections=connections,
                        sizes=(one.known.stamp.size for one in left.values()),
                        hosts=hosts,
                        stop=self.batch.stop,
                    )
                except TransferError as error:
                    stuck = error.message
                arrived = self.staging.arrived(targets)
                missing = {
                    name: one for name, one in left.items() if not whole(name, one.known.stamp.size, arrived, ended)
                }
                if not missing:
                    return {}
                every = [*sources, *targets]
                good = self.tools.fleet.weed(every)
                if len(missing) == len(left) and len(good) == len(every) and not (ended and ended.killed):
                    break
                left = missing
        names = {name: [os.path.basename(one.there).decode("utf-8", "replace"), name] for name, one in missing.items()}
        if len(missing) == len(wanted):
            require_reason(ended, stuck, (name for both in names.values() for name in both), self.staging.where)
        return {
            name: not_arrived(one.file, names[name], ended, stuck, self.staging.where) for name, one in missing.items()
        }

    # --- after ----------------------------------------------------------------------------------------------
    def _take(self, one: _Wanted) -> None:
        """Digest a file that arrived here."""
        batch = self.batch
        try:
            with opened_source(batch.staging_directory, one.file.staged_name.encode()) as (descriptor, status):
                copied = copy_digesting(
                    descriptor,
                    None,
                    status.st_size,
                    shown=display(one.file.path),
                    where=batch.staging_directory,
                    stop=batch.stop.is_set,
                    moved=batch.moved,
                    digest=batch.digest,
                )
                os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR)
            one.outcome.size, one.outcome.digests, one.outcome.md5 = copied.size, copied.digests, copied.md5
        except (CopyError, OSError) as error:
            self._fail(one, error)

    def _compare(self, came: Sequence[_Wanted]) -> None:
        """Ask the server for digests and stamps again, and judge."""
        if not came:
            return
        paths = [one.there for one in came]
        size = sum(one.known.stamp.size for one in came)
        with self.tools.fleet.control(self._servers()[0]) as control:
            proven: dict[str, list[str]] = {}
            if (self.tools.settings.source_digests or not self.here) and control.offers(_FEATURE):
                for algorithm in ("MD5",) if self.here else ("MD5", "SHA256"):
                    proven[algorithm] = control.digests(algorithm, paths, size)
            facts = control.status(paths)
        for number, (one, fact) in enumerate(zip(came, facts, strict=True)):
            outcome = one.outcome
            outcome.after = fact.stamp if fact is not None and fact.kind == "file" else None
            try:
                if outcome.after != outcome.before:
                    raise changed(one.file.path)
                self._judge(one, {algorithm: digests[number] for algorithm, digests in proven.items()})
                if not outcome.steady:
                    raise changed(one.file.path)
            except CopyError as error:
                self._fail(one, error)

    def _judge(self, one: _Wanted, said: dict[str, str]) -> None:
        """Compare with the digests of the server; where the bytes never were here, they are all there is."""
        outcome, shown = one.outcome, display(one.file.path)
        if self.here:
            if said.get("MD5") and said["MD5"] != outcome.md5:
                raise CopyError(
                    f"File {shown!r} arrived with MD5 {outcome.md5}, but its server reads {said['MD5']}; it is moved "
                    "again."
                )
            return
        if not said.get("MD5") or not said.get("SHA256"):
            raise CopyError(
                f"File {shown!r} went from server to server, and the source's server gives no digests (CKSM) to verify "
                "it by; let the staging directory be reachable here, or use another transport.",
                transient=False,
            )
        outcome.size, outcome.md5 = one.known.stamp.size, said["MD5"]
        outcome.digests = {"sha256": said["SHA256"]}


def _parents(path: bytes) -> list[bytes]:
    """Return the directories on the way to a relative path."""
    found = []
    while path := os.path.dirname(path):
        found.append(path)
    return found


def _regular(path: bytes, fact: Fact | None, linked: Sequence[bytes]) -> Fact:
    """Return what is known of a file that may be moved.

    :raises CopyError: it may not, and why.
    """
    shown = display(path)
    through = next((link for link in linked if path.startswith(link + b"/")), None)
    if through is not None:
        raise CopyError(
            f"Path {shown!r} passes {display(through)!r}, which is a link; only regular files are moved.",
            transient=False,
        )
    if fact is None:
        raise CopyError(f"File {shown!r} vanished before it was moved.", vanished=True)
    if fact.kind != "file":
        what = "a link" if fact.kind == "link" else "not a regular file"
        raise CopyError(f"Path {shown!r} is {what}; only regular files are moved.", transient=False)
    return fact


def _discard(directory: bytes, name: str) -> None:
    try:
        os.unlink(os.path.join(directory, name.encode()))
    except OSError:
        # not there, or no file at all: storage sweeps the directory
        return
