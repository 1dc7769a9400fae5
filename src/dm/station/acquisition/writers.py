"""Does anybody have a file open for writing? Proven by asking the kernel for a read lease.

Linux grants a read lease (``fcntl(2)``, F_SETLEASE) only while no descriptor and no mapping anywhere on the machine can
write to the file, and only to the file's owner or a process with CAP_LEASE. The lease is given back at once: somebody
who opens the file at that instant waits some microseconds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat

from dm.station.acquisition.transports.base import FileStamp, storable

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def unwritten(path: bytes, stamp: FileStamp) -> bool | None:
    """Tell whether a regular file is as its stamp says and nobody has it open for writing.

    :returns: ``None`` when that cannot be told: another owner's file, or a file system without leases.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if (status.st_ino, status.st_size, storable(status.st_mtime_ns)) != (stamp.inode, stamp.size, stamp.mtime_ns):
            return False
        # Who opens the file while we hold the lease makes the kernel tell us: by a signal that is ignored by default,
        # as the usual SIGIO would end the process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        # A writer may have come and gone between the look and the lease, but not between the lease and this look.
        after = os.fstat(descriptor)
        return (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)
