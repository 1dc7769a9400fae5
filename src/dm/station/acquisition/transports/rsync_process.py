"""Running rsync: one program version that is safe to run, no shell, its own process group, and bytes-safe output."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dm.common.errors import CommunicationError, ConfigurationError, DmException, ServiceUnavailable, TransferError
from dm.station.acquisition.transports.programs import kept, started

OLDEST_SAFE = (3, 4, 3)
FILE_IO = 11
PARTIAL = 23
VANISHED = 24
_UNREACHABLE = {5, 10, 12, 30, 35, 124, 125, 126, 127, 255}
_FULL = ("No space left on device", "Disk quota exceeded", "Read-only file system")
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "KRB5CCNAME", "TMPDIR")
_ESCAPE = re.compile(rb"\\#([0-7]{3})")
_POLL_SECONDS = 0.25
_STDERR_LIMIT = 200_000
_SAID = 480  # characters of what rsync said, in an error sentence


@dataclass(frozen=True)
class Result:
    """How a run ended.

    :param code: exit code, negative for a signal. :param lines: standard output, unescaped, without line ends.
    :param complaints: standard error, unescaped, without line ends.
    """

    code: int
    lines: list[bytes]
    complaints: list[bytes]

    @property
    def partial(self) -> bool:
        """Whether some files failed while the others went through, or the target is full."""
        return self.code in (PARTIAL, VANISHED) or (self.code != 0 and self.full)

    @property
    def full(self) -> bool:
        """Whether the target's file system takes no more.

        The other side's text is lost now and then, as it ends before all it said has come over; its code is not.
        """
        return self.code == FILE_IO or any(word.encode() in line for line in self.complaints for word in _FULL)

    def complaint(self, path: bytes) -> str:
        """Return what was said of one file, or empty text."""
        for line in self.complaints:
            if b"/" + path + b'"' in line or b'"' + path + b'"' in line:
                return line.decode("utf-8", "backslashreplace")
        return ""

    def skipped(self, path: bytes) -> bool:
        """Whether the path was left out because it is no regular file."""
        return b'skipping non-regular file "' + path + b'"' in self.lines

    def sentence(self) -> str:
        """Return what rsync said, for an error text."""
        lines = [line.strip() for line in self.complaints]
        # ssh frames its warnings with rows of this sign, and puts what matters last
        lines = [line for line in lines if not line.startswith((b"rsync error:", b"@@", b"@  "))] or lines
        text = b"; ".join(lines).decode("utf-8", "backslashreplace").rstrip(".")
        if len(text) > _SAID:
            text = f"{text[: _SAID // 3]} ... {text[-_SAID // 3 * 2 :]}"
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"
        unsaid = "the file system on the other side could not be written, it may be full (No space left on device)"
        return f"rsync {how}: {text or (unsaid if self.code == FILE_IO else 'no reason given')}"

    def failure(self, what: str) -> DmException:
        """Return the exception for a run that moved nothing useful."""
        if self.code in _UNREACHABLE:
            return CommunicationError(f"{what} cannot be reached: {self.sentence()}.")
        return TransferError(f"{what}: {self.sentence()}.")


@lru_cache(maxsize=8)
def require_version(program: str) -> tuple[int, ...]:
    """Return the version of rsync.

    :raises ConfigurationError: not installed, or older than 3.4.3, whose faults let the other side write and read
        beyond the directory it was given.
    """
    found = shutil.which(program)
    if found is None:
        raise ConfigurationError(f"Program {program!r} is not installed; install rsync 3.4.3 or newer.")
    done = subprocess.run([found, "--version"], capture_output=True, check=False, timeout=20, env=environment())
    match = re.search(rb"version v?(\d+)\.(\d+)\.(\d+)", done.stdout)
    version = tuple(int(part) for part in match.groups()) if match else (0,)
    if version < OLDEST_SAFE:
        shown = ".".join(str(part) for part in version) if match else "unknown"
        raise ConfigurationError(
            f"Program {found!r} is rsync {shown}, which has known holes; install rsync 3.4.3 or newer."
        )
    return version


def environment() -> dict[str, str]:
    """Return the environment rsync runs in: nothing that changes what it does, times in UTC."""
    return {**kept(_KEPT_VARIABLES), "LC_ALL": "C", "TZ": "UTC0"}


def unescape(line: bytes) -> bytes:
    r"""Return the bytes rsync writes as ``\#ooo``."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), line)


def run(
    arguments: Sequence[str | bytes],
    *,
    names: Sequence[bytes] = (),
    limit_seconds: float,
    stop: threading.Event | None = None,
    aborted: Callable[[], bool] = lambda: False,
) -> Result:
    """Run rsync to its end.

    :param names: written to its standard input, each followed by NUL (``--files-from=- --from0``).
    :param limit_seconds: after which it is killed, with all processes it started.
    :param stop: when set, it is killed too. :param aborted: the same when it returns true.
    :raises TransferError: it did not end in time. :raises ServiceUnavailable: stopped.
    """
    with started(arguments, environment()) as process:
        writing: bytes | None = b"".join(name + b"\0" for name in names)
        deadline = time.monotonic() + limit_seconds
        while True:
            try:
                output, complaints = process.communicate(writing, timeout=_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                writing = None
            if stop is not None and stop.is_set():
                raise ServiceUnavailable("The transfer was given up because the service stops; it is repeated later.")
            if aborted():
                raise ServiceUnavailable("The transfer was given up because nobody wants it any more.")
            if time.monotonic() > deadline:
                raise TransferError(f"rsync did not end in {limit_seconds:g} s and was stopped; it is tried again.")
    return Result(process.returncode, _lines(output), _lines(complaints[:_STDERR_LIMIT]))


def stream(arguments: Sequence[str | bytes], *, names: Sequence[bytes], what: str) -> Iterator[bytes]:
    """Run rsync and yield its output line by line, unescaped, while it runs.

    rsync's own time-out ends it when the other side says nothing; a caller that stops reading ends it as well.

    :raises CommunicationError: :raises TransferError: it failed; lines may have been yielded before.
    """
    with tempfile.TemporaryFile() as complaints, started(arguments, environment(), complaints.fileno()) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it may have ended already; its exit code says why
            process.stdin.write(b"".join(name + b"\0" for name in names))
            process.stdin.close()
        for line in process.stdout:
            yield unescape(line.rstrip(b"\n"))
        code = process.wait()
        complaints.seek(0)
        result = Result(code, [], _lines(complaints.read(_STDERR_LIMIT)))
    if code not in (0, VANISHED):
        raise result.failure(what)


def _lines(data: bytes) -> list[bytes]:
    return [unescape(line) for line in data.split(b"\n") if line]
