"""The secured control channel of ``gsiftp`` servers: GSI as RFC 2228 carries it.

The two sides shake hands with TLS whose records travel base64-encoded in ``ADAT`` commands and replies. Then the client
says by one byte that it delegates no credential, and every command and reply is one sealed record. TLS 1.3 is left
out: there a handshake has no common end that both sides of this exchange could wait for.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Callable

from dm.common.errors import CommunicationError

_NO_DELEGATION = b"0"
_LONGEST = 1 << 20
_ROUNDS = 32  # a handshake takes four


class Seal:
    """Seals commands and opens replies, once :meth:`negotiate` has ended.

    :param context: trusted authorities and our credential. :param host: the server's name, which its certificate must
        hold.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host.strip("[]"))

    def negotiate(self, exchange: Callable[[bytes], list[bytes]], server: str) -> None:
        """Prove to each other who we are.

        :param exchange: sends one command and returns the lines of its reply.
        :raises CommunicationError: one side does not trust the other.
        """
        answer = exchange(b"AUTH GSSAPI")
        if not answer[0].startswith(b"334"):
            raise CommunicationError(f"Server {server} offers no GSI: {_shown(answer)}.")
        shaken = told = False
        for _ in range(_ROUNDS):
            if not shaken:
                try:
                    self._tls.do_handshake()
                    shaken = True
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    raise CommunicationError(
                        f"The certificate of server {server} is not accepted: {_reason(error)}."
                    ) from error
            token = self._outgoing.read()
            if shaken and not token and not told:
                self._tls.write(_NO_DELEGATION)
                token, told = self._outgoing.read(), True
            answer = exchange(b"ADAT " + base64.b64encode(token))
            if not answer[0].startswith((b"235", b"335")):
                raise CommunicationError(f"Server {server} does not accept our credential: {_shown(answer)}.")
            _, found, more = answer[0].partition(b"ADAT=")
            if found:
                self._incoming.write(_decoded(more, server))
            if answer[0].startswith(b"235"):
                break
        if not (told and answer[0].startswith(b"235")):
            raise CommunicationError(f"Server {server} did not prove who it is: {_shown(answer)}.")

    def close(self, command: bytes) -> bytes:
        """Return a command as the line to send."""
        self._tls.write(command + b"\r\n")
        return b"ENC " + base64.b64encode(self._outgoing.read())

    def open(self, line: bytes, server: str) -> bytes:
        """Return what a line of a reply holds.

        :raises CommunicationError: it is not what the server sealed.
        """
        if line[:3] not in (b"631", b"632", b"633"):
            raise CommunicationError(f"Server {server} answered in the clear: {_shown([line])}.")
        self._incoming.write(_decoded(line[4:], server))
        try:
            return self._tls.read(_LONGEST)
        except ssl.SSLError as error:
            raise CommunicationError(
                f"An answer of server {server} was changed on its way: {_reason(error)}."
            ) from error


def _decoded(text: bytes, server: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise CommunicationError(f"Server {server} sent what is not base64.") from error


def _reason(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or error.reason or str(error)


def _shown(lines: list[bytes]) -> str:
    return b" ".join(lines)[:300].decode("utf-8", "backslashreplace")
