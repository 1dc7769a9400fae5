"""Speaking with a GridFTP server: what it lists, what it knows of a file, its digests.

globus-url-copy moves bytes and tells nothing else, so this module speaks the control channel itself: no file content
ever passes here. Names are sent as they are. A server is never believed to mean the file that was asked for unless it
repeats the name: over an anonymous channel it drops every byte that is not printable ASCII.
"""

from __future__ import annotations

import calendar
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from dm.common.errors import CommunicationError, InvalidArgument
from dm.common.paths import display
from dm.station.acquisition.transports.base import FileStamp, storable
from dm.station.acquisition.transports.gridftp_gsi import Seal
from dm.station.acquisition.transports.gridftp_settings import Server

SECOND = 1_000_000_000
_WINDOW = 64  # commands on their way before the first is answered
_LINE = 1 << 20
_REPLY = 256 << 20  # a directory of a million files
_ANSWER = 1 << 16  # anything else
_OF_A_LINE = 32  # what keeping one costs at least
_PROMISES = 10_000  # answers that only say that it goes on, before a real one
_SLOWEST = 20e6  # bytes per second a server digests at least
_ENTRY = re.compile(rb"((?:[A-Za-z][\w.-]*=[^;]*;)+) (.*)", re.DOTALL)
_NEXT = re.compile(rb"\r\n (?=[A-Za-z][\w.-]*=[^;\r\n]*;)")
_MOMENT = re.compile(rb"([1-9]\d{3})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d\d)(\d\d)(\d\d)(?:\.(\d+))?")
_PLAIN = re.compile(rb"[\x20-\x7e\t]*")


@dataclass(frozen=True)
class Fact:
    """What a server says of a name.

    :param name: as the server wrote it: in a listing the last component, else the whole path.
    :param kind: ``file``, ``directory``, ``link`` or ``other``. :param mode: permission bits.
    :param listable: whether a directory may be listed.
    """

    name: bytes
    kind: str
    stamp: FileStamp
    mode: int = 0
    listable: bool = True


@dataclass(frozen=True)
class Reply:
    """An answer: its code, and all of its text."""

    code: int
    text: bytes

    @property
    def good(self) -> bool:
        """Whether the server did it."""
        return 200 <= self.code < 300

    @property
    def missing(self) -> bool:
        """Whether it says that the file does not exist."""
        return not self.good and (b"PATH_NOT_FOUND" in self.text or b"No such file" in self.text)

    def sentence(self) -> str:
        """Return the text for people."""
        text = b" ".join(re.sub(rb"^\d{3}[ -]", b"", line) for line in self.text.split(b"\r\n")).strip()
        return text[:300].decode("utf-8", "backslashreplace") or f"code {self.code}"


def speakable(path: bytes, secure: bool) -> bool:
    """Whether a path can be said to a server: without GSI it takes printable ASCII only."""
    if b"\0" in path or b"\r\n" in path or path.endswith((b"\r", b"\n")):
        return False
    return secure or _PLAIN.fullmatch(path) is not None


def require_speakable(path: bytes, secure: bool) -> None:
    """Refuse a path that cannot be said.

    :raises InvalidArgument: it would reach the server as another name.
    """
    if not speakable(path, secure):
        what = "a line end that GridFTP cannot carry" if secure else "characters that anonymous GridFTP cannot carry"
        other = "rsync" if secure else "gsiftp:// or rsync"
        raise InvalidArgument(f"Name {display(path)!r} holds {what}; rename it, or use {other}.")


