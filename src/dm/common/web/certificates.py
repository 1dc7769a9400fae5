"""A service's certificate: taken up anew when its files change, and watched for its end.

Nobody should have to restart a service that runs day and night because a certificate was renewed.
"""

from __future__ import annotations

import datetime
import logging
import os
import ssl
import threading
import time
from pathlib import Path

from cryptography import x509

from dm.common import tls
from dm.common.errors import ConfigurationError
from dm.common.health import Level

LOOK_SECONDS = 10.0
_CRITICAL_DAYS = 3
_log = logging.getLogger("dm.web")


class ServerCertificate:
    """Certificate and key of a service, with the TLS context made of them.

    :param certificate: PEM file, chain. :param key: PEM file. :param minimum: lowest TLS version, ``1.2`` or ``1.3``.
    :param warning_days: days before its end from which :meth:`check` warns.
    :raises ConfigurationError: the files cannot be used.
    """

    def __init__(
        self,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str],
        minimum: str = "1.2",
        warning_days: float = 30,
    ) -> None:
        self._files = Path(certificate), Path(key)
        self._minimum = minimum
        self._warning_days = warning_days
        self._lock = threading.Lock()
        self._seen = self._state()
        self._looked = time.monotonic()
        self.context: ssl.SSLContext = self._make()
        self._ends = _end(self._files[0])

    def look(self) -> None:
        """Take changed files up, looking at most every ten seconds; the last ones that worked stay in use."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self.reload()

    def reload(self) -> bool:
        """Take changed files up now and return whether they were.

        A certificate that does not fit its key, as in the middle of a renewal, is tried again when either changes.
        """
        with self._lock:
            self._looked = time.monotonic()
            state = self._state()
            if state == self._seen:
                return False
            self._seen = state
            try:
                context, ends = self._make(), _end(self._files[0])
            except ConfigurationError as error:
                _log.warning("the certificate in use stays: %s", error)
                return False
            # Connections that are open keep the context they were made with.
            self.context, self._ends = context, ends
            _log.info("the certificate was taken up anew; it is valid until %s", ends.date().isoformat())
            return True

    def check(self) -> tuple[Level, str]:
        """Say how long the certificate is valid: a check for the service's health."""
        days = (self._ends - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400
        level: Level = "critical" if days < _CRITICAL_DAYS else "warning" if days < self._warning_days else "ok"
        until = f"until {self._ends.date().isoformat()}"
        return level, f"valid {until} ({days:.0f} days)" if days >= 0 else f"was valid {until}; renew it"

    def _make(self) -> ssl.SSLContext:
        return tls.server_context(*self._files, minimum=self._minimum)

    def _state(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for path in self._files:
            try:
                status = path.stat()  # of what a link points at, as renewal programs leave it
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return found


def _end(file: Path) -> datetime.datetime:
    """Return the end of the first certificate of the chain or of any that ends before."""
    try:
        chain = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"TLS certificate {file} cannot be read: {error}.") from error
    return min(one.not_valid_after_utc for one in chain)
