"""Whether inotify sees what happens in a directory: not what other machines write over the network."""

from __future__ import annotations

import os
import re
import select
from dataclasses import dataclass
from typing import Literal

Method = Literal["events", "polling", "both"]

#: On the disks or in the memory of this machine: whatever writes there passes through this kernel, which tells us.
#: ``fuseblk`` is a block device of ours, too; ``overlay`` tells of what is written through it, as containers do.
LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "bcachefs", "f2fs", "jfs", "nilfs2", "reiserfs", "ntfs", "ntfs3"}
    | {"vfat", "msdos", "exfat", "hfs", "hfsplus", "udf", "tmpfs", "ramfs", "overlay", "aufs", "fuseblk", "rootfs"}
)
#: On other machines, which write without telling us; also what a hypervisor shares into a virtual machine.
REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "gpfs", "mmfs", "lustre", "beegfs"}
    | {"fhgfs", "orangefs", "pvfs2", "panfs", "wekafs", "davfs", "sshfs", "ncpfs", "coda", "gfs2", "ocfs2", "juicefs"}
    | {"virtiofs", "vboxsf", "vmhgfs", "prl_fs", "acfs"}
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MOUNTINFO = "/proc/self/mountinfo"


def _unescape(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text)


@dataclass(frozen=True)
class Mount:
    """One line of the table of mounts.

    :param number: differs between any two mounts. :param point: where. :param kind: type of file system.
    """

    number: bytes
    point: bytes
    kind: str


def mounts_of(path: bytes, mountinfo: str = _MOUNTINFO) -> list[Mount]:
    """Return the mount that holds ``path``, and those below it; empty when that cannot be told."""
    real = os.path.realpath(path)
    best: Mount | None = None
    below: list[Mount] = []
    try:
        with open(mountinfo, "rb") as lines:
            for line in lines:
                left, _, right = line.partition(b" - ")
                words = left.split()
                mount = Mount(words[0], _unescape(words[4]), right.split()[0].decode())
                if _below(real, mount.point):
                    if best is None or len(mount.point) >= len(best.point):  # later ones lie on top of earlier ones
                        best = mount
                elif _below(mount.point, real):
                    below.append(mount)
    except (OSError, IndexError, ValueError):
        return []
    return [best, *below] if best is not None else []


def _below(path: bytes, point: bytes) -> bool:
    return path == point or path.startswith(point if point.endswith(b"/") else point + b"/")


def filesystem_of(path: bytes, mountinfo: str = _MOUNTINFO) -> str:
    """Return the type of the file system that holds ``path``, e.g. ``ext4`` or ``nfs4``; empty when unknown."""
    found = mounts_of(path, mountinfo)
    return found[0].kind if found else ""


def method_of_type(kind: str) -> Method:
    """Return how files of a type of file system are seen.

    What is neither known to be local nor remote (FUSE above all) gets both: events that may come, and polling.
    """
    base = kind.partition(".")[0]
    if kind in LOCAL:
        return "events"
    return "polling" if kind in REMOTE or kind.partition(".")[2] in REMOTE or base in REMOTE else "both"


def method_of(path: bytes, mountinfo: str = _MOUNTINFO) -> tuple[Method, str]:
    """Return how files of a directory are to be seen, and the type of file system that is the reason."""
    kinds = [mount.kind for mount in mounts_of(path, mountinfo)] or [""]
    methods = [method_of_type(kind) for kind in kinds]
    for method, kind in zip(methods[1:], kinds[1:], strict=True):
        if methods[0] == "events" and method != "events":  # something else is mounted inside
            return "both", kind
    return methods[0], kinds[0] or "unknown"


class MountTable:
    """Tells when something was mounted or unmounted on this machine."""

    def __init__(self) -> None:
        self._file = open(_MOUNTINFO, "rb", buffering=0)  # noqa: SIM115 - closed by close
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)

    def changed(self) -> bool:
        """Whether that happened since the last call."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Release the descriptor."""
        self._file.close()
