"""Removing one local source file, with proof and without a gap in which somebody else's bytes could go.

The proof: the bytes at the source have, now, the digest that storage verified. Either they were read in the shape
(size, times, inode) that the file still has, or they are read again. Then

* no program may have the file open for writing, and none gets it open until we are through (a read lease, where the
  file system and the account allow one);
* the name is taken away by renaming it to a hidden one, so that a file that comes to the old name from now on is not
  touched; only if what was renamed is the very file that was proven, and nobody waits to write it, it is removed, else
  it gets its name back.

A crash between the two leaves the hidden name; the next attempt gives the file its own back and begins anew.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import hashlib
import os
import signal
import stat
import time
from dataclasses import dataclass

from dm.common.digests import ALGORITHMS, digest_stream
from dm.common.errors import DmException, ObjectNotFound
from dm.common.paths import opened_parent
from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.transports.copying import reason, stamp

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TICK = 0.1  # seconds within which two changes may have the same time
_OPENING = 0.0005  # seconds in which a program that had found the old name gets as far as the lease


class Fate(enum.StrEnum):
    """What became of a source file, or would."""

    REMOVED = "removed"
    REMOVABLE = "removable"
    GONE = "gone"
    KEPT = "kept"


@dataclass(frozen=True)
class Proof:
    """What storage has of a file.

    :param digests: algorithm -> hex, verified. :param seen: the source's stamp when exactly these bytes had been read.
    :param stored: where storage keeps it, if that can be seen from here: never removed, whatever it is called here.
    """

    size: int
    digests: dict[str, str]
    seen: FileStamp | None = None
    stored: bytes | None = None


def remove(root: bytes, path: bytes, proof: Proof, *, delete: bool = True) -> tuple[Fate, str]:
    """Remove a source file if everything is proven.

    :param root: its data directory. :param path: relative. :param delete: otherwise only say what would be done.
    :returns: its fate, and why it was kept. Nothing is raised.
    """
    if not any(name in ALGORITHMS for name in proof.digests):
        return Fate.KEPT, "storage named no digest to compare"
    try:
        with opened_parent(root, path) as (parent, name):
            return _Removal(parent, name, hidden_name(path), proof).run(delete)
    except ObjectNotFound:
        return Fate.GONE, ""
    except DmException as error:
        return Fate.KEPT, error.message.rstrip(".")
    except OSError as error:
        return (Fate.GONE, "") if error.errno == errno.ENOENT else (Fate.KEPT, reason(error))


def hidden_name(path: bytes) -> bytes:
    """Return the name a file has, beside its own, while it is removed."""
    return b".dm-removing-" + hashlib.sha256(path).hexdigest()[:16].encode()


class _Removal:
    """One removal, inside the open directory of the file."""

    def __init__(self, parent: int, name: bytes, hidden: bytes, proof: Proof) -> None:
        self.parent = parent
        self.name = name
        self.hidden = hidden
        self.proof = proof

    def run(self, delete: bool) -> tuple[Fate, str]:
        """See :func:`remove`."""
        if delete:
            with contextlib.suppress(FileNotFoundError):
                self._give_back()
        try:
            descriptor = os.open(self.name, _OPEN, dir_fd=self.parent)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return Fate.KEPT, "it is a link"
            raise
        try:
            shape = self._proven(descriptor)
            if isinstance(shape, str):
                return Fate.KEPT, shape
            if not delete:
                return Fate.REMOVABLE, ""
            kept = self._take(descriptor, shape)
            return (Fate.KEPT, kept) if kept else (Fate.REMOVED, "")
        finally:
            os.close(descriptor)  # ends the lease

    def _proven(self, descriptor: int) -> FileStamp | str:
        """Return the shape in which the open file has the verified bytes, or why it has not."""
        status = os.fstat(descriptor)
        if why := self._unfit(status):
            return why
        if abs(time.time() - status.st_ctime) < _TICK:
            time.sleep(_TICK)  # a change from now on has another time
        elif self.proof.seen == stamp(status):
            return stamp(status)
        wanted = {name: value for name, value in self.proof.digests.items() if name in ALGORITHMS}
        with open(descriptor, "rb", buffering=0, closefd=False) as stream:
            size, found = digest_stream(stream, wanted)
        if stamp(os.fstat(descriptor)) != stamp(status):
            return "it changed while it was read"
        if size != self.proof.size or found != wanted:
            return "its digest is not the stored one"
        return stamp(status)

    def _unfit(self, status: os.stat_result) -> str:
        """Return why its status alone speaks against it, or empty text."""
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file"
        if self._is_stored(status):
            return "it is the very file that storage keeps"
        return "it has changed since it was stored" if status.st_size != self.proof.size else ""

    def _is_stored(self, status: os.stat_result) -> bool:
        if self.proof.stored is None:
            return False
        try:
            there = os.stat(self.proof.stored)
        except OSError:
            return False
        return os.path.samestat(there, status)

    def _take(self, descriptor: int, shape: FileStamp) -> str:
        """Take the name away, look once more, remove; return why not, or empty text."""
        leased = _lease(descriptor)
        if leased is None:
            return "a program has it open for writing"
        if stamp(os.fstat(descriptor)) != shape:
            return "it changed after its digest was compared"
        os.rename(self.name, self.hidden, src_dir_fd=self.parent, dst_dir_fd=self.parent)
        try:
            taken = os.stat(self.hidden, dir_fd=self.parent, follow_symlinks=False)
            found = stamp(taken)
            same = (found.inode, found.size, found.mtime_ns) == (shape.inode, shape.size, shape.mtime_ns)
            same = same and os.path.samestat(taken, os.fstat(descriptor))
            if leased:
                time.sleep(_OPENING)
            wanted = leased and fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK
            if same and not wanted:
                os.unlink(self.hidden, dir_fd=self.parent)
                return ""
        except OSError:
            self._give_back()
            raise
        self._give_back()
        return "a program opens it for writing" if same else "another file came to its name meanwhile"

    def _give_back(self) -> None:
        """Give the hidden file its name back, unless another has come to it: then it is found beside that one.

        :raises FileNotFoundError: there is no hidden file.
        """
        if not self._has(self.hidden):
            raise FileNotFoundError(errno.ENOENT, "No hidden file")
        names = [self.name, *(self.name[:200] + b".dm-kept-%d" % number for number in range(1, 100))]
        for name in names:
            try:
                os.link(self.hidden, name, src_dir_fd=self.parent, dst_dir_fd=self.parent, follow_symlinks=False)
            except FileExistsError:
                if not self._are_one(self.hidden, name):  # else a crash left it with both names
                    continue
            except OSError:  # a file system without hard links, or a file of another account
                if self._has(name):
                    continue
                os.rename(self.hidden, name, src_dir_fd=self.parent, dst_dir_fd=self.parent)
                return
            os.unlink(self.hidden, dir_fd=self.parent)
            return

    def _has(self, name: bytes) -> bool:
        try:
            os.stat(name, dir_fd=self.parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _are_one(self, one: bytes, other: bytes) -> bool:
        look = [os.stat(name, dir_fd=self.parent, follow_symlinks=False) for name in (one, other)]
        return os.path.samestat(*look)


def _lease(descriptor: int) -> bool | None:
    """Take a read lease: until the descriptor is closed, a program that opens the file for writing has to wait.

    :returns: whether there is one: they are for the owner's account (or root) on local file systems; ``None`` when a
        program has the file open for writing.
    """
    try:
        # who waits for us is announced by a signal; this one is ignored unless somebody wants it
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return None if error.errno in (errno.EAGAIN, errno.EBUSY) else False
    return True
