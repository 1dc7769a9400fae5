"""POSIX access control lists of open files and directories, where the file system has them.

Directories of experiments carry a default list: whatever anybody makes in them, by whatever tool and umask, is readable
to the group at most and to nobody else. Plain files carry no list of their own; the mode says it all.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
READ, WRITE, EXECUTE = 4, 2, 1

_NOBODY = 0xFFFFFFFF
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_NONE = {errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass(frozen=True, order=True)
class Entry:
    """One line of a list.

    :param tag: what it is about. :param permissions: 0 to 7. :param id: of the user or group, for ``USER``, ``GROUP``.
    """

    tag: int
    permissions: int
    id: int = _NOBODY

    def __str__(self) -> str:
        names = {USER_OBJ: "user:", USER: f"user:{self.id}", GROUP_OBJ: "group:", GROUP: f"group:{self.id}"}
        name = names.get(self.tag) or {MASK: "mask:", OTHER: "other:"}.get(self.tag, f"{self.tag}:")
        return f"{name}:{letters(self.permissions)}"


List = tuple[Entry, ...]
PRIVATE: List = (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 0))
"""The default list of directories of experiments: all for the owner, reading for the group, nothing for others."""


def letters(permissions: int) -> str:
    """Return permissions as ``rwx`` text."""
    return "".join(letter if permissions & bit else "-" for letter, bit in (("r", READ), ("w", WRITE), ("x", EXECUTE)))


def text(entries: Sequence[Entry]) -> str:
    """Return a list as ``setfacl`` takes it."""
    return ",".join(map(str, entries))


def of_mode(mode: int, named: Sequence[Entry] = ()) -> List:
    """Return the list that says what a mode says, and what some users or groups may besides."""
    entries = [Entry(USER_OBJ, mode >> 6 & 7), Entry(GROUP_OBJ, mode >> 3 & 7), Entry(OTHER, mode & 7), *named]
    if named:
        mask = mode >> 3 & 7
        for entry in named:
            mask |= entry.permissions
        entries.append(Entry(MASK, mask))
    return tuple(sorted(entries))


def get(target: int | str | bytes, kind: str) -> List | None:
    """Return a list, or ``None`` where there is none (then the mode alone counts) or the file system has none.

    :param target: descriptor or path. :raises OSError: it cannot be read.
    """
    try:
        raw = os.getxattr(target, kind)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    return tuple(sorted(Entry(tag, bits, number) for tag, bits, number in _ENTRY.iter_unpack(raw[_VERSION.size :])))


def put(descriptor: int, kind: str, entries: List) -> bool:
    """Set a list; ``False`` where the file system has none. :raises OSError: it may not be set."""
    raw = _VERSION.pack(2) + b"".join(_ENTRY.pack(one.tag, one.permissions, one.id) for one in sorted(entries))
    try:
        os.setxattr(descriptor, kind, raw)
    except OSError as error:
        if error.errno in _NONE:
            return False
        raise
    return True


def clear(descriptor: int, kind: str) -> None:
    """Remove a list, if there is one. :raises OSError: it may not be removed."""
    try:
        os.removexattr(descriptor, kind)
    except OSError as error:
        if error.errno not in _NONE:
            raise


def supported(directory: int | str) -> bool:
    """Whether the file system of a directory (descriptor or path) has such lists."""
    try:
        os.getxattr(directory, ACCESS)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True
