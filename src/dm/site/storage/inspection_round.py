"""One round through the files of one experiment: are they what is recorded of them, and nobody else's?

First the records, page by page: is each file there, as large and as old as when it was verified, and, when it is to be
read again, with the same digest? Then the tree, directory by directory: is there anything that is not recorded, and
have directories and files the owner, mode and lists they should? After every page and directory it is noted how far the
round is, so that a restart goes on there. What looks wrong is looked at again while nothing can be published, so that a
file replaced at this moment is no finding.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeVar, cast

from sqlalchemy import Connection, RowMapping

from dm.common import digests, paths
from dm.common.errors import DmException, InvalidArgument, ObjectNotFound
from dm.site.database.store import PUBLISH_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage import acl, experiment_store, file_store, inspection_store
from dm.site.storage.directories import (
    DIRECTORY_MODE,
    STAGING,
    Look,
    Owner,
    Owners,
    dress_file,
    file_faults,
    opened_directory,
)
from dm.site.storage.inspection_store import Finding
from dm.site.storage.pace import Pace, PacedFile
from dm.site.storage.verification import StoppedError

_Item = TypeVar("_Item")
DAMAGE = ("missing", "changed", "digest", "unreadable")
OURS = ".dm-"
_PAGE = 200
_SETTLE_SECONDS = 2.0
_MAKING_SECONDS = 24 * 3600.0
_ROOTS = (b"analysis", b"data", b"system")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LeaseLostError(Exception):
    """Another process inspects, or the experiment is no longer where it was; this round is not ours to go on with."""


@dataclass(frozen=True)
class _Suspect:
    """A finding to be confirmed.

    :param row: what is recorded. :param seen: inode, size and time of the file that was read.
    """

    finding: Finding
    row: RowMapping | None
    seen: tuple[int, int, int] | None = None


@dataclass
class _Seen:
    """What was looked at and is not noted yet.

    :param plain: files of which it is not known yet whether they are recorded. :param healed: records of files marked
        as damaged that are whole again.
    """

    found: list[Finding] = field(default_factory=list)
    suspects: list[_Suspect] = field(default_factory=list)
    healed: list[RowMapping] = field(default_factory=list)
    plain: list[Finding] = field(default_factory=list)

    def add(self, other: _Seen) -> None:
        """Take over what was seen in addition."""
        self.found += other.found
        self.suspects += other.suspects
        self.healed += other.healed
        self.plain += other.plain

    def __len__(self) -> int:
        return len(self.found) + len(self.suspects) + len(self.healed) + len(self.plain)


class Round:
    """A round, from its beginning or from where an earlier process left it.

    :param experiment: its row. :param row: its inspection's row, with ``options`` (``readAgain``, ``repair``).
    :param files: pace of looking at files. :param reading: pace of reading them, in bytes.
    :param hold: keeps the lease; ``False`` when it is lost.
    """

    def __init__(
        self,
        store: Store,
        owners: Owners,
        experiment: RowMapping,
        row: RowMapping,
        *,
        files: Pace,
        reading: Pace,
        hold: Callable[[Connection], bool],
    ) -> None:
        self._store = store
        self._owners = owners
        self._owner = owners.of_experiment(experiment)
        self._experiment = experiment
        self._row = row
        self._id: int = experiment["id"]
        self._top: str = experiment["storage_directory"]
        self._files = files
        self._reading = reading
        self._hold = hold
        self._read_again = bool(row["options"].get("readAgain"))
        self._repair = bool(row["options"].get("repair"))
        self._counts: dict[str, int] = dict(row["counts"])

    def run(self) -> dict[str, int]:
        """Go through to the end and return the counts.

        :raises StoppedError: the service stops. :raises LeaseLostError: see there.
        :raises ServiceUnavailable: the database or the experiment's directory is away; the round goes on later.
        """
        with opened_directory(self._experiment["storage_root"]):
            pass  # a file system that is not mounted is no loss of files
        if not os.path.isdir(self._top):  # noqa: PTH112
            with self._settling() as connection:
                self._note(connection, [self._counted(Finding(b".", "missing", "the experiment's directory"))], {})
                self._end(connection)
            return self._counts
        position = self._row["position"]
        if position.get("phase", "records") == "records":
            self._records(position.get("after", 0))
            position = {}
        self._tree(bytes.fromhex(position.get("after", "")))
        with self._settling() as connection:
            self._end(connection)
        return self._counts

    def _end(self, connection: Connection) -> None:
        subject = f"{self._experiment['name']}/{self._experiment['station_name']}"
        counts = self._counts
        inspection_store.finish(connection, self._row, counts, self._read_again)
        if counts.get("repaired"):
            audit.record(connection, "permissions.repaired", subject, experimentId=self._id, changed=counts["repaired"])
        if damage := {kind: counts[kind] for kind in DAMAGE if counts.get(kind)}:
            audit.record(connection, "file.damaged", subject, experimentId=self._id, **damage)

    # The records.

    def _records(self, after: int) -> None:
        while True:
            with self._store.transaction() as connection:
                page = file_store.page(connection, self._id, None, after, _PAGE)
            if not page:
                return
            self._in_parts(page, self._record, self._settle_records)
            after = page[-1]["id"]

    def _record(self, row: RowMapping, seen: _Seen) -> None:
        self._files.take(1)
        self._count("files")
        suspect = self._look(row, seen.found)
        if suspect is not None:
            seen.suspects.append(suspect)
        elif row["damaged"] is not None:
            seen.healed.append(row)

    def _settle_records(self, seen: _Seen, last: RowMapping) -> None:
        with self._settling() as connection:
            found = seen.found + self._confirmed(connection, seen.suspects)
            for row in seen.healed:
                inspection_store.mark_damaged(connection, row, False)
            self._note(connection, found, {"phase": "records", "after": last["id"]})

    def _in_parts(
        self, items: Iterable[_Item], look: Callable[[_Item, _Seen], None], settle: Callable[[_Seen, _Item], None]
    ) -> None:
        """Look at one after the other, and note what was found every few seconds and when it is to stop.

        :raises StoppedError: it was; what was looked at to the end is noted.
        """
        seen, last = _Seen(), None
        settled = time.monotonic()
        for item in items:
            this, counts = _Seen(), dict(self._counts)
            try:
                look(item, this)
            except StoppedError:
                self._counts = counts
                if last is not None:
                    settle(seen, last)
                raise
            seen.add(this)
            last = item
            if len(seen) >= _PAGE or time.monotonic() - settled > _SETTLE_SECONDS:
                settle(seen, last)
                seen, last, settled = _Seen(), None, time.monotonic()
        if last is not None:
            settle(seen, last)

    def _look(self, row: RowMapping, found: list[Finding]) -> _Suspect | None:
        """Look at one recorded file; what is wrong with its permissions goes to ``found`` (and away, on repair)."""
        path = _below(row)
        try:
            with paths.opened_file(self._top, path) as descriptor:
                status = os.fstat(descriptor)
                self._permissions(descriptor, status, path, found)
                if (status.st_size, status.st_mtime_ns) != (row["size"], row["mtime_ns"]):
                    return _Suspect(Finding(path, "changed", _change(row, status)), row)
                if self._read_again or row["damaged"] is not None:
                    value = self._digest(descriptor)
                    if value != bytes(row["digest"]).hex():
                        detail = f"{digests.VERIFICATION} is {value}, {bytes(row['digest']).hex()} was verified"
                        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
                        return _Suspect(Finding(path, "digest", detail), row, seen)
        except (ObjectNotFound, InvalidArgument, DmException, OSError) as error:
            return _Suspect(_unseen(path, error), row)
        return None

    def _digest(self, descriptor: int) -> str:
        size = os.fstat(descriptor).st_size
        # What is on the disk counts, not what is still in memory, and others' cached files should stay there.
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)
        with PacedFile(descriptor, self._reading) as stream:
            value = digests.digest_stream(cast(BinaryIO, stream), [digests.VERIFICATION])[1][digests.VERIFICATION]
            self._count("bytesRead", stream.count)
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)
        return value

    def _confirmed(self, connection: Connection, suspects: Sequence[_Suspect]) -> list[Finding]:
        """Return the findings that are still true while nothing can be published, and mark damaged records."""
        if not suspects:
            return []
        self._still_there(connection)
        found = []
        for suspect in suspects:
            root, _, path = suspect.finding.path.partition(b"/")
            row = file_store.one(connection, self._id, root.decode(), path)
            finding = self._once_more(suspect, row)
            if finding is None:
                continue
            found.append(self._counted(finding))
            if row is not None and finding.kind in DAMAGE and finding.kind != "unreadable":
                inspection_store.mark_damaged(connection, row, True)
        return found

    def _still_there(self, connection: Connection) -> None:
        """Keep publications away until the transaction ends. :raises LeaseLostError: the experiment moved or went."""
        lock(connection, PUBLISH_LOCK, self._id)
        self._in_place(connection)

    def _in_place(self, connection: Connection) -> None:
        """Return if what lies there is this experiment. :raises LeaseLostError: by now it may be another's."""
        now = experiment_store.by_id(connection, self._id)
        if now is None or now["state"] != "active" or now["storage_directory"] != self._top:
            raise LeaseLostError

    def _once_more(self, suspect: _Suspect, row: RowMapping | None) -> Finding | None:
        finding = suspect.finding
        try:
            with paths.opened_file(self._top, finding.path) as descriptor:
                status = os.fstat(descriptor)
        except (DmException, OSError) as error:
            return _unseen(finding.path, error) if suspect.row is not None and row is not None else None
        if suspect.row is None:  # something that was not recorded
            return finding if row is None else None
        if row is None or row["version"] != suspect.row["version"]:
            return None
        if suspect.seen is not None:
            return finding if suspect.seen == (status.st_ino, status.st_size, status.st_mtime_ns) else None
        if (status.st_size, status.st_mtime_ns) != (row["size"], row["mtime_ns"]):
            return replace(finding, kind="changed", detail=_change(row, status))
        return None

    # The tree.

    def _tree(self, after: bytes) -> None:
        if not after:
            self._outer()
        self._in_parts(self._directories(after), self._directory_seen, self._settle_directories)

    def _directory_seen(self, path: bytes, seen: _Seen) -> None:
        seen.plain += self._directory(path, seen.found)

    def _settle_directories(self, seen: _Seen, last: bytes) -> None:
        with self._settling() as connection:
            found = list(seen.found)
            for root in {finding.path.partition(b"/")[0] for finding in seen.plain}:
                below = [finding for finding in seen.plain if finding.path.startswith(root + b"/")]
                found += self._confirmed(connection, self._unrecorded(connection, root, below))
            self._note(connection, found, {"phase": "tree", "after": last.hex()})

    def _outer(self) -> None:
        """Look at the experiment's own directory and its staging area."""
        found: list[Finding] = []
        with opened_directory(self._top) as top:
            self._look_of(top, b".", self._owners.top(self._owner), found)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                area = os.open(STAGING, _DIRECTORY, dir_fd=top)
                try:
                    self._look_of(area, STAGING.encode(), self._owners.area(self._owner), found)
                finally:
                    os.close(area)
        with self._settling() as connection:
            self._note(connection, found, {"phase": "tree", "after": ""})

    def _directories(self, after: bytes) -> Iterator[bytes]:
        """Yield directories below the experiment's that come after one, in order; their parents come first."""
        passed = after.split(b"/") if after else []
        pending = list(reversed(_ROOTS))
        while pending:
            path = pending.pop()
            parts = path.split(b"/")
            on_the_way = passed[: len(parts)] == parts
            if passed and parts < passed and not on_the_way:
                continue
            if not on_the_way:
                yield path
            pending += sorted(self._inner(path), reverse=True)

    def _inner(self, path: bytes) -> list[bytes]:
        try:
            with paths.opened_parent(self._top, path + b"/_") as (descriptor, _), os.scandir(descriptor) as entries:
                return [
                    path + b"/" + os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)
                ]
        except (DmException, OSError):
            return []  # told by whoever looked at it

    def _directory(self, path: bytes, found: list[Finding]) -> list[Finding]:
        """Look at a directory and what is in it that is no directory; return files of which one may not know."""
        root = path.partition(b"/")[0]
        plain: list[Finding] = []
        try:
            with paths.opened_parent(self._top, path + b"/_") as (descriptor, _):
                self._count("directories")
                self._look_of(descriptor, path, Look(self._owner, DIRECTORY_MODE), found)
                for name in os.listdir(descriptor):  # noqa: PTH208
                    self._files.take(1)
                    entry = path + b"/" + os.fsencode(name)
                    try:
                        status = os.stat(os.fsencode(name), dir_fd=descriptor, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(status.st_mode):
                        if root == b"system":
                            self._ours(descriptor, os.fsencode(name), entry, found)
                        elif not _in_the_making(name, status):
                            plain.append(Finding(entry, "extra", f"{status.st_size} bytes that were never published"))
                    elif stat.S_ISLNK(status.st_mode):
                        found.append(self._counted(Finding(entry, "link", "a symbolic link")))
                    elif not stat.S_ISDIR(status.st_mode):
                        found.append(self._counted(Finding(entry, "special", "a pipe, socket or device")))
        except ObjectNotFound as error:
            if path in _ROOTS:
                found.append(self._counted(Finding(path, "missing", str(error))))
        except (DmException, OSError) as error:
            found.append(self._counted(Finding(path, "unreadable", str(error))))
        return plain

    def _unrecorded(self, connection: Connection, root: bytes, plain: Sequence[Finding]) -> list[_Suspect]:
        """Return the files below a root that are not recorded; below ``analysis`` that is nothing wrong."""
        below = {finding.path.partition(b"/")[2]: finding for finding in plain}
        known = file_store.by_paths(connection, self._id, root.decode(), list(below))
        unknown = [_Suspect(finding, None) for path, finding in below.items() if path not in known]
        found: list[Finding] = []
        for suspect in unknown:
            self._ours(None, b"", suspect.finding.path, found, relaxed=True)
        inspection_store.add_findings(connection, self._id, self._row["rounds"] + 1, found)
        if root == b"analysis":
            self._count("unrecorded", len(unknown))
            return []
        return unknown

    # What both have in common.

    def _ours(self, parent: int | None, name: bytes, path: bytes, found: list[Finding], relaxed: bool = False) -> None:
        """Look at the permissions of a file that is not in the records."""
        try:
            if parent is None:
                with paths.opened_file(self._top, path) as descriptor:
                    self._permissions(descriptor, os.fstat(descriptor), path, found, relaxed)
                return
            descriptor = os.open(name, _ANY, dir_fd=parent)
            try:
                self._permissions(descriptor, os.fstat(descriptor), path, found, relaxed)
            finally:
                os.close(descriptor)
        except (ObjectNotFound, FileNotFoundError):
            return
        except (DmException, OSError) as error:
            found.append(self._counted(Finding(path, "unreadable", str(error))))

    def _permissions(
        self, descriptor: int, status: os.stat_result, path: bytes, found: list[Finding], relaxed: bool = False
    ) -> None:
        """Look at owner, mode and list of an open plain file.

        :param relaxed: somebody else's, made on the file system: only who else may read it counts.
        """
        if relaxed:
            wanted = Owner(-1, self._owner.gid)
            faults = _widened(wanted, descriptor, status)
        else:
            wanted, faults = self._owner, file_faults(self._owner, descriptor, status)
        if status.st_nlink > 1 and not path.startswith(b"system/"):
            found.append(self._counted(Finding(path, "link", f"the file has {status.st_nlink} names")))
        if faults:
            repair = None if status.st_nlink > 1 else lambda: dress_file(descriptor, wanted, status.st_mode)
            found.append(self._mended(path, faults, repair))

    def _look_of(self, descriptor: int, path: bytes, look: Look, found: list[Finding]) -> None:
        try:
            if faults := look.faults(descriptor, os.fstat(descriptor)):
                found.append(self._mended(path, faults, lambda: look.apply(descriptor)))
        except OSError as error:
            found.append(self._counted(Finding(path, "unreadable", str(error))))

    def _mended(self, path: bytes, faults: Sequence[str], repair: Callable[[], None] | None) -> Finding:
        """Return the finding about permissions, after setting them right if that is wanted and possible."""
        finding = Finding(path, "permissions", "; ".join(faults))
        if self._repair and repair is not None:
            with self._store.transaction() as connection:
                self._in_place(connection)
            try:
                repair()
            except OSError as error:
                finding = replace(finding, detail=f"{finding.detail}; cannot be repaired: {error.strerror}")
            else:
                self._count("repaired")
                return replace(finding, repaired=True)
        return self._counted(finding)

    def _counted(self, finding: Finding) -> Finding:
        self._count(finding.kind)
        return finding

    def _count(self, what: str, amount: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + amount

    @contextlib.contextmanager
    def _settling(self) -> Iterator[Connection]:
        """A transaction that keeps the lease. :raises LeaseLostError: it is lost."""
        with self._store.transaction() as connection:
            if not self._hold(connection):
                raise LeaseLostError
            yield connection

    def _note(self, connection: Connection, found: Sequence[Finding], position: dict[str, Any]) -> None:
        self._in_place(connection)
        inspection_store.add_findings(connection, self._id, self._row["rounds"] + 1, found)
        inspection_store.note(connection, self._id, position, self._counts)


def _below(row: RowMapping) -> bytes:
    return row["root"].encode() + b"/" + bytes(row["path"])


def _unseen(path: bytes, error: Exception) -> Finding:
    """Return the finding about a recorded file that cannot be opened as one."""
    if isinstance(error, ObjectNotFound | FileNotFoundError):
        return Finding(path, "missing", "the file is not there")
    if isinstance(error, InvalidArgument) and not isinstance(error.__cause__, PermissionError):
        return Finding(path, "changed", str(error))
    return Finding(path, "unreadable", str(error))


def _change(row: RowMapping, status: os.stat_result) -> str:
    if status.st_size != row["size"]:
        return f"{status.st_size} bytes instead of {row['size']}"
    return f"modified at {status.st_mtime_ns} ns instead of {row['mtime_ns']} ns"


def _in_the_making(name: str, status: os.stat_result) -> bool:
    """Whether a file is one of ours beside its final place, where it is copied, packed or unpacked just now."""
    return name.startswith(OURS) and abs(time.time() - status.st_ctime) < _MAKING_SECONDS


def _widened(owner: Owner, descriptor: int, status: os.stat_result) -> list[str]:
    """Return how a file that somebody made on the file system is open to others, or closed to its group."""
    found = []
    if owner.gid not in (-1, status.st_gid):
        found.append(f"group {status.st_gid} instead of {owner.gid}")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o7007 or not mode & 0o040:
        found.append(f"mode {mode:04o}")
    if (access := acl.get(descriptor, acl.ACCESS)) is not None:
        found.append(f"access list {acl.text(access)}")
    return found
