"""Sessions kept between commands: one small file per service address and user, readable by its owner only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat

from dm.common import environment

_MAX_BYTES = 4096


class SessionFile:
    """The kept session of one user at one service, below ``~/.dm/sessions`` (``DM_HOME`` overrides ``~/.dm``).

    A session that cannot be kept or read is no error: the next command logs in. Links and files of other owners or
    open modes are ignored.
    """

    def __init__(self, url: str, username: str) -> None:
        self.directory = environment.home() / "sessions"
        self.path = self.directory / hashlib.sha256(f"{url}\n{username}".encode()).hexdigest()

    def load(self) -> str | None:
        """Return the kept session id, or ``None``."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                return None
            text = stream.read(_MAX_BYTES)
        try:
            return text.decode("ascii").strip() or None
        except UnicodeDecodeError:
            return None

    def save(self, session: str | None) -> None:
        """Keep the session id in one step; ``None`` forgets it."""
        with contextlib.suppress(OSError):
            if session is None:
                self.path.unlink(missing_ok=True)
                return
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.directory.is_symlink() or self.directory.stat().st_uid != os.geteuid():
                return
            self.directory.chmod(0o700)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as stream:
                stream.write(session)
            temporary.replace(self.path)
