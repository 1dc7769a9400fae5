"""Reading a source file once: opened without following links, digested from the same buffers that are written.

Measured here (limits.md names the machine): copying in the kernel and digesting afterwards reads everything twice and
gains nothing, because MD5 at about 0.5 GB/s is the brake. So small files are read, digested and written by one thread,
several files at a time; large ones hand MD5 to a helper thread, which doubles the speed of a single file.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dm.common import digests
from dm.common.digests import CHUNK, VERIFICATION
from dm.common.errors import DmException, InvalidArgument, ObjectNotFound
from dm.common.paths import display, opened_parent
from dm.common.spent import part
from dm.station.acquisition.transports.base import FileOutcome, FileStamp

PARALLEL_FROM = 32 << 20
_RING = 4
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_local = threading.local()
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


# errors of a source that waiting does not mend: such a file is tried a few times, then told of
_LASTING = frozenset({errno.EIO, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EINVAL, errno.EOVERFLOW})


class CopyError(Exception):
    """One file could not be moved.

    :param message: one sentence for the ledger. :param transient: whether trying again may help.
    :param vanished: the source is gone.
    """

    def __init__(self, message: str, transient: bool = True, vanished: bool = False) -> None:
        super().__init__(message)
        self.transient = transient
        self.vanished = vanished


@dataclass(frozen=True)
class Copied:
    """What one reading found: bytes, verification digests and MD5."""

    size: int
    digests: dict[str, str]
    md5: str


def stamp(status: os.stat_result) -> FileStamp:
    """Return the stamp of a local file."""
    return FileStamp.of(status)


def mount_point(path: bytes) -> str:
    """Return the mount point of the file system that holds ``path``, for error texts."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return display(path)


def reason(error: OSError) -> str:
    """Return an operating system error as people read it, e.g. ``Input/output error (EIO)``."""
    return f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"


@contextmanager
def opened_source(root: bytes, path: bytes) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file beneath ``root``, following no link on the way and never waiting for a fifo's writer.

    :yields: the descriptor and its status, taken through the descriptor.
    :raises CopyError: missing (vanished), a link, not a regular file, or unreadable.
    :raises OSError: the root itself cannot be opened.
    """
    shown = display(path)
    try:
        with opened_parent(root, path) as (parent, name):
            descriptor = _open_regular(parent, name, shown)
    except ObjectNotFound as error:
        raise CopyError(f"File {shown!r} vanished before it was moved.", vanished=True) from error
    except InvalidArgument as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise _source_problem(f"File {shown!r} cannot be reached", cause) from error
        raise CopyError(error.message, transient=False) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CopyError(f"Path {shown!r} is not a regular file; only regular files are moved.", transient=False)
        yield descriptor, status
    finally:
        os.close(descriptor)


def _open_regular(parent: int, name: bytes, shown: str) -> int:
    try:
        # looked at before it is opened: opening a device can have effects
        kind = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
        if not stat.S_ISREG(kind):
            what = "a link" if stat.S_ISLNK(kind) else "not a regular file"
            raise CopyError(f"Path {shown!r} is {what}; only regular files are moved.", transient=False)
        return os.open(name, _OPEN, dir_fd=parent)
    except FileNotFoundError as error:
        raise CopyError(f"File {shown!r} vanished before it was moved.", vanished=True) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CopyError(f"Path {shown!r} is a link; only regular files are moved.", transient=False) from error
        raise _source_problem(f"File {shown!r} cannot be opened", error) from error


def copy_digesting(
    source: int,
    target: int | None,
    size: int,
    *,
    shown: str,
    where: bytes,
    stop: Callable[[], bool] | None = None,
    moved: Callable[[int], None] | None = None,
    checksum: bool = True,
    digest: str = VERIFICATION,
) -> Copied:
    """Read ``size`` bytes of an open file once, digest them and write them.

    Never reads beyond ``size``, so a file that grows as fast as it is read ends; its stamps then differ.

    :param target: descriptor to write to, or ``None`` to digest only.
    :param shown: name for error texts. :param where: a path on the target's file system, for error texts.
    :param stop: asked between chunks; when true, the copy is given up. :param moved: told of the bytes of each chunk.
    :param checksum: whether an MD5 sum is wanted. :param digest: wanted beside the usual one.
    :raises CopyError: reading or writing failed, or the service stops.
    """
    quick = {name: digests.maker(name) for name in {VERIFICATION, digest}}
    slow = hashlib.md5(usedforsecurity=False) if checksum else None
    done = 0
    parallel = size >= PARALLEL_FROM and checksum
    ring: deque[tuple[bytearray, Future[None] | None]] = deque((buffer, None) for buffer in _buffers(parallel))
    helper = ThreadPoolExecutor(1, "md5") if parallel else None
    try:
        while done < size:
            if stop is not None and stop():
                raise CopyError(f"File {shown!r} was not finished because the service stops; it is moved later.")
            buffer, pending = ring.popleft()
            if pending is not None:
                pending.result()
            try:
                count = os.readv(source, [memoryview(buffer)[: min(CHUNK, size - done)]])
            except OSError as error:
                raise _source_problem(f"File {shown!r} cannot be read", error) from error
            if not count:
                break
            chunk = memoryview(buffer)[:count]
            with part("digest"):
                ring.append((buffer, _fed(slow, chunk, helper)))
                for made in quick.values():
                    made.update(chunk)
            if target is not None:
                _write(target, chunk, shown, where)
                if parallel:
                    start_writing(target, done, count)
            done += count
            if moved is not None:
                moved(count)
    finally:
        if helper:
            helper.shutdown()
    found = {name: made.hexdigest() for name, made in quick.items()}
    return Copied(done, found, slow.hexdigest() if slow is not None else "")


def _fed(digest: Any, chunk: memoryview, helper: ThreadPoolExecutor | None) -> Future[None] | None:
    """Digest a chunk, here or by a helper whose answer is to be waited for before the chunk's memory is used again."""
    if digest is None:
        return None
    if helper is not None:
        return helper.submit(_update, digest, chunk)
    digest.update(chunk)
    return None


