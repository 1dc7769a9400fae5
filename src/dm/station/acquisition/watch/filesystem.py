"""Whether inotify sees what happens in a directory: not what other machines write over the network."""

from __future__ import annotations

import os
import re

_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "gpfs", "lustre", "beegfs"}
    | {"orangefs", "pvfs2", "panfs", "wekafs", "davfs", "sshfs"}
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


def _unescape(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text)


def filesystem_of(path: bytes, mountinfo: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that holds ``path``, e.g. ``ext4`` or ``nfs4``; empty when unknown."""
    real = os.path.realpath(path)
    best, kind = b"", ""
    try:
        with open(mountinfo, "rb") as lines:
            for line in lines:
                left, _, right = line.partition(b" - ")
                point = _unescape(left.split()[4])
                prefix = point if point.endswith(b"/") else point + b"/"
                if (real == point or real.startswith(prefix)) and len(point) >= len(best):
                    best, kind = point, right.split()[0].decode()
    except OSError:
        return ""
    return kind


def has_events(path: bytes) -> bool:
    """Whether events of ``path`` can be relied upon as hints (its file system is of this machine alone)."""
    kind = filesystem_of(path)
    return bool(kind) and kind not in _REMOTE and not kind.startswith("fuse")
