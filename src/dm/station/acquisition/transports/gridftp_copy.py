"""Running globus-url-copy: URLs that name any file, one process per list, and what it said of which file."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dm.common.errors import ConfigurationError, ServiceUnavailable, TransferError
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings, Server, ServersSettings
from dm.station.acquisition.transports.programs import started

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./")
_POLL_SECONDS = 0.25
_SPARE_SECONDS = 15.0
_RESTARTED_FROM = 32 << 20
_NOISE = re.compile(rb"^(?:\d{3}[ -])*|^(?:continuing on error|error|globus_xio|globus_ftp_client): *")
_TELLING = re.compile(rb"No space left on device|Disk quota exceeded|Read-only file system")


def quoted(path: bytes) -> str:
    """Return an absolute path as globus-url-copy understands it in a URL, whatever bytes it holds."""
    return "".join(chr(sign) if sign in _PLAIN else f"%{sign:02X}" for sign in path)


def local_url(path: bytes) -> str:
    """Return the URL of a file of this machine."""
    return f"file://{quoted(path)}"


def url(end: str, servers: Sequence[Server], path: bytes) -> str:
    """Return the URL of a file on servers; several of them are used in turn, so their place is held by ``@end``.

    :param end: ``source`` or ``destination``.
    """
    host = f"{servers[0].host}:{servers[0].port}" if len(servers) == 1 else f"@{end}"
    return f"{servers[0].scheme}://{host}{quoted(path)}"


def place(shown: ServersSettings, path: bytes, what: str) -> bytes:
    """Return a path as the servers of a machine call it.

    :raises TransferError: they do not show it.
    """
    above = os.fsencode(shown.directory.rstrip("/")) + b"/"
    if not (path + b"/").startswith(above):
        raise TransferError(
            f"{what} is not below {shown.directory!r}, which its GridFTP servers show; correct "
            "acquisition.transports.gridftp."
        )
    return b"/" + path[len(above) :]


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    :param code: exit code, negative for a signal. :param said: its standard error.
    """

    code: int
    said: bytes

    @property
    def killed(self) -> bool:
        """Whether somebody ended it: that says nothing of the files."""
        return self.code < 0

    @property
    def full(self) -> bool:
        """Whether the target's file system takes no more."""
        return _TELLING.search(self.said) is not None

    def complaint(self, name: str) -> str:
        """Return what was said of one file, or empty text."""
        wanted = re.compile(rb"[/ ]" + re.escape(name.encode()) + rb"(?![\w.-])")
        return next((_sentence(part) for part in self.said.split(b"\n\n") if wanted.search(part)), "")

    def sentence(self) -> str:
        """Return what it said, for an error text."""
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"
        parts = [part for part in self.said.split(b"\n\n") if part.strip() and b"There w" not in part]
        return f"globus-url-copy {how}: {_sentence(parts[0]) if parts else 'no reason given'}"


