"""Where a download lands: a hidden part beside its target, which gets the target's name when it is complete.

Everything is done by names in an open directory, so that a directory that becomes a link meanwhile leads nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from dm.common.digests import CHUNK, maker

_MAX_TAG = 120
_PART = re.compile(r"\.([0-9a-f]{20})\.([A-Za-z0-9_-]+)\.dmpart")
Leftovers = Mapping[str, list[str]]


def leftovers(directory: int) -> Leftovers:
    """Return the names of the parts in an open directory by their key: what earlier downloads left."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(directory)):
        if match := _PART.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    return found


class Part:
    """The hidden file a download grows in, ``.<key>.<etag>.dmpart`` beside its target.

    The strong ETag stands in the name, so that a later program can ask the server whether its bytes still hold.

    :param directory: the open directory of the target. :param name: the target's name in it.
    :param address: of what is downloaded; the same target of another address has another part.
    :param algorithms: digests that are kept of its bytes while they come.
    :raises InvalidArgument: an unknown algorithm.
    """

    def __init__(self, directory: int, name: bytes, address: str, algorithms: Iterable[str]) -> None:
        self.directory = directory
        self.target = name
        self.key = hashlib.sha256(name + b"\n" + address.encode()).hexdigest()[:20]
        self.descriptor = -1
        self.name: str | None = None
        self.tag = ""
        self.size = 0
        self.resumed = False
        self._algorithms = list(algorithms)
        for algorithm in self._algorithms:
            maker(algorithm)
        self._digests: dict[str, Any] = {}
        self._digested = 0

    def resume(self, known: Leftovers | None = None) -> None:
        """Take over what an earlier attempt left, if it is ours and nobody works on it.

        :param known: see :func:`leftovers`; default: looked up now.
        """
        for name in (leftovers(self.directory) if known is None else known).get(self.key, ()):
            tag = _tag_of(name.split(".")[2])
            with contextlib.suppress(OSError):
                flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=self.directory)
                if tag and _claim(descriptor):
                    self._begin(descriptor, name, tag)
                    self.size = os.fstat(descriptor).st_size
                    self.resumed = self.size > 0
                    return
                os.close(descriptor)

    def restart(self, tag: str) -> None:
        """Begin anew with the validator of the current reply; without a usable one the part cannot be resumed."""
        self.discard()
        encoded = _name_of(tag)
        name = f".{self.key}.{encoded}.dmpart"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = -1
        if encoded:
            with contextlib.suppress(OSError):  # something else of that name: leave it alone
                descriptor = os.open(name, flags, 0o666, dir_fd=self.directory)
        if descriptor >= 0 and not _claim(descriptor):  # another program downloads the same just now
            os.close(descriptor)
            descriptor = -1
        if descriptor < 0:
            tag = ""
            name = f".{self.key}.-{os.getpid()}-{id(self):x}.dmpart"
            descriptor = os.open(name, flags | os.O_EXCL, 0o666, dir_fd=self.directory)
        os.ftruncate(descriptor, 0)
        self._begin(descriptor, name, tag)

    def _begin(self, descriptor: int, name: str, tag: str) -> None:
        self.descriptor, self.name, self.tag, self.size = descriptor, name, tag, 0
        self.resumed = False
        self._digests, self._digested = {}, 0

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end."""
        self._digest_until(self.size)
        view = memoryview(chunk)
        while view:
            count = os.pwrite(self.descriptor, view, self.size)
            self.size += count
            view = view[count:]
        for made in self._digests.values():
            made.update(chunk)
        self._digested = self.size

    def digests(self) -> dict[str, str]:
        """Return algorithm -> hex digest of all its bytes."""
        self._digest_until(self.size)
        return {name: made.hexdigest() for name, made in self._digests.items()}

    def _digest_until(self, size: int) -> None:
        if not self._digests:
            self._digests = {name: maker(name) for name in self._algorithms}
        while self._digested < size:
            chunk = os.pread(self.descriptor, min(CHUNK, size - self._digested), self._digested)
            if not chunk:
                break
            for made in self._digests.values():
                made.update(chunk)
            self._digested += len(chunk)

    def publish(self, mtime_ns: int | None = None) -> None:
        """Make the bytes durable and give them their name; the name is durable with the directory.

        :param mtime_ns: the file's time of last change; default: now.
        """
        assert self.name is not None
        if mtime_ns is not None:
            os.utime(self.descriptor, ns=(mtime_ns, mtime_ns))
        os.fsync(self.descriptor)
        os.replace(self.name, self.target, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self.name = None

    def discard(self) -> None:
        """Remove it."""
        if self.name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self.directory)
        self.close()

    def close(self) -> None:
        """Let go of it; what can be resumed stays."""
        descriptor = self.descriptor
        self._begin(-1, "", "")
        self.name = None
        if descriptor >= 0:
            os.close(descriptor)


def _claim(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _name_of(tag: str) -> str:
    """Return a strong ETag as part of a file name, or nothing when it is missing or too long."""
    name = base64.urlsafe_b64encode(tag.encode()).decode().rstrip("=")
    return name if 0 < len(name) <= _MAX_TAG else ""


def _tag_of(name: str) -> str:
    try:
        return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
