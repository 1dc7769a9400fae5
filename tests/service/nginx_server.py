"""nginx in front of several services, as the sample in ``etc/nginx`` has it; without root, on a free port."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dm.common.hosting import free_port

SAMPLE = Path(__file__).parents[2] / "etc" / "nginx" / "dm.conf"
_SECONDS = 20.0
_MAIN = """\
daemon off;
master_process on;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/dm.conf;
}}
"""


@dataclass(frozen=True)
class Nginx:
    """A running nginx.

    :param port: its HTTPS port. :param directory: with ``error.log`` and ``access.log``.
    """

    port: int
    directory: Path

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"https://localhost:{self.port}/dm"


def configuration(backends: Sequence[int], certificates: Path, port: int) -> str:
    """Return the sample of ``etc/nginx`` with our ports and certificates.

    :param backends: ports of the storage services behind.
    """
    text = SAMPLE.read_text()
    servers = "".join(f"    server 127.0.0.1:{backend} max_fails=0;\n" for backend in backends)
    upstream = re.compile(r"(upstream dm_storage \{\n)(?:    (?:server|#).*\n)*")
    text, count = upstream.subn(lambda match: match[1] + servers, text)
    assert count == 1, "the sample has an upstream dm_storage"
    replaced = {
        r"listen +22237 ssl": f"listen 127.0.0.1:{port} ssl",
        r"/etc/ssl/dm\.example\.org\.pem": str(certificates / "server.pem"),
        r"/etc/ssl/dm\.example\.org\.key": str(certificates / "server.key"),
        r"/opt/dm/etc/certificates/ca\.pem": str(certificates / "ca.pem"),
    }
    for pattern, value in replaced.items():
        text, count = re.subn(pattern, lambda _, value=value: value, text)
        assert count, f"the sample has {pattern}"
    return text


@contextmanager
def running_nginx(backends: Sequence[int], certificates: Path, directory: Path) -> Iterator[Nginx]:
    """Run nginx in front of storage services until the block ends.

    :param backends: their ports. :param certificates: with ``ca.pem``, ``server.pem``, ``server.key``.
    """
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    assert program, "nginx is not installed; run make test-deps"
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (directory / "dm.conf").write_text(configuration(backends, certificates, port))
    (directory / "nginx.conf").write_text(_MAIN.format(directory=directory))
    words = [program, "-p", str(directory), "-e", str(directory / "error.log"), "-c", str(directory / "nginx.conf")]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _wait(process, port)
        yield Nginx(port, directory)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_SECONDS)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else "nginx ended"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "nginx does not listen"
            time.sleep(0.02)
