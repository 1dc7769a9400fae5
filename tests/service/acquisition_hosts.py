"""Real servers for tests of remote transfers, on loopback ports: an sshd and an rsync daemon of our own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


@contextmanager
def running(port: int, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(20)


@contextmanager
def running_sshd(directory: Path) -> Iterator[list[str]]:
    """A real sshd for the current account; yields the ssh command that reaches it."""
    directory.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    (directory / "authorized").write_bytes((directory / "user.pub").read_bytes())
    port = free_port()
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
        f"PidFile {directory}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    (directory / "known").write_text(f"[localhost]:{port} {(directory / 'host.pub').read_text()}")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    with running(port, SSHD, "-D", "-e", "-f", config):
        yield [
            "ssh", "-F", "none", "-p", str(port), "-i", str(directory / "user"),
            "-o", f"UserKnownHostsFile={directory / 'known'}", "-o", "StrictHostKeyChecking=yes",
            "-o", "IdentitiesOnly=yes",
        ]  # fmt: skip


@contextmanager
def running_rsync_daemon(directory: Path, motd: str = "") -> Iterator[tuple[int, Path, Path]]:
    """A real rsync daemon; yields its port, the directory its module ``dm`` shows, and a password file.

    :param motd: text it greets with.
    """
    directory.mkdir()
    (directory / "files").mkdir()
    (directory / "secrets").write_text("station:secret\n")
    (directory / "password").write_text("secret\n")
    (directory / "motd").write_text(motd)
    for name in ("secrets", "password"):
        (directory / name).chmod(0o600)
    port = free_port()
    # without root a daemon cannot change its root directory
    config = directory / "rsyncd.conf"
    config.write_text(
        f"use chroot = no\npid file = {directory}/pid\nlog file = {directory}/log\n"
        f"motd file = {directory}/motd\n[dm]\npath = {directory}/files\n"
        f"read only = no\nauth users = station\nsecrets file = {directory}/secrets\nuid = {os.getuid()}\n"
        f"gid = {os.getgid()}\nmunge symlinks = no\n"
    )
    with running(
        port, "rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={config}"
    ):
        yield port, directory / "files", directory / "password"


def may_mount(request: pytest.FixtureRequest) -> bool:
    """Whether this account may mount; if not, run the whole test once more in a namespace where it may."""
    if os.geteuid() == 0:
        return True
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={place}/tests"]
        done = subprocess.run(
            ["unshare", "--map-root-user", "--mount", *command, request.node.nodeid],
            cwd=request.config.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert done.returncode == 0, done.stdout.decode()
    return False


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[Callable[[int], None]]:
    """A small file system of its own on a directory; yields what gives it another size in megabytes.

    It needs the right to mount; see :func:`may_mount`.
    """
    size = f"size={megabytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], check=True)
    try:
        yield lambda more: subprocess.run(["mount", "-o", f"remount,size={more}m", directory], check=True) and None
    finally:
        # a server that wrote there may need a moment to let go
        deadline = time.monotonic() + 20
        while subprocess.run(["umount", directory], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{directory} is still in use"
            time.sleep(0.05)
