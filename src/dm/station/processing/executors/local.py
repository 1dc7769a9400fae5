"""The ``local`` executor: each process under a small shell shim in a session of its own.

A process's directory below the spool directory holds its script and what the shim notes about it. As all of that is
on disk, a service that was killed finds its processes again, takes their results, and never starts one twice: shim and
service both create the file ``claim``, and only one of them can.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import ClassVar

from dm.common.errors import ProcessingError
from dm.station.processing.executors.base import MARKER, Outcome, Task
from dm.station.processing.processes import Identity, has_ended, reap, signal_marked

_SHIM_PATH = "/usr/local/bin:/usr/bin:/bin"
_START_SECONDS = 30.0
_POLL_SECONDS = 0.02
_ACCOUNT_SHELL = ("/bin/sh", "-c", 'eval "$(cat)"', "sh")  # another account may not open the script by its name


class Local:
    """Runs processes on this host.

    :param spool: directory for the state of running processes; private to the service.
    :param output_limit: bytes kept of standard output and of standard error, each.
    :param output_grace: seconds to go on reading output after the command itself has ended, for what it left running.
    """

    name: ClassVar[str] = "local"

    def __init__(self, spool: Path, output_limit: int = 1 << 20, output_grace: float = 10.0) -> None:
        self.spool = spool
        self.output_limit = output_limit
        self.output_grace = output_grace
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool.chmod(0o700)
        self._shim = str(resources.files("dm.station.processing.executors") / "shim.sh")
        self._pids: dict[str, int] = {}

    def start(self, task: Task) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        directory = self.spool / task.key
        try:
            directory.mkdir(mode=0o700)
            script = directory / "script"
            script.touch(mode=0o600)
            script.write_bytes(task.script)
            os.mkfifo(directory / "out", 0o600)
            os.mkfifo(directory / "err", 0o600)
            switched = bool(task.account.prefix)
            command = (*task.account.prefix, *_ACCOUNT_SHELL) if switched else ("/bin/sh", "script")
            source = "script" if switched else "/dev/null"
            null = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3)]
            self._pids[task.key] = os.posix_spawn(
                "/bin/sh",
                ["/bin/sh", self._shim, str(directory), str(self.output_limit), source, *command],
                {"PATH": _SHIM_PATH, "LANG": "C"},
                file_actions=null,
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP],
                setsigmask=[],
            )
        except OSError as error:
            raise ProcessingError(f"A process could not be started: {error.strerror} ({error.filename}).") from error

    def find(self, key: str) -> bool:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        try:
            os.close(os.open(self.spool / key / "claim", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return True
        except FileNotFoundError:
            return False
        return False

    async def wait(self, key: str) -> Outcome:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        shim = await self._claimed(key)
        if shim is not None:
            exit_seen = asyncio.create_task(self._linger(key, shim))
            try:
                await shim.ended()
            finally:
                exit_seen.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await exit_seen
            reap(shim.pid)
        self._pids.pop(key, None)
        return await asyncio.to_thread(self._outcome, key)

    async def _claimed(self, key: str) -> Identity | None:
        """Return the shim's identity; the shim may only just have been started."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            identity = self._identity(key, "claim")
            if identity is not None:
                return identity
            pid = self._pids.get(key)
            if pid is not None and has_ended(pid):  # before it could claim
                reap(pid)
                return self._identity(key, "claim")
            await asyncio.sleep(_POLL_SECONDS)
        return None

    async def _linger(self, key: str, shim: Identity) -> None:
        """End the shim when the command has ended long ago but something it left still holds its output open."""
        noted = self.spool / key / "exit"
        while not noted.exists():
            await asyncio.sleep(self.output_grace / 4)
        await asyncio.sleep(self.output_grace)
        await asyncio.to_thread(self.stop, key, signal.SIGKILL)
        await asyncio.sleep(self.output_grace)  # the shim's readers now see the end of the output
        shim.signal_group(signal.SIGKILL)

    def _identity(self, key: str, name: str) -> Identity | None:
        try:
            return Identity.parse((self.spool / key / name).read_text(errors="replace"))
        except OSError:
            return None

    def _outcome(self, key: str) -> Outcome:
        directory = self.spool / key
        stdout, stderr = self._output(directory / "stdout"), self._output(directory / "stderr")
        truncated = max(len(stdout), len(stderr)) >= self.output_limit
        try:
            text = (directory / "exit").read_text()
            end = (directory / "exit").stat().st_mtime
        except OSError:
            text, end = "", time.time()
        if text.endswith("\n"):
            return Outcome(int(text), stdout, stderr, end, truncated)
        self.stop(key, signal.SIGKILL)  # nobody would note its end any more
        reason = "The process disappeared without an exit status (the host restarted, or its supervisor was killed)."
        return Outcome(None, stdout, stderr, end, truncated, reason)

    def _output(self, path: Path) -> bytes:
        try:
            with path.open("rb") as stream:
                return stream.read(self.output_limit)
        except OSError:
            return b""

    def stop(self, key: str, number: signal.Signals) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        command = self._identity(key, "command")
        if command is not None:
            command.signal_group(number)
        signal_marked(MARKER, key, number)

    def forget(self, key: str) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        shutil.rmtree(self.spool / key, ignore_errors=True)

    def sweep(self, keys: Collection[str]) -> None:
        """See :class:`~dm.station.processing.executors.base.Executor`."""
        for place in self.spool.iterdir():
            if place.name.startswith(".") or place.name in keys or not place.is_dir():
                continue
            shim = self._identity(place.name, "claim")
            if shim is None or not shim.alive():
                self.forget(place.name)
