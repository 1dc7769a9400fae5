"""Many downloads at once into one directory: what is there already stays, what was begun goes on, all is verified.

File names come from a service and are not trusted: each is a path below the destination, every directory on the way is
opened without following links, so nothing is ever written elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from errno import EDQUOT, EISDIR, ENOSPC, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dm.common import paths
from dm.common.digests import digest_stream
from dm.common.download import Download
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigurationError,
    DmException,
    InvalidSession,
    ServiceUnavailable,
)
from dm.common.landing import Leftovers, leftovers

if TYPE_CHECKING:
    from dm.common.rest import RestClient

MOST_PARALLEL = 32
_AHEAD = 256  # files in work or done before the oldest of them is told
_SAME = 1_000  # nanoseconds two times may differ: services tell them in seconds, as floating point numbers
_OF_ALL = (AuthenticationError, AuthorizationError, ConfigurationError, InvalidSession)  # the next file will fare alike
_AWAY = (CommunicationError, ServiceUnavailable)
_NO_PLACE = (ENOSPC, EDQUOT, EROFS)

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted(Generic[T]):
    """A file to have.

    :param path: canonical relative bytes, below the destination. :param query: of the request for it.
    :param mtime_ns: its time of last change, which the local file gets; ``None``: unknown.
    :param note: what the caller wants to see again with the outcome.
    """

    path: bytes
    query: Mapping[str, Any]
    size: int
    digests: Mapping[str, str]
    mtime_ns: int | None
    note: T


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of it.

    :param fetched: ``False``: an equal file was there. :param error: why it could not be had.
    """

    wanted: Wanted[T]
    fetched: bool = False
    error: DmException | OSError | None = None


class _StoppedError(Exception):
    """Nobody wants the rest any more."""


