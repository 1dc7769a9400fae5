"""What this account shows to ``gsiftp`` servers: a proxy, a host certificate, or what a MyProxy server hands out.

Fetched credentials lie in a directory of this account only, are renewed before they end, and vanish with the service.
The pass phrase travels on standard input: never as an argument, never in the environment.
"""

from __future__ import annotations

import datetime
import logging
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from dm.common.errors import CommunicationError, ConfigurationError, DmException
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings, MyProxySettings
from dm.station.acquisition.transports.programs import kept, started

_log = logging.getLogger(__name__)
_AGAIN_SECONDS = 60.0
_FETCH_SECONDS = 60.0


class Credentials:
    """The credential of the settings, in the forms that programs and connections need.

    :param settings: with ``proxy``, ``certificate`` and ``key``, ``myproxy``, or none of them.
    :param clock: the time, in seconds since the epoch.
    """

    def __init__(self, settings: GridFtpSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._directory: Path | None = None
        self._ends = 0.0
        self._due = 0.0  # when to fetch the next one

    def environment(self) -> dict[str, str]:
        """Return the environment for programs: nothing else than they need.

        :raises ConfigurationError: :raises CommunicationError: there is no credential to be had.
        """
        settings = self._settings
        found = {**kept(["TMPDIR"]), "LC_ALL": "C", "TZ": "UTC0", "X509_CERT_DIR": str(settings.certificates)}
        if settings.certificate is not None:
            # without this, a proxy of the account in /tmp would be taken
            return found | {
                "X509_USER_PROXY": "/dev/null/none",
                "X509_USER_CERT": str(settings.certificate),
                "X509_USER_KEY": str(settings.key),
            }
        proxy = self._proxy()
        return found | ({"X509_USER_PROXY": str(proxy)} if proxy else {})

    def context(self) -> ssl.SSLContext | None:
        """Return how to prove ourselves on a control channel; ``None`` without a credential.

        :raises ConfigurationError: :raises CommunicationError: there is none to be had.
        """
        settings = self._settings
        if not settings.has_credential:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        proxy = self._proxy()
        try:
            context.load_verify_locations(capath=str(settings.certificates))
            context.load_cert_chain(str(proxy or settings.certificate), str(settings.key) if settings.key else None)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(
                f"Credential {str(proxy or settings.certificate)!r} cannot be used: {error.strerror or error}."
            ) from error
        return context

    def close(self) -> None:
        """Remove what was fetched."""
        with self._lock:
            if self._directory is not None:
                shutil.rmtree(self._directory)
            self._directory, self._ends, self._due = None, 0.0, 0.0

    @property
    def directory(self) -> Path:
        """Where fetched credentials lie; made now if it is not there."""
        with self._lock:
            return self._made()

    def _made(self) -> Path:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="dm-gridftp-"))
        return self._directory

    def _proxy(self) -> Path | None:
        settings = self._settings
        if settings.myproxy is None:
            return settings.proxy
        with self._lock:
            now = self._clock()
            if now >= self._due:
                try:
                    self._fetch(settings.myproxy, now)
                except DmException as error:
                    if now >= self._ends:
                        raise
                    self._due = now + _AGAIN_SECONDS
                    _log.warning("The GridFTP credential is not renewed yet: %s", error)
            assert self._directory is not None
            return self._directory / "proxy"

    def _fetch(self, myproxy: MyProxySettings, now: float) -> None:
        """Fetch a credential and put it in place of the last one."""
        directory = self._made()
        fresh = directory / "fresh"
        fetch(myproxy, self._settings.certificates, fresh)
        self._ends = ends(fresh)
        # measured by its own life: the server may give less than was asked for
        self._due = self._ends - (self._ends - now) / 3
        fresh.replace(directory / "proxy")


def fetch(myproxy: MyProxySettings, certificates: Path, target: Path) -> None:
    """Fetch a credential from a MyProxy server into a file for this account only.

    :raises ConfigurationError: the program or the password file cannot be used.
    :raises CommunicationError: the server does not answer or refuses.
    """
    password = _password(myproxy.password_file)
    command = [
        myproxy.program, "--stdin_pass", "--quiet", "--pshost", myproxy.server, "--psport", str(myproxy.port),
        "--username", myproxy.user, "--proxy_lifetime", str(myproxy.hours), "--out", str(target),
    ]  # fmt: skip
    environment = {**kept(["TMPDIR"]), "LC_ALL": "C", "TZ": "UTC0", "X509_CERT_DIR": str(certificates)}
    # without this, a credential of the account would be shown to the server
    environment |= dict.fromkeys(("X509_USER_PROXY", "X509_USER_CERT", "X509_USER_KEY"), "/dev/null/none")
    what = f"MyProxy server {myproxy.server}:{myproxy.port}"
    try:
        with started(command, environment) as process:
            output, complaints = process.communicate(password + b"\n", timeout=_FETCH_SECONDS)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"Program {myproxy.program!r} is not installed; install the package myproxy."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise CommunicationError(f"{what} does not answer.") from error
    if process.returncode:
        said = " ".join((complaints or output).decode("utf-8", "backslashreplace").split())
        raise CommunicationError(f"{what} hands out no credential for {myproxy.user!r}: {said[:300]}.")


def ends(proxy: Path) -> float:
    """Return when a credential ends, in seconds since the epoch: the first of its certificates that does.

    :raises CommunicationError: it is none.
    """
    try:
        chain = x509.load_pem_x509_certificates(proxy.read_bytes())
    except (OSError, ValueError) as error:
        raise CommunicationError(f"What the MyProxy server sent is no credential: {error}.") from error
    return min(one.not_valid_after_utc for one in chain).astimezone(datetime.UTC).timestamp()


def _password(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            password = stream.readline().rstrip(b"\r\n")
    except OSError as error:
        raise ConfigurationError(f"Password file {str(file)!r} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise ConfigurationError(f"Password file {str(file)!r} is open to others; run: chmod 600 {file}")
    if not password:
        raise ConfigurationError(f"Password file {str(file)!r} is empty; write the pass phrase into its first line.")
    return password