class Control:
    """A connection, logged in. Not for several threads at once; after an error it is of no use any more.

    :param context: for ``gsiftp`` servers: our credential and whom we trust.
    :raises CommunicationError: the server does not answer, or one side does not trust the other.
    """

    def __init__(
        self, server: Server, context: ssl.SSLContext | None, *, connect_timeout: float, io_timeout: float
    ) -> None:
        self.server = server
        self._io_timeout = io_timeout
        self._seal: Seal | None = None
        try:
            self._socket = socket.create_connection((server.host.strip("[]"), server.port), connect_timeout)
        except OSError as error:
            raise CommunicationError(f"Server {server} cannot be reached: {error.strerror or error}.") from error
        self._stream = self._socket.makefile("rb")
        try:
            self._login(context)
            self._socket.settimeout(io_timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        self._stream.close()
        self._socket.close()

    # --- questions ------------------------------------------------------------------------------------------
    def listing(self, directory: bytes) -> list[Fact]:
        """Return what lies in a directory.

        :raises InvalidArgument: the directory does not exist or may not be read.
        """
        require_speakable(directory, self.server.secure)
        reply = self._ask([b"MLSC " + directory], _REPLY)[0]
        if not reply.good:
            raise InvalidArgument(f"Directory {display(directory)!r} on {self.server}: {reply.sentence()}.")
        entries = _NEXT.split(reply.text.rpartition(b"\r\n%d " % reply.code)[0])[1:]
        facts = [fact for entry in entries if (fact := _fact(entry)) is not None]
        return [fact for fact in facts if b"/" not in fact.name and fact.name not in (b".", b"..")]

    def status(self, paths: Sequence[bytes]) -> list[Fact | None]:
        """Return what the server knows of each path; ``None`` for those that do not exist.

        :raises InvalidArgument: a path that cannot be asked for.
        """
        for path in paths:
            require_speakable(path, self.server.secure)
        found: list[Fact | None] = []
        for path, reply in zip(paths, self._ask([b"MLST " + path for path in paths]), strict=True):
            if reply.missing:
                found.append(None)
                continue
            body = reply.text.partition(b"\r\n ")[2].rpartition(b"\r\n%d " % reply.code)[0]
            fact = _fact(body) if reply.good else None
            if fact is None:
                found.append(Fact(path, "other", FileStamp(0, 0), listable=False))
            elif fact.name != path:
                raise CommunicationError(
                    f"Server {self.server} was asked for {display(path)!r} and tells of {display(fact.name)!r}."
                )
            else:
                found.append(fact)
        return found

    def digests(self, algorithm: str, paths: Sequence[bytes], size: int) -> list[str]:
        """Return the digests of files as the server reads them; empty where it could not.

        :param algorithm: as the server calls it, e.g. ``MD5``. :param size: of all of them, bytes: for the time-out.
        """
        self._socket.settimeout(self._io_timeout + size / _SLOWEST)
        replies = self._ask([b"CKSM " + algorithm.encode() + b" 0 -1 " + path for path in paths])
        self._socket.settimeout(self._io_timeout)
        return [
            reply.text[4:].strip().decode("ascii", "replace").lower() if reply.code == 213 else "" for reply in replies
        ]

    def offers(self, feature: bytes) -> bool:
        """Whether the server says that it can do something, e.g. ``CKSM``."""
        return b"\r\n " + feature in self._ask([b"FEAT"])[0].text

    def alive(self) -> None:
        """Have the server answer.

        :raises CommunicationError: it does not.
        """
        self._ask([b"NOOP"])

    def remove(self, path: bytes) -> bool:
        """Remove a file; return whether the server did."""
        require_speakable(path, self.server.secure)
        return self._ask([b"DELE " + path])[0].good

    # --- the wire -------------------------------------------------------------------------------------------
    def _login(self, context: ssl.SSLContext | None) -> None:
        greeting = self._reply()
        if greeting.code != 220:
            raise CommunicationError(f"Server {self.server} is not ready: {greeting.sentence()}.")
        name = b"anonymous"
        if self.server.secure:
            if context is None:
                raise CommunicationError(
                    f"Server {self.server} needs a credential; give proxy, certificate and key, or myproxy in "
                    "acquisition.transports.gridftp."
                )
            seal = Seal(context, self.server.host)
            seal.negotiate(self._exchange, str(self.server))
            self._seal, name = seal, b":globus-mapping:"
        replies = [self._ask([command])[0] for command in (b"USER " + name, b"PASS dm@")]
        if replies[-1].code != 230 and replies[0].code != 230:
            raise CommunicationError(f"Server {self.server} refuses the login: {replies[-1].sentence()}.")

    def _exchange(self, command: bytes) -> list[bytes]:
        self._send(command + b"\r\n")
        return self._lines()

    def _ask(self, commands: Sequence[bytes], most: int = _ANSWER) -> list[Reply]:
        """Send commands, several before the first is answered, and return the replies.

        :param most: bytes of each.
        """
        replies: list[Reply] = []
        for number, command in enumerate(commands):
            if number - len(replies) >= _WINDOW:
                replies.append(self._reply(most))
            self._send((self._seal.close(command) if self._seal else command) + b"\r\n")
        while len(replies) < len(commands):
            replies.append(self._reply(most))
        return replies

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._broken(error) from error

    def _reply(self, most: int = _ANSWER) -> Reply:
        """Read an answer, passing over what only says that it goes on."""
        for _ in range(_PROMISES):
            lines = self._lines(most)
            if self._seal:
                text = b"".join(self._seal.open(line, str(self.server)) for line in lines)
            else:
                text = b"\r\n".join(lines) + b"\r\n"
            code = int(text[:3]) if text[:3].isdigit() else 0
            if not 100 <= code < 200:
                return Reply(code, text)
        raise self._endless()

    def _lines(self, most: int = _ANSWER) -> list[bytes]:
        """Read the lines of one answer, without their ends."""
        lines: list[bytes] = []
        whole = bytearray()
        size = 0
        while True:
            try:
                line = self._stream.readline(_LINE)
            except (OSError, ValueError) as error:
                raise self._broken(error) from error
            size += len(line) + _OF_A_LINE
            if not line.endswith(b"\n") or size > most:
                raise self._endless()
            whole += line[:-1]
            if not whole.endswith(b"\r"):  # a name may hold a bare line feed: lines end with both
                whole += b"\n"
                continue
            lines.append(bytes(whole[:-1]))
            if whole[3:4] == b" " and whole[:3] == lines[0][:3] and whole[:3].isdigit():
                return lines
            whole.clear()

    def _endless(self) -> CommunicationError:
        return CommunicationError(f"Server {self.server} hung up or sends without end.")

    def _broken(self, error: Exception) -> CommunicationError:
        said = "does not answer" if isinstance(error, TimeoutError) else f"cannot be reached: {error}"
        return CommunicationError(f"Server {self.server} {said}.")


def _fact(entry: bytes) -> Fact | None:
    """Read one entry; ``None`` for the directory itself and its parent."""
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    facts = {name.lower(): value for name, _, value in (one.partition(b"=") for one in match[1].split(b";"))}
    sort = facts.get(b"type", b"").lower()
    if sort in (b"cdir", b"pdir"):
        return None
    kind = "link" if b"unix.slink" in facts else {b"file": "file", b"dir": "directory"}.get(sort, "other")
    mode = facts.get(b"unix.mode", b"0")
    return Fact(
        match[2],
        kind,
        FileStamp(_number(facts.get(b"size", b"")), _moment(facts.get(b"modify", b"")), 0, _unique(facts)),
        int(mode, 8) & 0o7777 if re.fullmatch(rb"[0-7]{1,7}", mode) else 0,
        b"l" in facts.get(b"perm", b"l"),
    )


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 19 else 0


def _unique(facts: dict[bytes, bytes]) -> int:
    """Return the inode, where the server tells device and inode."""
    value = facts.get(b"unique", b"").rpartition(b"-")[2]
    return int(value, 16) & (1 << 63) - 1 if re.fullmatch(rb"[0-9a-fA-F]{1,16}", value) else 0


def _moment(text: bytes) -> int:
    """Return a time like ``20261122190604`` in nanoseconds since the epoch; 0 when it is none."""
    match = _MOMENT.fullmatch(text)
    if match is None:
        return 0
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    seconds = calendar.timegm((year, month, day, hour, minute, second))
    return storable(seconds * SECOND + int((match[7] or b"0")[:9].ljust(9, b"0")))