class Connections:
    """Shares connections out among the runs that go on at the same time: more of them only get in each other's way.

    :param most: for a run that is alone; each of several gets fewer, but two if there are two.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def share(self) -> Iterator[int]:
        """Lend connections for a run; yields how many."""
        with self._lock:
            self._running += 1
            mine = max(min(2, self._most), self._most // self._running)
        try:
            yield mine
        finally:
            with self._lock:
                self._running -= 1


def copy(
    pairs: Sequence[tuple[str, str]],
    directory: str,
    settings: GridFtpSettings,
    environment: Mapping[str, str],
    *,
    connections: int,
    sizes: Iterable[int],
    hosts: Mapping[str, Sequence[Server]],
    stop: threading.Event,
) -> Ended:
    """Let globus-url-copy carry a list.

    :param pairs: from where to where, URLs.
    :param directory: a private one for the list. :param connections: to use at the same time.
    :param sizes: of the files, bytes.
    :param hosts: ``source`` and ``destination`` -> the servers to use in turn.
    :param stop: when set, the run is ended.
    :raises ConfigurationError: it is not installed. :raises TransferError: nothing moved for too long.
    :raises ServiceUnavailable: stopped.
    """
    listed = os.path.join(directory, "list")
    with open(listed, "w", encoding="ascii") as stream:
        stream.writelines(f"{here} {there}\n" for here, there in pairs)
    command = [
        settings.program,
        "-fast",
        "-c",
        "-f",
        listed,
        "-cc",
        str(min(connections, len(pairs))),
        *_options(settings, max(sizes), hosts),
    ]
    if any(len(servers) > 1 for servers in hosts.values()):
        command += ["-af", _aliases(os.path.join(directory, "hosts"), hosts)]
    try:
        with started(command, environment) as process:
            return _watched(process, settings, stop, remote=len(hosts) == 2)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"Program {settings.program!r} is not installed; install the package globus-gass-copy-progs."
        ) from error


def _aliases(path: str, hosts: Mapping[str, Sequence[Server]]) -> str:
    """Write the file that says which servers stand for an end."""
    with open(path, "w", encoding="ascii") as stream:
        for end, servers in hosts.items():
            if len(servers) > 1:
                stream.write(f"@{end}\n")
                stream.writelines(f"{one.host}:{one.port}\n" for one in servers)
    return path


def _options(settings: GridFtpSettings, largest: int, hosts: Mapping[str, Sequence[Server]]) -> list[str]:
    """Return the options that depend on settings and on what is moved."""
    options = ["-st", str(settings.io_timeout)]
    if settings.parallel:
        options += ["-p", str(settings.parallel)]
    if settings.tcp_buffer:
        options += ["-tcp-bs", str(settings.tcp_buffer)]
    if settings.restarts and largest >= _RESTARTED_FROM:
        options += ["-rst", "-rst-retries", str(settings.restarts), "-rst-interval", "1"]
    if settings.pipelining and len(hosts) == 2:
        options.append("-pp")
    if any(one.secure for servers in hosts.values() for one in servers):
        options += {"safe": ["-dcsafe"], "private": ["-dcpriv"]}.get(settings.data_channel, [])
    return options


def _watched(
    process: subprocess.Popen[bytes], settings: GridFtpSettings, stop: threading.Event, *, remote: bool
) -> Ended:
    """Wait for the end, and give up when nothing moves.

    globus-url-copy has a time-out for that as well, but not for all it can wait for.

    :param remote: both ends are servers: nothing passes here that could be watched.
    """
    begun = last = time.monotonic()
    moved = -1
    while True:
        try:
            _, said = process.communicate(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        else:
            return Ended(process.returncode, said)
        now = time.monotonic()
        if (count := _moved(process.pid)) != moved or remote:
            moved, last = count, now
        if stop.is_set():
            raise ServiceUnavailable("The transfer was given up because the service stops; it is repeated later.")
        if now - last > settings.io_timeout + _SPARE_SECONDS or now - begun > settings.batch_timeout:
            raise TransferError(
                f"globus-url-copy moved nothing for {now - last:.0f} s and was stopped after {now - begun:.0f} s; "
                "it is tried again."
            )


def _moved(pid: int) -> int:
    """Return how many bytes a process has read and written so far."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as stream:
            return sum(int(line.split()[1]) for line in stream if line.startswith(("rchar", "wchar")))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0


def _sentence(text: bytes) -> str:
    """Return a complaint in one line, without what repeats itself."""
    parts: list[bytes] = []
    for raw in text.split(b"\n"):
        line = raw.strip()
        while (bare := _NOISE.sub(b"", line)) != line:
            line = bare
        line = line.rpartition(b": ")[2] if line.startswith(b"A system call failed") else line
        if line and line not in (b"End.", b"the server responded with an error") and line not in b" ".join(parts):
            parts.append(line)
    return b"; ".join(parts)[:300].decode("utf-8", "backslashreplace").rstrip(".")
