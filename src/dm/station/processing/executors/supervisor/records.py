"""What supervisor and executor say to each other: the journal's lines and the orders.

The journal is the truth about what was started and how it ended; its lines also travel to connected executors. One line
is one fact:

=========================================================================== ==================================
``H 1 <boot id> <pid> <start> <device> <inode>``                            who keeps this journal, and in which file
``S <key>``                                                                 about to start
``R <key> <pid> <start>``                                                   started
``E <key> <status> <start> <end> <cpu> <memory> <out> <err> <reason>``      ended
``C``                                                                       nothing will be started any more
``A <number>``                                                              so many orders were taken (not in the file)
=========================================================================== ==================================

``start`` of a process is in clock ticks since boot, as ``/proc/<pid>/stat`` has it. Only few and small modules are
imported here: the supervisor is a process of its own.
"""

from __future__ import annotations

import struct

VERSION = "1"
START, SIGNAL, RETIRE = b"S", b"K", b"Q"
_PREFIX = struct.Struct("!cII")


class Ended:
    """How a process ended.

    :param status: exit status, minus the number of the signal that ended it, or ``None`` when it was never started or
        nobody saw its end. :param start: :param end: epoch seconds; ``start`` is 0 when it was never started.
    :param cpu: seconds. :param memory: largest resident size of one process in bytes.
    :param out: :param err: bytes kept of its outputs. :param reason: what to tell besides the status.
    :param lost: it may have run, and nobody saw its end.
    """

    __slots__ = ("cpu", "end", "err", "key", "lost", "memory", "out", "reason", "start", "status")

    def __init__(
        self,
        key: str,
        status: int | None,
        start: float,
        end: float,
        *,
        cpu: float = 0.0,
        memory: int = 0,
        out: int = 0,
        err: int = 0,
        reason: str = "",
        lost: bool = False,
    ) -> None:
        self.key = key
        self.status = status
        self.start = start
        self.end = end
        self.cpu = cpu
        self.memory = memory
        self.out = out
        self.err = err
        self.reason = reason
        self.lost = lost

    def line(self) -> bytes:
        """Return the journal's line."""
        status = "-" if self.status is None else self.status
        reason = " ".join(self.reason.split())
        return (
            f"E {self.key} {status} {self.start:.6f} {self.end:.6f} {self.cpu:.6f} {self.memory} {self.out} {self.err} "
            f"{reason}\n"
        ).encode("utf-8", "surrogateescape")

    @classmethod
    def parse(cls, line: str) -> Ended:
        """Read such a line. :raises ValueError: it is none."""
        _, key, status, start, end, cpu, memory, out, err, reason = line.split(" ", 9)
        return cls(
            key,
            None if status == "-" else int(status),
            float(start),
            float(end),
            cpu=float(cpu),
            memory=int(memory),
            out=int(out),
            err=int(err),
            reason=reason,
        )


class Journal:
    """What a journal says, read piece by piece. A line without an end, or that makes no sense, does not count: it was
    being written when its writer died."""

    def __init__(self) -> None:
        self.boot = ""
        self.supervisor = (0, 0)
        self.file = (0, 0)
        self.begun: dict[str, tuple[int, int] | None] = {}  # key -> pid and start, or None when that is not known
        self.ended: dict[str, Ended] = {}
        self.closed = False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take further bytes of the file."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._take(line.decode("utf-8", "surrogateescape"))
            except (ValueError, IndexError):
                continue

    def _take(self, line: str) -> None:
        kind = line[:2]
        if kind == "E ":
            ended = Ended.parse(line)
            self.ended[ended.key] = ended
        elif kind == "S ":
            self.begun.setdefault(line[2:], None)
        elif kind == "R ":
            _, key, pid, start = line.split(" ")
            self.begun[key] = (int(pid), int(start))
        elif kind == "H ":
            _, version, boot, pid, start, device, inode = line.split(" ")
            if version == VERSION:
                self.boot, self.supervisor, self.file = boot, (int(pid), int(start)), (int(device), int(inode))
        elif line == "C":
            self.closed = True

    def open(self) -> list[str]:
        """Return the keys that may have been started and have not ended."""
        return [key for key in self.begun if key not in self.ended]


class Order:
    """What the supervisor is asked to do.

    :param kind: :data:`START`, :data:`SIGNAL`, or :data:`RETIRE`: no further starts. :param head: fields, the first
        is the key. :param body: the script.
    """

    __slots__ = ("body", "head", "kind")

    def __init__(self, kind: bytes, head: list[bytes], body: bytes = b"") -> None:
        self.kind = kind
        self.head = head
        self.body = body

    def encode(self) -> bytes:
        """Return the bytes that travel."""
        head = b"\0".join(self.head)
        return _PREFIX.pack(self.kind, len(head), len(self.body)) + head + self.body


def take_orders(buffer: bytearray) -> list[Order]:
    """Remove whole orders from the beginning of a buffer and return them."""
    found, at = [], 0
    while len(buffer) - at >= _PREFIX.size:
        kind, head, body = _PREFIX.unpack_from(buffer, at)
        middle = at + _PREFIX.size + head
        if len(buffer) < middle + body:
            break
        fields = bytes(buffer[at + _PREFIX.size : middle]).split(b"\0")
        found.append(Order(kind, fields, bytes(buffer[middle : middle + body])))
        at = middle + body
    if at:
        del buffer[:at]
    return found


class StartOrder:
    """A process to start.

    :param prefix: words that run a program as another account; empty: as the supervisor's own account, or as
        ``user``. :param user: uid, gid and further groups to take on (the supervisor is root), or ``None``.
    :param output: value of ``DM_OUTPUT_FILE``.
    """

    __slots__ = ("key", "output", "prefix", "script", "user")

    def __init__(
        self,
        key: str,
        script: bytes,
        output: bytes,
        user: tuple[int, int, tuple[int, ...]] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.key = key
        self.script = script
        self.output = output
        self.user = user
        self.prefix = prefix

    def order(self) -> Order:
        """Return the order that travels."""
        user = b""
        if self.user is not None:
            uid, gid, groups = self.user
            user = ",".join(str(number) for number in (uid, gid, *groups)).encode()
        words = [word.encode("utf-8", "surrogateescape") for word in self.prefix]
        return Order(START, [self.key.encode(), user, self.output, *words], self.script)

    @classmethod
    def parse(cls, order: Order) -> StartOrder:
        """Read an order. :raises ValueError: it is none."""
        key, user, output, *words = order.head
        numbers = [int(number) for number in user.split(b",")] if user else []
        return cls(
            key.decode(),
            order.body,
            output,
            (numbers[0], numbers[1], tuple(numbers[2:])) if numbers else None,
            tuple(word.decode("utf-8", "surrogateescape") for word in words),
        )