def _update(digest: Any, chunk: memoryview) -> None:
    with part("digest"):
        digest.update(chunk)


def start_writing(target: int, offset: int, count: int) -> None:
    """Let the system begin to write a part of a file to disk, without waiting, so that a later ``fsync`` has little
    left to do; where it cannot, that waits longer."""
    if _sync_file_range is not None:
        _sync_file_range(target, offset, count, _SYNC_FILE_RANGE_WRITE)


def _buffers(parallel: bool) -> list[bytearray]:
    if parallel:
        return [bytearray(CHUNK) for _ in range(_RING)]
    if not hasattr(_local, "buffer"):
        _local.buffer = bytearray(CHUNK)
    return [_local.buffer]


def _source_problem(what: str, error: OSError) -> CopyError:
    return CopyError(f"{what}: {reason(error)}.", transient=error.errno not in _LASTING)


def _write(target: int, chunk: memoryview, shown: str, where: bytes) -> None:
    while chunk:
        try:
            chunk = chunk[os.write(target, chunk) :]
        except OSError as error:
            raise write_problem(shown, where, error) from error


def write_problem(shown: str, where: bytes, error: OSError) -> CopyError:
    """Return the problem of a write that failed, naming the file system."""
    return CopyError(f"File {shown!r} cannot be written to the file system at {mount_point(where)!r}: {reason(error)}.")


def require_space(size: int, where: bytes, descriptor: int, shown: str) -> None:
    """Refuse a file that cannot fit, before its first byte (a sparse file of 1 TiB is 1 TiB once it is copied).

    :param descriptor: of a directory on the target's file system.
    :raises CopyError: transient, since space may be freed.
    """
    status = os.fstatvfs(descriptor)
    free = status.f_bavail * status.f_frsize
    if size > free:
        raise CopyError(
            f"File {shown!r} of {size} bytes does not fit on the file system at {mount_point(where)!r}, "
            f"which has {free} bytes free; free some space."
        )


class Sized(Protocol):
    """What has a size in bytes."""

    @property
    def size(self) -> int: ...


S = TypeVar("S", bound=Sized)


def groups(files: Iterable[S], most_files: int, most_bytes: int) -> Iterator[list[S]]:
    """Share files out in groups: handing over a small file by itself costs as much as copying it."""
    group: list[S] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.size
        if len(group) >= most_files or size >= most_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def changed(path: bytes) -> CopyError:
    """Return the problem of a file whose stamps before and after reading differ."""
    return CopyError(f"File {display(path)!r} changed while it was read; it is moved again when it is quiet.")


def note(outcome: FileOutcome, error: Exception, path: bytes) -> None:
    """Write an error of one file into its outcome."""
    problem = _as_problem(error, display(path))
    outcome.error, outcome.transient, outcome.vanished = str(problem), problem.transient, problem.vanished


def _as_problem(error: Exception, shown: str) -> CopyError:
    """Return any error of one file as its problem."""
    if isinstance(error, CopyError):
        return error
    if isinstance(error, OSError):
        return CopyError(f"File {shown!r} cannot be moved: {reason(error)}.")
    if isinstance(error, DmException):
        return CopyError(error.message)
    raise error
