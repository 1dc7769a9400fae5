"""GridFTP with GSI as users meet it, for root: a test authority, a server that works for each under their own account,
a gridmap file, and a MyProxy server that hands out short-lived credentials for a password.

::

    with running_gsi(directory, {"d123456": "unixname"}, prefix=inside.prefix) as gsi:
        proxy = gsi.login("d123456")                                    # myproxy-logon
        done = gsi.copy(proxy, "/storage/2026-1/exp1/a.h5", target)     # globus-url-copy
        assert done.returncode == 0, done.stderr
        gsi.map({})                                                     # nobody from now on

The GridFTP server reads the gridmap file at each login, takes on the account's uid and its groups as the system knows
them at that moment (``initgroups``), and keeps those until the connection ends.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.service.gridftp_server import GridAuthority, GridFtpServer, MyProxyServer, program, running, subject


@dataclass(frozen=True)
class Gsi:
    """Running servers and their authority."""

    directory: Path
    authority: GridAuthority
    server: GridFtpServer
    myproxy: MyProxyServer

    @property
    def gridmap(self) -> Path:
        """The file that says who is which Unix account; read at each login."""
        return self.server.gridmap

    def map(self, accounts: Mapping[str, str]) -> None:
        """Let exactly these users in, each as a Unix account."""
        fresh = self.gridmap.with_suffix(".new")
        fresh.write_text("".join(f'"{subject(user)}" {account}\n' for user, account in accounts.items()))
        fresh.replace(self.gridmap)

    def keep(self, user: str) -> None:
        """Give a user a certificate and have MyProxy keep a credential made of it, under :func:`password_of`."""
        self.myproxy.keep(user, password_of(user), *self.authority.issue(user))

    def logon(self, user: str, password: str, proxy: Path, hours: int = 1) -> subprocess.CompletedProcess[str]:
        """Run ``myproxy-logon`` into the file ``proxy``."""
        command = [
            program("myproxy-logon"), "-s", "localhost", "-p", str(self.myproxy.port), "-l", user, "-S",
            "-t", str(hours), "-o", str(proxy),
        ]  # fmt: skip
        return self._run(command, f"{password}\n")

    def login(self, user: str) -> Path:
        """Log in at MyProxy as somebody of :meth:`keep`; return the file with the proxy certificate."""
        proxy = self.directory / f"proxy-{user}"
        done = self.logon(user, password_of(user), proxy)
        assert done.returncode == 0, done
        return proxy

    def copy(self, proxy: Path, path: str | Path, target: Path) -> subprocess.CompletedProcess[str]:
        """Fetch a file of the server with ``globus-url-copy``."""
        command = [program("globus-url-copy"), f"{self.server.url}{quote(str(path))}", f"file://{quote(str(target))}"]
        return self._run(command, proxy=proxy)

    def store(self, proxy: Path, source: Path, path: str | Path) -> subprocess.CompletedProcess[str]:
        """Send a file to the server."""
        command = [program("globus-url-copy"), f"file://{quote(str(source))}", f"{self.server.url}{quote(str(path))}"]
        return self._run(command, proxy=proxy)

    def list(self, proxy: Path, path: str | Path) -> subprocess.CompletedProcess[str]:
        """List a directory of the server."""
        command = [program("globus-url-copy"), "-list", f"{self.server.url}{quote(str(path))}/"]
        return self._run(command, proxy=proxy)

    def _run(
        self, command: Sequence[str], text: str = "", proxy: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "X509_CERT_DIR": str(self.authority.certificates)}
        if proxy is not None:
            environment["X509_USER_PROXY"] = str(proxy)
        return subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=60
        )


def password_of(user: str) -> str:
    """Return the pass phrase of a user at MyProxy."""
    return f"phrase-of-{user}"


@contextmanager
def running_gsi(
    directory: Path, accounts: Mapping[str, str], *, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Iterator[Gsi]:
    """Run both servers for a block, on loopback and free ports.

    :param directory: made, for all their files; the proxies, too. :param accounts: users with certificates and their
        Unix accounts. :param options: more of the GridFTP server's own.
    :param prefix: words before the command of the GridFTP server, which replace themselves by what follows, e.g.
        ``nsenter``: where it looks accounts and files up.
    """
    directory.mkdir(parents=True)
    authority = GridAuthority(directory / "ca")
    with ExitStack() as stack:
        server = stack.enter_context(
            running(GridFtpServer(directory / "gridftp", authority, users=accounts, options=options, prefix=prefix))
        )
        myproxy = stack.enter_context(running(MyProxyServer(directory / "myproxy", authority)))
        gsi = Gsi(directory, authority, server, myproxy)
        for user in accounts:
            gsi.keep(user)
        yield gsi