class Downloads:
    """Downloads from one service into one directory.

    :param route: of the service, gives one file for a :attr:`Wanted.query`.
    :param destination: made if missing; it may be a link, what lies in it may not.
    :param verify: read files that look as if they were the wanted ones, instead of trusting size and time.
    :param progress: called with the count of bytes that are there so far, from any thread, one call at a time.
    """

    def __init__(
        self,
        client: RestClient,
        route: str,
        destination: str | os.PathLike[str],
        *,
        verify: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._client = client
        self._route = route
        self.destination = Path(destination)
        self._verify = verify
        self._progress = progress
        self._bytes = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._left: dict[bytes, Leftovers] = {}
        self._touched: set[bytes] = set()
        self._mode = 0o777 & ~_umask()

    def local(self, wanted: Wanted[Any]) -> str:
        """Return where a file comes to lie."""
        return os.fsdecode(os.path.join(os.fsencode(self.destination), wanted.path))  # noqa: PTH118 - bytes

    def run(self, files: Iterable[Wanted[T]], parallel: int = 4) -> Iterator[Outcome[T]]:
        """Have all these files; yield what became of each, in their order.

        Trouble that the next file would have, too, ends it: login refused, not allowed, disk full, service away.

        :param parallel: how many at the same time, at most 32.
        :raises DmException: trouble of that kind; everything before it has been yielded.
        """
        self.destination.mkdir(parents=True, exist_ok=True)
        workers = max(1, min(parallel, MOST_PARALLEL))
        wanted, waiting, away = iter(files), deque[Future[Outcome[T]]](), 0
        pool = ThreadPoolExecutor(workers, thread_name_prefix="download")
        try:
            more = True
            while more or waiting:
                while more and len(waiting) < _AHEAD:
                    try:
                        waiting.append(pool.submit(self.have, next(wanted)))
                    except StopIteration:
                        more = False
                    if waiting and waiting[0].done():
                        break
                if not waiting:
                    continue
                outcome = waiting.popleft().result()
                away = away + 1 if isinstance(outcome.error, _AWAY) else 0
                if outcome.error is not None and (away > workers or _is_of_all(outcome.error)):
                    raise outcome.error
                yield outcome
        finally:
            self._stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._sync()

    def one(self, wanted: Wanted[T]) -> Outcome[T]:
        """Have one file, in this thread. :raises DmException, OSError: it cannot be had."""
        self.destination.mkdir(parents=True, exist_ok=True)
        try:
            outcome = self.have(wanted)
        finally:
            self._sync()
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def have(self, wanted: Wanted[T]) -> Outcome[T]:
        """Have one file; the directories must be made durable afterwards."""
        if self._stopped.is_set():
            raise _StoppedError
        counted = 0

        def told(received: int, _total: int) -> None:
            nonlocal counted
            if self._stopped.is_set():
                raise _StoppedError
            self._count(received - counted)
            counted = received

        try:
            with paths.opened_parent(os.fsencode(self.destination), wanted.path, self._mode) as (directory, name):
                fetched = not self._is_there(directory, name, wanted)
                if fetched:
                    parent = wanted.path.rpartition(b"/")[0]
                    known = self._leftovers(parent, directory)
                    Download(self._client, self._route, directory, name, wanted.query, {}).run(
                        wanted.size, wanted.digests, told, mtime_ns=wanted.mtime_ns, known=known
                    )
                    self._touched.add(parent)
        except (DmException, OSError) as error:
            self._count(wanted.size - counted)
            return Outcome(wanted, error=error)
        self._count(wanted.size - counted)
        return Outcome(wanted, fetched)

    def _is_there(self, directory: int, name: bytes, wanted: Wanted[Any]) -> bool:
        """Whether exactly this file lies there: by size and time, else by its digest."""
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        if not stat.S_ISREG(status.st_mode) or status.st_size != wanted.size:
            return False
        same_time = wanted.mtime_ns is not None and _same_time(status.st_mtime_ns, wanted.mtime_ns)
        if same_time and not self._verify:
            return True
        if not wanted.digests:
            return same_time
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=directory)
        except OSError:  # not to be read: to be replaced
            return False
        with open(descriptor, "rb", buffering=0) as stream:  # noqa: PTH123
            equal = digest_stream(stream, wanted.digests)[1] == dict(wanted.digests)
            if equal and not same_time and wanted.mtime_ns is not None:
                with contextlib.suppress(OSError):  # somebody else's file: it is read again the next time
                    os.utime(descriptor, ns=(wanted.mtime_ns, wanted.mtime_ns))
        return equal

    def _leftovers(self, parent: bytes, directory: int) -> Leftovers:
        """Return what earlier programs left in a directory; looked up once."""
        with self._lock:
            known = self._left.get(parent)
            if known is None:
                known = self._left[parent] = leftovers(directory)
        return known

    def _count(self, count: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._bytes += count
                self._progress(self._bytes)

    def _sync(self) -> None:
        """Make the names durable, directory by directory, also those of directories made on the way."""
        all_touched = {
            b"/".join(parts[:n]) for parts in (p.split(b"/") for p in self._touched) for n in range(len(parts) + 1)
        }
        for parent in all_touched:
            with (
                contextlib.suppress(DmException, OSError),  # gone meanwhile, or a file system that has no such thing
                paths.opened_parent(os.fsencode(self.destination), parent + b"/." if parent else b".") as (
                    directory,
                    _,
                ),
            ):
                os.fsync(directory)
        self._touched.clear()


def _umask() -> int:
    """Return the process's umask; asking the kernel for it with ``umask()`` would change it for all threads."""
    with (
        contextlib.suppress(OSError, ValueError),
        Path("/proc/self/status").open(encoding="ascii", errors="replace") as lines,
    ):
        for line in lines:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o077


def sentence(error: DmException | OSError) -> str:
    """Return an error of a file in words."""
    if isinstance(error, DmException):
        return str(error) or type(error).__name__
    return f"{error.strerror or error}."


def _same_time(first: int, second: int) -> bool:
    """Whether two times are equal, as far as the file system (perhaps one of whole seconds) kept them."""
    return abs(first - second) <= _SAME or (
        first % 1_000_000_000 == 0 and first // 1_000_000_000 == second // 1_000_000_000
    )


def _is_of_all(error: DmException | OSError) -> bool:
    return isinstance(error, _OF_ALL) or (isinstance(error, OSError) and error.errno in _NO_PLACE)
