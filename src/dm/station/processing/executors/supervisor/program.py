"""The supervisor: a small process that starts the processes of stages, empties their output and notes how they end.

It outlives the service that started it: it takes the orders that were sent, notes ``C``, and goes on until the last
process has ended and nothing is left behind. Its descriptors at the start: 3 the connection to the executor that
started it, 4 a listening socket for later executors, 5 the directory of its generation.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time

from dm.station.processing.executors.supervisor import records, spawn, survey
from dm.station.processing.executors.supervisor.records import Ended, StartOrder
from dm.station.processing.executors.supervisor.rest import Rest
from dm.station.processing.executors.supervisor.stage import Memory, Stage
from dm.station.processing.executors.supervisor.streams import Stream

_OWNER, _LISTENER, _DIRECTORY = 3, 4, 5
_RECEIVE = 1 << 18
_LET_GO = 2.0  # seconds until output that a killed rest still holds open is given up
_MEMORY_STATUS = 137


class Peer:
    """A connection to an executor."""

    __slots__ = ("events", "incoming", "outgoing", "socket")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.events = select.EPOLLIN

    def receive(self) -> bool:
        """Take what is there. :returns: whether more may come."""
        try:
            while data := self.socket.recv(_RECEIVE):
                self.incoming += data
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def send(self, data: bytes) -> bool:
        """Send, or keep for later what cannot be sent now. :returns: whether the other side is there."""
        self.outgoing += data
        try:
            while self.outgoing:
                del self.outgoing[: self.socket.send(self.outgoing, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            return True
        except OSError:
            self.outgoing.clear()
            return False
        return True


class Supervisor:
    """Everything a supervisor does.

    :param log_limit: bytes kept of each output. :param reserve: bytes that stay free on its disk.
    :param grace: seconds that what a process leaves behind may go on. :param marker: :param output: names of variables.
    """

    def __init__(self, log_limit: int, reserve: int, grace: float, marker: str, output: str) -> None:
        self._limit, self._reserve = log_limit, reserve
        self._spawner = spawn.Spawner(marker.encode(), output.encode())
        self._memory = Memory()
        self._poll = select.epoll()
        self._running: dict[int, Stage] = {}  # by pid
        self._stages: dict[str, Stage] = {}  # these, and those that have ended and are not reported yet:
        self._held: dict[str, Stage] = {}  # something still holds their output open
        self._pipes: dict[int, Stage] = {}
        self._rest = Rest(marker.encode(), grace, self._running, self._stages)
        self._peers: dict[int, Peer] = {}
        self._refused: list[Ended] = []
        self._closed = False
        self._torn = False
        self._unsaved = b""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._journal = os.open("journal", flags, 0o600, dir_fd=_DIRECTORY)
        self._listener = socket.socket(fileno=_LISTENER)
        self._listener.setblocking(False)
        self._poll.register(_LISTENER, select.EPOLLIN)
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # not SIG_IGN: that would be inherited
        self._poll.register(self._wake, select.EPOLLIN)
        status = os.fstat(self._journal)
        own = survey.look(os.getpid())
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:  # noqa: PTH123
            boot = stream.read().strip()
        start = own.start if own else 0
        self._hello = f"H 1 {boot} {os.getpid()} {start} {status.st_dev} {status.st_ino}\n".encode()
        self._write(self._hello)
        self._owner = self._connect(socket.socket(fileno=_OWNER))

    # --- the loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until there is nothing to do and never will be."""
        while True:
            reap = False
            for descriptor, mask in self._poll.poll(self._timeout()):
                if descriptor in self._pipes:
                    self._pump(self._pipes[descriptor])
                elif descriptor in self._peers:
                    self._serve(self._peers[descriptor], mask)
                elif descriptor == _LISTENER:
                    self._accept()
                elif descriptor == self._wake:
                    reap = True
                    os.read(self._wake, 4096)
            if reap:
                self._reap()
            self._rest.expire(time.monotonic())
            self._report()
            if self._closed and not self._stages and not self._unsaved and self._rest.nothing():
                return

    def _timeout(self) -> float | None:
        """Return the seconds until something is due; ``None`` when nothing is."""
        now = time.monotonic()
        due = [stage.deadline + (_LET_GO if now >= stage.deadline else 0.0) for stage in self._held.values()]
        if self._rest.due:
            due.append(self._rest.due)
        if self._unsaved:
            due.append(now + 1.0)
        return max(0.0, min(due) - now) if due else None

    # --- executors -------------------------------------------------------------------------------------------

    def _connect(self, connection: socket.socket) -> Peer:
        peer = Peer(connection)
        self._peers[connection.fileno()] = peer
        self._poll.register(connection.fileno(), peer.events)
        self._send(peer, self._hello)
        return peer

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        self._connect(connection)

    def _send(self, peer: Peer, data: bytes) -> None:
        if not peer.send(data):  # it is gone; what it sent before is still to be taken, see _serve
            return
        events = (peer.events & select.EPOLLIN) | (select.EPOLLOUT if peer.outgoing else 0)
        if events != peer.events:
            peer.events = events
            self._poll.modify(peer.socket.fileno(), events)

    def _drop(self, peer: Peer) -> None:
        if self._peers.pop(peer.socket.fileno(), None) is not None:
            self._poll.unregister(peer.socket.fileno())
            peer.socket.close()

    def _tell(self, data: bytes) -> None:
        for peer in list(self._peers.values()):
            self._send(peer, data)

    def _serve(self, peer: Peer, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._send(peer, b"")
        if not mask & ~select.EPOLLOUT or peer.socket.fileno() < 0:
            return
        more = peer.receive()
        orders = records.take_orders(peer.incoming)
        starts = [StartOrder.parse(order) for order in orders if order.kind == records.START]
        if starts and peer is self._owner and not self._closed:
            self._begin(starts)
            self._send(peer, b"A %d\n" % len(starts))
        signals = [order for order in orders if order.kind == records.SIGNAL]
        if signals:
            self._rest.signal([(order.head[0].decode(), int(order.head[1])) for order in signals])
        if peer is self._owner and not self._closed and (not more or any(o.kind == records.RETIRE for o in orders)):
            self._closed = True  # all that was sent has been taken
            self._write(b"C\n")
            self._tell(b"C\n")
        if not more:
            if mask & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(peer)
            elif peer.socket.fileno() >= 0:  # it only listens now
                peer.events = select.EPOLLOUT if peer.outgoing else 0
                self._poll.modify(peer.socket.fileno(), peer.events)

    # --- starting --------------------------------------------------------------------------------------------

    def _begin(self, orders: list[StartOrder]) -> None:
        now = time.monotonic()
        self._memory.look(now)
        if not self._write(b"".join(f"S {order.key}\n".encode() for order in orders)):
            reason = "It was not started: the journal of the spool directory cannot be written."
            self._refused += [Ended(order.key, None, 0.0, time.time(), reason=reason) for order in orders]
            return
        noted = []
        for order in orders:
            try:
                stage = self._start(order)
            except (OSError, ValueError) as error:
                what = error.strerror if isinstance(error, OSError) else str(error)
                self._refused.append(Ended(order.key, None, 0.0, time.time(), reason=f"It was not started: {what}."))
            else:
                noted.append(f"R {stage.key} {stage.pid} {stage.ticks}\n".encode())
        self._write(b"".join(noted))

    def _start(self, order: StartOrder) -> Stage:
        ends: list[int] = []
        try:
            for _ in range(2):
                ends += os.pipe2(os.O_CLOEXEC)
            for end in ends[1::2]:  # so that it may open /dev/stdout
                if order.user is not None:
                    os.fchown(end, order.user[0], order.user[1])
                elif order.prefix:
                    os.fchmod(end, 0o622)
            began = time.time()
            pid = self._spawner.start(order, ends[1], ends[3])
        except BaseException:
            for end in ends:
                os.close(end)
            raise
        streams = []
        for end, suffix, what in ((0, "out", "standard output"), (2, "err", "standard error")):
            os.close(ends[end + 1])
            os.set_blocking(ends[end], False)
            name = f"{order.key}.{suffix}"
            streams.append(Stream(ends[end], _DIRECTORY, name, what, limit=self._limit, reserve=self._reserve))
        process = survey.look(pid)
        stage = Stage(order.key, pid, process.start if process else 0, began, out=streams[0], err=streams[1])
        self._stages[stage.key] = self._running[pid] = stage
        for stream in streams:
            self._pipes[stream.descriptor] = stage
            self._poll.register(stream.descriptor, select.EPOLLIN)
        return stage

    # --- output and ends -------------------------------------------------------------------------------------

    def _pump(self, stage: Stage) -> None:
        before = [stream.descriptor for stream in (stage.out, stage.err) if stream.open]
        stage.pump()
        self._forget_pipes(stage, before)

    def _forget_pipes(self, stage: Stage, before: list[int]) -> None:
        after = (stage.out.descriptor, stage.err.descriptor)
        for descriptor in before:
            if descriptor not in after:
                del self._pipes[descriptor]  # closing has taken it from the poll: no process of ours has it

    def _reap(self) -> None:
        """Collect the ended: processes of stages, and what they left behind."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            stage = self._running.pop(pid, None)
            if stage is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            stage.ended = (code, time.time())
            stage.usage = (usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10)
            now = time.monotonic()
            self._explain(stage, code, now)
            self._pump(stage)
            self._held[stage.key] = stage
            self._rest.ended(stage, now)

    def _explain(self, stage: Stage, code: int, now: float) -> None:
        """Say why a process may have been killed, where nobody here has done it."""
        if stage.reason or signal.SIGKILL in stage.signals:
            return
        if code == -signal.SIGKILL:
            if self._memory.killed(now):
                stage.reason = "It was killed by the kernel for lack of memory (signal 9)."
            else:
                stage.reason = "It was killed (signal 9), perhaps by the kernel for lack of memory."
        elif code == _MEMORY_STATUS and self._memory.killed(now):
            stage.reason = "A process of it was killed by the kernel for lack of memory (exit status 137)."

    def _report(self) -> None:
        """Note the ends there are, all with one fsync, then tell them."""
        ended, self._refused = self._refused, []
        now = time.monotonic()
        for stage in list(self._held.values()):
            if stage.silent or now >= stage.deadline + _LET_GO:
                ended.append(self._finish(stage))
        if ended or self._unsaved:
            lines = b"".join(one.line() for one in ended)
            self._unsaved += lines
            if self._write(self._unsaved):
                self._unsaved = b""
                with contextlib.suppress(OSError):  # a failing disk: told nevertheless
                    os.fdatasync(self._journal)
            if lines:
                self._tell(lines)  # also when the disk is full: the engine's own record comes before it forgets

    def _finish(self, stage: Stage) -> Ended:
        del self._stages[stage.key], self._held[stage.key]
        before = [stream.descriptor for stream in (stage.out, stage.err) if stream.open]
        stage.out.close_pipe()
        stage.err.close_pipe()
        self._forget_pipes(stage, before)
        code, end = stage.ended or (None, time.time())
        return Ended(
            stage.key,
            code,
            stage.began,
            end,
            cpu=stage.usage[0],
            memory=stage.usage[1],
            out=stage.out.size,
            err=stage.err.size,
            reason=stage.reason,
        )

    def _write(self, data: bytes) -> bool:
        """Append to the journal. :returns: whether it is all there."""
        if not data:
            return True
        data = b"\n" + data if self._torn else data
        try:
            written = os.write(self._journal, data)
        except OSError:
            return False
        self._torn = written < len(data)
        return not self._torn


def main(arguments: list[str]) -> None:
    """Run a supervisor.

    :param arguments: log_limit, reserve, grace, marker, output: see :class:`Supervisor`.
    """
    os.umask(0o077)
    os.chdir("/")
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > _DIRECTORY:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own
    for descriptor in (_OWNER, _LISTENER, _DIRECTORY):
        os.set_inheritable(descriptor, False)
    spawn.prepare()
    log_limit, reserve, grace, marker, output = arguments
    Supervisor(int(log_limit), int(reserve), float(grace), marker, output).run()


if __name__ == "__main__":
    main(sys.argv[1:])
