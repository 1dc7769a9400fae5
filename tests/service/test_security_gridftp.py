"""Servers that only pretend to speak GridFTP end in an error of one sentence, soon and without filling the memory."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import pytest

from dm.common.errors import CommunicationError
from dm.station.acquisition.transports.gridftp_control import Control
from dm.station.acquisition.transports.gridftp_settings import Server

Answer = Callable[[BinaryIO], None]
FLOOD = 8 << 20


@contextmanager
def pretending(answer: Answer, scheme: str = "ftp") -> Iterator[Server]:
    """A server that greets and then does what it likes with one connection."""

    def serve() -> None:
        connection, _address = listening.accept()
        with connection, suppress(OSError):
            stream = connection.makefile("rwb", buffering=0)
            stream.write(b"220 ready\r\n")
            answer(stream)  # type: ignore[arg-type]
            stream.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield Server(scheme=scheme, host="127.0.0.1", port=listening.getsockname()[1])
        thread.join()


def logged_in(stream: BinaryIO) -> None:
    for _command in range(2):
        stream.readline()
        stream.write(b"230 welcome\r\n")
    stream.readline()


@pytest.mark.parametrize("line", [b"x" * 1023 + b"\r\n", b"\n", b"x" * 60_000 + b"\n"])
def test_an_answer_without_end(line: bytes) -> None:
    def flood(stream: BinaryIO) -> None:
        logged_in(stream)
        stream.write(b"250-so\r\n")
        for _ in range(FLOOD // 65536):
            stream.write(line * (65536 // len(line)))
        stream.write(b"\r\n250 end\r\n")

    with pretending(flood) as server:
        control = Control(server, None, connect_timeout=5, io_timeout=5)
        with pytest.raises(CommunicationError, match="without end"):
            control.status([b"/file"])
        control.close()


def test_a_promise_of_more_without_end() -> None:
    def promise(stream: BinaryIO) -> None:
        logged_in(stream)
        while True:
            stream.write(b"150 go on\r\n" * 5000)

    with pretending(promise) as server:
        control = Control(server, None, connect_timeout=5, io_timeout=5)
        with pytest.raises(CommunicationError, match="without end"):
            control.status([b"/file"])
        control.close()


@pytest.mark.parametrize("reply", [b"235 done\r\n", b"235 ADAT=" + base64.b64encode(b"x") + b"\r\n", b"335 go on\r\n"])
def test_a_server_that_never_proves_who_it_is(reply: bytes) -> None:
    def agree(stream: BinaryIO) -> None:
        stream.readline()
        stream.write(b"334 GSI\r\n")
        while stream.readline():
            stream.write(reply)

    with pretending(agree, "gsiftp") as server, pytest.raises(CommunicationError):
        Control(server, ssl.create_default_context(), connect_timeout=5, io_timeout=5)
