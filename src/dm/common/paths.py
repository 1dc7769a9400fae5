"""Paths: bytes inside, text outside, never out of their root.

Any bytes but NUL and slash are a legal file name. Inside, a relative path is ``bytes``; on the wire and in Python
records it is UTF-8 text with surrogateescape (whatever the locale of the process: both ends must agree), which JSON
carries as escapes and which turns back into the same bytes. Databases cannot store lone surrogates: they keep the bytes
and a display text beside them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dm.common.errors import DmException, InvalidArgument, ObjectNotFound, ServiceUnavailable

MAX_PATH = 4095
MAX_NAME = 255
_SHOWN = 300  # of a path in an error sentence

# What a path itself is to blame for; anything else (too many open files, a failing disk) may pass.
_PERMANENT = {errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL}


def encode(text: str) -> bytes:
    """Return the bytes of a path text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidArgument(f"Path {text[:_SHOWN]!a} is not encodable as a file name.") from None


def decode(path: bytes) -> str:
    """Return the path as text that :func:`encode` turns back into the same bytes."""
    return path.decode("utf-8", "surrogateescape")


def display(path: bytes) -> str:
    """Return the path as valid Unicode for people and databases; undecodable bytes show as ``\\xNN``."""
    return path.decode("utf-8", "backslashreplace")


def relative(path: str | bytes) -> bytes:
    """Check a relative path and return its canonical bytes.

    :raises InvalidArgument: empty, absolute, a ``..`` component, NUL, or over the limits (255 bytes a name, 4,095
        bytes a path).
    """
    raw = encode(path) if isinstance(path, str) else path
    shown = display(raw[:_SHOWN])
    if b"\0" in raw:
        raise InvalidArgument(f"Path {shown!r} contains a NUL byte.")
    if raw.startswith(b"/"):
        raise InvalidArgument(f"Path {shown!r} is absolute; give it relative to the experiment.")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise InvalidArgument(f"Path {shown!r} leaves the experiment by '..'.")
    if not parts:
        raise InvalidArgument("The path is empty; name a file.")
    if any(len(part) > MAX_NAME for part in parts):
        raise InvalidArgument(f"Path {shown!r} has a name of more than {MAX_NAME} bytes.")
    joined = b"/".join(parts)
    if len(joined) > MAX_PATH:
        raise InvalidArgument(f"Path of {len(joined)} bytes is longer than {MAX_PATH}.")
    return joined


@contextmanager
def opened_parent(root: str | bytes, path: bytes, create_mode: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Open the directory that holds ``path`` beneath ``root``, one component at a time, following no link.

    :param root: an absolute directory, itself trusted.
    :param path: canonical relative bytes (see :func:`relative`).
    :param create_mode: make missing directories with this mode; ``None`` refuses instead.
    :yields: a directory descriptor (closed afterwards) and the last name.
    :raises ObjectNotFound: a directory is missing. :raises InvalidArgument: a component is ``..``, a link or no
        directory, or may not be passed. :raises ServiceUnavailable: an error of the system that may pass.
    """
    *directories, name = path.split(b"/")
    if name == b".." or b".." in directories:
        raise InvalidArgument(f"Path {display(path[:_SHOWN])!r} leaves its directory by '..'.")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in directories:
            made = False
            try:
                if create_mode is not None:
                    with suppress(FileExistsError):
                        os.mkdir(part, create_mode, dir_fd=descriptor)
                        made = True
                inner = os.open(part, flags, dir_fd=descriptor)
            except OSError as error:
                raise _refusal(error, f"Path {display(path)!r} cannot be followed through {display(part)!r}") from error
            os.close(descriptor)
            descriptor = inner
            if made and create_mode is not None:
                os.fchmod(descriptor, create_mode)  # not by name: it may have become a link to something else
        yield descriptor, name
    finally:
        os.close(descriptor)


@contextmanager
def opened_file(root: str | bytes, path: bytes) -> Iterator[int]:
    """Open a regular file beneath ``root`` for reading, following no link and never hanging on a fifo.

    :yields: the descriptor. :raises ObjectNotFound: missing. :raises InvalidArgument: a link, not a regular file, or
        not to be read. :raises ServiceUnavailable: an error of the system that may pass.
    """
    with opened_parent(root, path) as (parent, name):
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except FileNotFoundError:
            raise ObjectNotFound(f"File {display(path)!r} does not exist.") from None
        except OSError as error:
            raise _refusal(error, f"File {display(path)!r} cannot be opened") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidArgument(f"Path {display(path)!r} is not a regular file.")
        yield descriptor
    finally:
        os.close(descriptor)


def exists(directory: int, name: str | bytes) -> bool:
    """Whether an open directory has an entry of this name, a link that leads nowhere included."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _refusal(error: OSError, sentence: str) -> DmException:
    """Return the exception for an ``OSError`` that a path met."""
    if error.errno == errno.ENOENT:
        return ObjectNotFound(f"{sentence}: it does not exist.")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return InvalidArgument(f"{sentence}: it is a link or no directory.")
    kind = InvalidArgument if error.errno in _PERMANENT else ServiceUnavailable
    return kind(f"{sentence}: {error.strerror}.")
