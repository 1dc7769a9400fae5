"""What kind of file it is, from its bytes; only the kinds that say something inside are worth a parser."""

from __future__ import annotations

import mimetypes
import os
import stat

from dm.station.acquisition.plugins import metadata_spec

HDF5 = "application/x-hdf5"
SPEC = "text/x-spec"
_HEAD = 1 << 12
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def opened(path: str) -> int:
    """Open a file for reading, never waiting for a fifo's writer and not following a link.

    :param path: text by ``os.fsdecode``. :raises OSError: not there, not readable, or (``ValueError``) no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def kind_of(descriptor: int, path: str) -> str:
    """Return the MIME type of an open file; :data:`HDF5` and :data:`SPEC` are known by content, others by name."""
    head = os.pread(descriptor, _HEAD, 0)
    if _is_hdf5(descriptor, head):
        return HDF5
    if metadata_spec.is_spec(head):
        return SPEC
    guessed = mimetypes.guess_type(path, strict=False)[0]
    return guessed or ("text/plain" if head and b"\0" not in head else "application/octet-stream")


def _is_hdf5(descriptor: int, head: bytes) -> bool:
    """Whether the signature is at 0, 512, 1024, 2048 ...: a user block (XMP, say) may come before it."""
    if head.startswith(_SIGNATURE):
        return True
    size, offset = os.fstat(descriptor).st_size, 512
    while offset < size:
        found = head[offset : offset + 8] if offset < _HEAD else os.pread(descriptor, 8, offset)
        if found == _SIGNATURE:
            return True
        offset *= 2
    return False
