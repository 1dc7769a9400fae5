"""One supervisor as an executor sees it: started here, or found again after a restart of the service."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any, cast

import dm
from dm.common.errors import ProcessingError
from dm.station.processing.executors.base import MARKER, OUTPUT_FILE
from dm.station.processing.executors.supervisor.records import RETIRE, SIGNAL, Ended, Journal, Order, StartOrder
from dm.station.processing.processes import boot_id, kill_rest

log = logging.getLogger(__name__)
PREFIX = "g-"
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); del sys.argv[1]; "
    "from dm.station.processing.executors.supervisor.program import main; main(sys.argv[1:])"
)
_CONNECT_PAUSE = 0.02
_RESTARTED = "The process disappeared without an exit status: the host restarted."
_KILLED = "The process disappeared without an exit status: its supervisor was killed."
_COPIED = "The process disappeared without an exit status: the spool directory is a copy."


class Generation(asyncio.Protocol):
    """A supervisor and its directory. For use in one event loop.

    :param directory: its directory. :param ended: called when a process has ended.
    :param gone: called when the supervisor has ended and all its ends have been told.
    """

    def __init__(self, directory: Path, ended: Callable[[Ended], None], gone: Callable[[Generation], None]) -> None:
        self.directory = directory
        self.journal = Journal()
        self.starts = 0
        self.kept: set[str] = set()  # keys with files that are needed
        self.unseen: deque[StartOrder] = deque()  # sent, not yet known to be taken
        self.settled = asyncio.Event()  # nothing will be started any more, and what was is known
        self.dead = asyncio.Event()
        self._ended, self._gone = ended, gone
        self._offset = 0
        self._pid: int | None = None
        self._transport: asyncio.Transport | None = None
        self._hello = asyncio.Event()
        self._rest = b""
        self._reading = asyncio.Lock()
        self._drained = asyncio.Event()
        self._drained.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether all that was started here has ended."""
        return not self.unseen and not self.journal.open()

    # --- beginning -------------------------------------------------------------------------------------------

    @classmethod
    async def launch(
        cls, spool: Path, settings: list[str], ended: Callable[[Ended], None], gone: Callable[[Generation], None]
    ) -> Generation:
        """Start a supervisor.

        :param settings: log_limit, reserve and grace. :raises ProcessingError: it cannot be started.
        """
        generation = cls(spool / f"{PREFIX}{time.time_ns():020d}-{secrets.token_hex(4)}", ended, gone)
        try:
            connection = await asyncio.to_thread(generation._spawn, settings)
        except OSError as error:
            raise ProcessingError(f"The supervisor of processes cannot be started: {error}.") from error
        await asyncio.get_running_loop().create_unix_connection(lambda: generation, sock=connection)
        return generation

    def _spawn(self, settings: list[str]) -> socket.socket:
        self.directory.mkdir(mode=0o700)
        ours, theirs = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX)
        place = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        log_file = os.open(self.directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        given: list[int] = []
        try:
            listener.bind(f"/proc/self/fd/{place}/control")  # the path itself may be too long for a socket
            listener.listen(16)
            sources = (null, null, log_file, theirs.fileno(), listener.fileno(), place)
            given = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 10) for source in sources]
            root = str(Path(dm.__file__).parents[1])
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _PROGRAM, root, *settings, MARKER, OUTPUT_FILE],
                {"PATH": os.defpath, "LANG": "C.UTF-8"},
                file_actions=[(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate(given)],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP, signal.SIGTERM],
                setsigmask=[],
            )
        except OSError:
            ours.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        finally:
            for descriptor in (*given, place, log_file, null):
                os.close(descriptor)
            listener.close()
            theirs.close()
        ours.setblocking(False)
        return ours

    async def attach(self) -> None:
        """Follow a supervisor that another executor started, or settle what a dead one left.

        Returns when its journal is known. :attr:`settled` comes later where it still takes orders.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        place = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while True:
                try:
                    connection.connect(f"/proc/self/fd/{place}/control")
                    break
                except BlockingIOError:  # others are waiting there
                    await asyncio.sleep(_CONNECT_PAUSE)
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            await self._settle()
            return
        finally:
            os.close(place)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=connection)
        await self._hello.wait()  # what ends from now on is told; what ended before is in the journal
        if self._transport is None:
            await self.dead.wait()
            return
        await self._read()
        if self.journal.closed:
            self.settled.set()

    async def _read(self) -> None:
        """Take what is new in the journal."""
        async with self._reading:
            known = set(self.journal.ended)
            data = await asyncio.to_thread(self._load)
            self._offset += len(data)
            self.journal.feed(data)
            for key in self.journal.ended.keys() - known:
                self._ended(self.journal.ended[key])

    def _load(self) -> bytes:
        try:
            with (self.directory / "journal").open("rb") as stream:
                stream.seek(self._offset)
                return stream.read()
        except FileNotFoundError:
            return b""

    # --- the connection --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"E "):
                ended = Ended.parse(line.decode("utf-8", "surrogateescape"))
                if ended.key not in self.journal.ended:
                    self.journal.ended[ended.key] = ended
                    self._ended(ended)
            elif line.startswith(b"A "):
                for _ in range(int(line[2:])):
                    self.journal.begun.setdefault(self.unseen.popleft().key, None)
            elif line.startswith(b"H "):
                self._hello.set()
            elif line == b"C":
                self._later(self._closed())

    async def _closed(self) -> None:
        await self._hello.wait()
        await self._read()
        self.settled.set()

    def pause_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        self._drained.set()

    def eof_received(self) -> bool:
        """See :class:`asyncio.Protocol`."""
        return False

    def connection_lost(self, exception: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._drained.set()
        self._hello.set()
        if self._transport is not None:
            self._transport = None
            self._later(self._settle())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- orders ----------------------------------------------------------------------------------------------

    async def start(self, order: StartOrder) -> None:
        """Send an order; it is told as ended, or in :attr:`unseen` when the supervisor is gone."""
        self.unseen.append(order)
        self.kept.add(order.key)
        self.starts += 1
        if self._transport is not None:
            self._transport.write(order.order().encode())
            await self._drained.wait()

    def signal(self, key: str, number: int) -> None:
        """Have a process and all it started signalled."""
        if self._transport is not None:
            self._transport.write(Order(SIGNAL, [key.encode(), str(int(number)).encode()]).encode())

    def retire(self) -> None:
        """Send no more orders; the supervisor ends with its last process."""
        if self._transport is not None:
            self._transport.write(Order(RETIRE, []).encode())

    async def close(self) -> None:
        """Let go of it; it goes on."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # --- the end ---------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """The supervisor is gone: tell all ends, and end what it could not see the end of."""
        await self._read()
        await asyncio.to_thread(self._bury)
        now = time.time()
        own = self.journal.boot == boot_id()
        copied = own and await asyncio.to_thread(self._copied)
        unended = self.journal.open()
        if unended and own:
            begun = {key: self.journal.begun[key] for key in unended if not copied or key in self.kept}
            await asyncio.to_thread(kill_rest, MARKER, begun)
        reason = _COPIED if copied else _KILLED if own else _RESTARTED
        for key in unended:
            ended = Ended(key, None, 0.0, now, reason=reason, lost=True)
            ended.out, ended.err = self.size(key, "out"), self.size(key, "err")
            self.journal.ended[key] = ended
            self._ended(ended)
        self.unseen = deque(order for order in self.unseen if order.key not in self.journal.begun)
        self.settled.set()
        self.dead.set()
        self._gone(self)

    def _bury(self) -> None:
        """Collect the supervisor where it was our child, and pass on what it had to say."""
        if self._pid is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = None
        with contextlib.suppress(OSError):
            words = (self.directory / "log").read_text(errors="replace")
            if words.strip():
                log.error("the supervisor of %s: %s", self.directory.name, words[-4000:].strip())

    def _copied(self) -> bool:
        """Whether this directory is not the one the supervisor worked in."""
        try:
            status = (self.directory / "journal").stat()
        except OSError:
            return False
        return self.journal.file != (status.st_dev, status.st_ino)

    def file(self, key: str, suffix: str) -> Path:
        """Return the file of an output, ``out`` or ``err``."""
        return self.directory / f"{key}.{suffix}"

    def size(self, key: str, suffix: str) -> int:
        """Return its size; 0 when there is none."""
        try:
            return self.file(key, suffix).stat().st_size
        except OSError:
            return 0

    def forget(self, key: str) -> None:
        """Remove the files of a process."""
        self.kept.discard(key)
        ended = self.journal.ended.get(key)
        for suffix in ("out", "err"):
            if ended is None or getattr(ended, suffix):
                self.file(key, suffix).unlink(missing_ok=True)

    def keep_only(self, keys: Collection[str]) -> list[str]:
        """Remove the files of ended processes that are not among these, and return their keys."""
        self.kept = self.journal.begun.keys() & set(keys)
        others = [key for key in self.journal.ended if key not in self.kept]
        for key in others:
            self.forget(key)
        return others

    def remove(self) -> None:
        """Remove the directory of a dead supervisor."""
        shutil.rmtree(self.directory, ignore_errors=True)
