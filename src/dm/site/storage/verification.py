"""Looking at one staged file: is it what the station says it is, and may it go into the experiment?"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from dm.common import digests, paths
from dm.common.errors import (
    DmException,
    InternalError,
    InvalidArgument,
    ObjectNotFound,
    ServiceLimit,
    TransferError,
)
from dm.common.spent import part
from dm.site.storage.directories import Owner, dress_file

LOG = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
_OWN_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN}


@dataclass
class Staged:
    """One file of a batch and what became of it.

    :param path: target below the root. :param name: staged, below the staging directory.
    :param claim: what the station said (``size``, ``mtimeNs``, ``mode``, ``digests``).
    :param error: why it cannot be stored. :param transient: whether sending it again may help.
    :param missing: nothing of that name is staged.
    """

    path: bytes
    name: bytes
    claim: dict[str, Any]
    size: int = 0
    digests: dict[str, str] = field(default_factory=dict)
    error: DmException | None = None
    transient: bool = False
    missing: bool = False
    version: int = 0
    status: str = ""

    @property
    def mtime_ns(self) -> int:
        """Modification time at the source."""
        return int(self.claim["mtimeNs"])

    @property
    def shown(self) -> str:
        """Path for messages."""
        return ascii(paths.display(self.path)[:300])

    def fail(self, error: DmException, transient: bool) -> None:
        """Note why this file is not stored."""
        self.error, self.transient, self.status = error, transient, "failed"


def explain(error: OSError, what: str, file_system: str) -> tuple[DmException, bool]:
    """Return an error of the family for one of the system, and whether trying again may help.

    :param what: begins the sentence. :param file_system: a path on the file system concerned, named in the text.
    """
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return ServiceLimit(f"{what}: the file system of {file_system!a} is full ({reason})."), True
    if error.errno == errno.ENAMETOOLONG:
        return InvalidArgument(f"{what}: the name is too long for the file system of {file_system!a}."), False
    return TransferError(f"{what}: {reason} on the file system of {file_system!a}."), error.errno not in _LASTING


class StoppedError(Exception):
    """The service stops; what is being done is given up and done again after the start."""


class _Reading(io.FileIO):
    """A file read only as long as the service is not told to stop: digesting terabytes takes its time."""

    def __init__(self, descriptor: int, stop: threading.Event | None) -> None:
        super().__init__(descriptor, "rb", closefd=False)
        self._stop = stop

    def readinto(self, buffer: Any) -> int | None:
        """Read. :raises StoppedError: the service stops."""
        if self._stop is not None and self._stop.is_set():
            raise StoppedError
        return super().readinto(buffer)


def verify_all(taken: str, items: list[Staged], owner: Owner, stop: threading.Event | None = None) -> None:
    """Call :func:`verify` for each."""
    with part("verify"):
        for item in items:
            verify(taken, item, owner, stop)


def verify(taken: str, item: Staged, owner: Owner, stop: threading.Event | None = None) -> None:
    """Check, digest and dress one staged file; the outcome is in ``item``.

    :param taken: the staging directory, out of the station's reach.
    :param stop: set when the service stops. :raises StoppedError: it was, and nothing else is ever raised.
    """
    try:
        with paths.opened_file(taken, item.name) as descriptor:
            _verify_open(descriptor, item, stop)
            if item.error is None:
                source = os.fstat(descriptor)
                if source.st_uid not in (os.geteuid(), owner.uid) and os.geteuid() != 0:
                    _own_copy(taken, descriptor, item, owner=owner, stop=stop)
                else:
                    dress(descriptor, item, owner)
    except StoppedError:
        raise
    except ObjectNotFound:
        item.missing = True
    except InvalidArgument as error:
        cause = error.__cause__
        short = isinstance(cause, OSError) and cause.errno in _OWN_SHORTAGE
        item.fail(InvalidArgument(f"File {item.shown}: staged as something else than a plain file ({error})."), short)
    except OSError as error:
        item.fail(*explain(error, f"File {item.shown} cannot be verified", taken))
    except DmException as error:
        item.fail(error, True)
    except Exception as error:  # one bad file never fails the others
        LOG.exception("verifying %s", item.shown)
        item.fail(InternalError(f"File {item.shown} cannot be verified: {type(error).__name__}."), True)


def dress(descriptor: int, item: Staged, owner: Owner) -> None:
    """Give an open file its final owner, mode and time, and put it safely on disk.

    An access control list goes: whoever staged the file could have let in whom they liked.
    """
    dress_file(descriptor, owner, item.claim.get("mode", 0))
    os.utime(descriptor, ns=(item.mtime_ns, item.mtime_ns))
    with part("fsync"):
        os.fsync(descriptor)


def _verify_open(descriptor: int, item: Staged, stop: threading.Event | None) -> None:
    before = os.fstat(descriptor)
    if before.st_nlink > 1:
        item.fail(InvalidArgument(f"File {item.shown} is staged as a hard link; stage a copy."), False)
        return
    if before.st_size != item.claim["size"]:
        item.fail(
            TransferError(f"File {item.shown} arrived with {before.st_size} bytes, {item.claim['size']} were sent."),
            True,
        )
        return
    claimed: dict[str, str] = item.claim.get("digests", {})
    # An md5 that came with a stronger digest is the source's word; computing it again costs more than all the rest.
    strong = [name for name in claimed if name != "md5"]
    told = "md5" in claimed or item.claim.get("withoutMd5")
    wanted = {digests.VERIFICATION, *strong} | (set() if strong and told else {"md5"})
    size, found = digest(descriptor, wanted, stop)
    after = os.fstat(descriptor)
    if size != before.st_size or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        item.fail(TransferError(f"File {item.shown} changed in staging while it was read."), True)
        return
    for name, value in claimed.items():
        if name in found and found[name] != value:
            item.fail(
                TransferError(f"File {item.shown} arrived damaged: {name} is {found[name]}, {value} was sent."), True
            )
            return
    item.size = size
    item.digests = claimed | found


def digest(descriptor: int, algorithms: set[str], stop: threading.Event | None = None) -> tuple[int, dict[str, str]]:
    """Digest an open file from its beginning. :raises StoppedError: ``stop`` was set meanwhile."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with part("digest"), _Reading(descriptor, stop) as stream:
        return digests.digest_stream(cast(BinaryIO, stream), sorted(algorithms))


def _own_copy(taken: str, source: int, item: Staged, *, owner: Owner, stop: threading.Event | None) -> None:
    """Replace the station account's file by a copy of ours: without privileges a file cannot change hands."""
    name = b".own-" + digests_name(item.path)
    with paths.opened_parent(taken, name) as (directory, last):
        copy_to(source, directory, last, item, owner=owner, stop=stop)
    item.name = name


def copy_to(
    source: int, directory: int, name: bytes, item: Staged, *, owner: Owner, stop: threading.Event | None = None
) -> None:
    """Copy an open file to ``name`` in ``directory``, verify the copy, dress it.

    :raises TransferError: the copy differs. :raises OSError: the system refuses; the copy is removed.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    target = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.lseek(source, 0, os.SEEK_SET)
        while os.sendfile(target, source, None, 1 << 26):
            if stop is not None and stop.is_set():
                raise StoppedError
        size, found = digest(target, {digests.VERIFICATION}, stop)
        if size != item.size or found[digests.VERIFICATION] != item.digests[digests.VERIFICATION]:
            raise TransferError(f"File {item.shown} changed while it was copied.")
        dress(target, item, owner)
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(target)


def digests_name(path: bytes) -> bytes:
    """Return a short ASCII name that stands for a path."""
    return hashlib.sha256(path).hexdigest()[:40].encode()
