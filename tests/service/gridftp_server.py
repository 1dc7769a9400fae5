"""Real GridFTP and MyProxy servers for tests, on loopback and free ports, with a certificate authority of their own.

::

    authority = GridAuthority(directory / "ca")
    with running(GridFtpServer(directory / "anonymous")) as server: ...             # ftp://127.0.0.1:port
    with running(GridFtpServer(directory / "secure", authority)) as server: ...     # gsiftp://localhost:port
    with running(MyProxyServer(directory / "myproxy", authority)) as myproxy:
        myproxy.keep("station", "pass phrase", *authority.issue("station"))

The servers run for the account of the tests, or as root for any account given; they need the packages
``globus-gridftp-server-progs``, ``globus-gass-copy-progs``, ``globus-proxy-utils``, ``myproxy`` and ``myproxy-server``.
"""

from __future__ import annotations

import datetime
import getpass
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.service.acquisition_hosts import free_port, wait_for_port

ORGANIZATION = "DM Test"
_PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"


def program(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    assert found, f"{name} is not installed; run: make test-deps"
    return found


class GridAuthority:
    """A certificate authority that Globus programs trust when ``X509_CERT_DIR`` is :attr:`certificates`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificates = directory / "certificates"
        self.certificates.mkdir(parents=True)
        self._key = _new_key()
        self._name = _name("Test CA")
        authority = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        text = authority.public_bytes(serialization.Encoding.PEM)
        (directory / "ca.pem").write_bytes(text)
        done = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", directory / "ca.pem"], capture_output=True, check=True
        )
        hashed = done.stdout.decode().strip()
        (self.certificates / f"{hashed}.0").write_bytes(text)
        (self.certificates / f"{hashed}.signing_policy").write_text(
            f"access_id_CA X509 '{subject('Test CA')}'\npos_rights globus CA:sign\n"
            f"cond_subjects globus '\"/O={ORGANIZATION}/*\"'\n"
        )

    def issue(self, name: str, hosts: Sequence[str] = (), hours: float = 24) -> tuple[Path, Path]:
        """Issue a certificate; return its file and the file of its key.

        :param hosts: names of the machine, for servers.
        """
        key = _new_key()
        builder = (
            self._builder(_name(name), key.public_key(), hours)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        files = self.directory / f"{name}-cert.pem", self.directory / f"{name}-key.pem"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        files[1].chmod(0o600)
        return files

    def key(self) -> Path:
        """Return a file with the authority's own key, for servers that issue certificates themselves."""
        file = self.directory / "ca.key"
        file.write_bytes(
            self._key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        file.chmod(0o600)
        return file

    def _builder(self, name: x509.Name, key: rsa.RSAPublicKey, hours: float = 48) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=10))
            .not_valid_after(now + datetime.timedelta(hours=hours))
        )


