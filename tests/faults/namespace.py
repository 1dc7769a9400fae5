"""Mounts of our own: a mount namespace in which a bench runs, so that disks can be small, full or read-only.

Root makes one as it is; another account becomes root of a user namespace first.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.bench import ROOT


@dataclass(frozen=True)
class Namespace:
    """A mount namespace.

    :param holder: a process that keeps it.
    """

    holder: int

    @property
    def prefix(self) -> list[str]:
        """Words that run a command inside."""
        user = [] if ROOT else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.holder), "--mount", *user, "--"]

    def view(self, path: str | Path) -> Path:
        """Return where a path of the inside is seen from outside."""
        return Path(f"/proc/{self.holder}/root{path}")

    def run(self, *words: str | Path) -> None:
        """Run a command inside."""
        subprocess.run([*self.prefix, *map(str, words)], check=True, timeout=60)

    def mount(self, directory: Path, options: str) -> None:
        """Put a small memory file system onto a directory (made when missing)."""
        directory.mkdir(parents=True, exist_ok=True)
        self.run("mount", "-t", "tmpfs", "-o", options, "none", directory)

    def remount(self, directory: Path, options: str) -> None:
        """Change it."""
        self.run("mount", "-t", "tmpfs", "-o", f"remount,{options}", "none", directory)


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace that lives until the block ends, as do the mounts in it."""
    command = ["unshare", "--mount", *([] if ROOT else ["--map-root-user"])]
    with subprocess.Popen(
        [*command, "sh", "-c", "echo ready; exec sleep 86400"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"ready\n"
            yield Namespace(holder.pid)
        finally:
            holder.kill()
