"""Log files of services and commands: rotating, scrubbed, with the request id in each line.

Only the ``main`` of a service or command calls :func:`configure`; importing DM changes no logging. A full disk, a
vanished directory or a file moved away by logrotate never stops the program: lines that cannot be written are
counted, and the count is written when the file works again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from dm.common.errors import ConfigurationError

REQUEST_ID: ContextVar[str] = ContextVar("dm_request_id", default="-")
MAX_BYTES = 50 << 20
KEEP = 10
RETRY_SECONDS = 1.0
_MARK = "***"

_SECRET = re.compile(
    r"""(?ix)
    (?P<name> [\w-]* (?: password | passwd | secret | token | sessionid | cookie | authorization | dm-grant ) [\w-]*
        ['"]? \s* (?: = | : (?!//) ) \s* (?: bearer \s+ | basic \s+ | \w+= (?=\S) )? )
    (?: b?'[^']*' | b?"[^"]*" | [^\s,;&'"})\]]+ )
    """
)
_URL_PASSWORD = re.compile(r"(?P<head>\w+://[^\s/:@]*:)[^\s/@]+(?=@)")
_CONTROL = {code: f"\\x{code:02x}" for code in [*range(32), 127]} | {10: "\\n", 13: "\\r", 9: "\t"}


def scrub(text: str) -> str:
    """Return the text with the values of passwords, secrets, tokens, cookies and URL credentials replaced."""
    return _URL_PASSWORD.sub(rf"\g<head>{_MARK}", _SECRET.sub(rf"\g<name>{_MARK}", text))


@contextmanager
def request(request_id: str) -> Iterator[None]:
    """Put a request id into every line logged inside (per thread and asyncio task)."""
    token = REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        REQUEST_ID.reset(token)


class LineFormatter(logging.Formatter):
    """``time level service request logger: message``; one line per message, control characters shown, no secrets."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service} %(request_id)s %(name)s: %(message)s")
        self.default_time_format, self.default_msec_format = "%Y-%m-%d %H:%M:%S", "%s.%03d"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Format the line; a line break inside a value cannot forge another line."""
        record.request_id = REQUEST_ID.get()
        record.message = record.message.translate(_CONTROL)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Format message and traceback, then scrub both."""
        return scrub(super().format(record))


class SteadyFileHandler(logging.Handler):
    """A file handler that rotates by size and outlives its disk.

    :param path: the log file; its directory is made when missing.
    :param max_bytes: rotate before the file would grow beyond this.
    :param keep: how many rotated files ``path.1`` ... ``path.N`` stay; 0 keeps none.
    """

    def __init__(self, path: str | os.PathLike[str], max_bytes: int = MAX_BYTES, keep: int = KEEP) -> None:
        super().__init__()
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.keep = keep
        self.lost = 0
        self._descriptor = -1
        self._retry_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record. Never raises and never prints: a service must outlive its log."""
        try:
            line = self.format(record)
        except Exception as error:  # a wrong format argument somewhere must not stop the work it reports on
            line = f"unformattable record from {record.pathname}:{record.lineno}: {error!r}"
        if self._descriptor < 0 and time.monotonic() < self._retry_at:
            self.lost += 1
            return
        try:
            self._write(line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError:
            self.lost += 1
            self._close_file()
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def reopen(self) -> None:
        """Close the file; the next line opens it again."""
        self.acquire()
        try:
            self._close_file()
        finally:
            self.release()

    def close(self) -> None:
        """Close for good."""
        self.reopen()
        super().close()

    def _write(self, data: bytes) -> None:
        self._follow_path()
        if 0 < self.max_bytes < os.fstat(self._descriptor).st_size + len(data):
            self._rotate()
        if self.lost:
            notice = f"{self.lost} log lines could not be written before this one.\n"
            self._write_all(notice.encode())
            self.lost = 0
        self._write_all(data)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _follow_path(self) -> None:
        """Open the file, again when somebody moved or removed it."""
        if self._descriptor >= 0 and not self._is_current():
            self._close_file()
        if self._descriptor < 0:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o640)

    def _is_current(self) -> bool:
        try:
            there = self.path.stat()
        except OSError:
            return False
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _rotate(self) -> None:
        """Shift the numbered files. Another process with the same log may do so too: the lock lets one do it."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if self._is_current() and os.fstat(self._descriptor).st_size > 0:
            if self.keep:
                for number in range(self.keep - 1, 0, -1):
                    older = self._numbered(number)
                    if older.exists():
                        older.replace(self._numbered(number + 1))
                self.path.replace(self._numbered(1))
            else:
                self.path.unlink()
        self._close_file()
        self._follow_path()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Logging:
    """What :func:`configure` set up; a context manager, or call :meth:`close` to undo it."""

    def __init__(self, handlers: list[logging.Handler], level: int) -> None:
        self.handlers = handlers
        root, ours = logging.getLogger(), logging.getLogger("dm")
        self._before = (root.level, ours.level)
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(max(level, logging.WARNING))  # libraries are of interest when they complain
        ours.setLevel(level)

    def reopen(self) -> None:
        """Reopen log files (for SIGHUP; a file that was moved away is noticed without it)."""
        for handler in self.handlers:
            if isinstance(handler, SteadyFileHandler):
                handler.reopen()

    def close(self) -> None:
        """Remove the handlers and restore the levels."""
        root, ours = logging.getLogger(), logging.getLogger("dm")
        for handler in self.handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(self._before[0])
        ours.setLevel(self._before[1])

    def __enter__(self) -> Logging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def configure(
    service: str,
    file: str | os.PathLike[str] | None = None,
    level: str = "INFO",
    *,
    max_bytes: int = MAX_BYTES,
    keep: int = KEEP,
    stderr: bool = False,
) -> Logging:
    """Set up logging of a program; only its ``main`` calls this.

    :param service: name in each line.
    :param file: log file; ``None`` logs to standard error.
    :param level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``, for DM's own loggers; libraries log warnings.
    :param max_bytes: size in bytes at which the file rotates. :param keep: rotated files to keep.
    :param stderr: also log to standard error (services in the foreground).
    :raises ConfigurationError: unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(f"Log level {level!r} is unknown; choose DEBUG, INFO, WARNING or ERROR.")
    handlers: list[logging.Handler] = []
    if file is not None:
        handlers.append(SteadyFileHandler(file, max_bytes, keep))
    if stderr or file is None:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(LineFormatter(service))
    return Logging(handlers, number)


class LoggingManager:
    """Loggers under their published name (``dm.common.utility.loggingManager``); the root logger is never touched."""

    _instance: ClassVar[LoggingManager | None] = None

    @classmethod
    def getInstance(cls) -> LoggingManager:
        """Return the one object of this class."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def getLogger(self, name: str = "dm") -> logging.Logger:
        """Return a logger of that name below ``dm``."""
        return logging.getLogger(name if name == "dm" or name.startswith("dm.") else f"dm.{name}")

    def setConsoleLogLevel(self, level: str | int) -> None:
        """Set the level of DM's loggers, e.g. ``"DEBUG"``."""
        logging.getLogger("dm").setLevel(level.upper() if isinstance(level, str) else level)