class GridFtpServer:
    """A ``globus-gridftp-server``: anonymous, or with GSI when there is an authority.

    :param directory: made, for its configuration. :param account: it works for; default: that of the tests.
    :param users: names of :meth:`GridAuthority.issue` that may log in; with their Unix accounts when a mapping, which
    needs root. :param options: more of the server's own.
    :param prefix: a command that starts it, e.g. in another mount namespace.
    """

    def __init__(
        self,
        directory: Path,
        authority: GridAuthority | None = None,
        *,
        account: str = "",
        users: Sequence[str] | Mapping[str, str] = ("station",),
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True)
        (directory / "conf.d").mkdir()
        self.port = free_port()
        self.url = f"gsiftp://localhost:{self.port}" if authority else f"ftp://127.0.0.1:{self.port}"
        self.log = directory / "log"
        self._account = account or getpass.getuser()
        self._environment = {"PATH": _PATH}
        self._command = [
            *prefix, program("globus-gridftp-server"), "-p", str(self.port),
            "-c", "/dev/null", "-C", str(directory / "conf.d"),
            "-control-interface", "127.0.0.1", "-data-interface", "127.0.0.1", "-log-level", "ERROR,WARN,INFO",
            "-l", str(self.log), *options,
        ]  # fmt: skip
        accounts = users if isinstance(users, Mapping) else dict.fromkeys(users, self._account)
        if "root" in (accounts.values() if authority else [self._account]):  # it refuses that unless it is told
            self._command.append("-allow-root")
        if authority is None:
            self._command += ["-aa", "-anonymous-user", self._account]
        else:
            certificate, key = authority.issue("localhost", ["localhost"])
            self.gridmap = directory / "grid-mapfile"
            self.gridmap.write_text("".join(f'"{subject(user)}" {account}\n' for user, account in accounts.items()))
            self._environment |= {
                "X509_CERT_DIR": str(authority.certificates),
                "X509_USER_CERT": str(certificate),
                "X509_USER_KEY": str(key),
                "GRIDMAP": str(self.gridmap),
            }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, also again on the same port."""
        self._process = _started(self._command, self._environment, self.port)

    def stop(self) -> None:
        """End it with all connections."""
        if self._process is not None:
            _ended(self._process)
        self._process = None

    def signal(self, number: int) -> None:
        """Send a signal to it and to the processes of its connections."""
        assert self._process is not None
        os.killpg(self._process.pid, number)


class MyProxyServer:
    """A ``myproxy-server`` that hands out what :meth:`keep` was given.

    :param config: its configuration, instead of one for that. :param prefix: words before its command.
    """

    def __init__(self, directory: Path, authority: GridAuthority, config: str = "", prefix: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True)
        store = directory / "store"
        store.mkdir(mode=0o700)
        (directory / "config").write_text(
            config
            or 'accepted_credentials "*"\nauthorized_retrievers "*"\ndefault_retrievers "*"\n'
            'authorized_renewers "*"\ndefault_renewers "none"\n'
        )
        file = directory / "config"
        file.chmod(0o600)
        self.port = free_port()
        self._authority = authority
        certificate, key = authority.issue("localhost", ["localhost"])
        self._environment = {
            "PATH": _PATH,
            "X509_CERT_DIR": str(authority.certificates),
            "X509_USER_CERT": str(certificate),
            "X509_USER_KEY": str(key),
        }
        self._command = [
            *prefix, program("myproxy-server"), "-p", str(self.port), "-l", "localhost", "-c", str(file),
            "-s", str(store), "-P", str(directory / "pid"),
        ]  # fmt: skip
        self._pid = directory / "pid"

    def start(self) -> None:
        """Start it: it goes into the background by itself (kept in front, it ends after one connection)."""
        subprocess.run(self._command, env=self._environment, check=True, timeout=30, capture_output=True)
        wait_until(lambda: self._pid.exists() and bool(self._pid.read_text().strip()), "no MyProxy server runs")

    def stop(self) -> None:
        """End it."""
        if self._pid.exists():
            process = psutil.Process(int(self._pid.read_text()))
            process.kill()
            process.wait(20)
            self._pid.unlink()

    def keep(self, user: str, password: str, certificate: Path, key: Path, hours: int = 20) -> None:
        """Have it keep a credential under a name and a pass phrase."""
        environment = {
            "PATH": _PATH,
            "X509_CERT_DIR": str(self._authority.certificates),
            "X509_USER_CERT": str(certificate),
            "X509_USER_KEY": str(key),
        }
        command = [
            program("myproxy-init"), "-s", "localhost", "-p", str(self.port), "-l", user, "-S", "-c", str(hours),
        ]  # fmt: skip
        done = subprocess.run(
            command, input=f"{password}\n".encode(), env=environment, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done


class Runs(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


Server = TypeVar("Server", bound=Runs)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server for a block."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def subject(name: str) -> str:
    """Return how Globus writes the subject of a certificate."""
    return f"/O={ORGANIZATION}/CN={name}"


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def _started(command: Sequence[str], environment: dict[str, str], port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port, process)
    except BaseException:
        _ended(process)
        raise
    return process


def _ended(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGCONT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
    process.wait(20)


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
