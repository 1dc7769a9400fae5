"""The ``dask`` executor: stages on the workers of a dask.distributed scheduler.

The service itself talks to no scheduler; a client process under the workers' account does
(:mod:`~dm.station.processing.executors.dask_client`). What must survive the service is in two places: a note per stage
on this host's disk, written before the stage is offered to anybody, and the ledger at the scheduler
(:mod:`~dm.station.processing.executors.dask_ledger`), which says whether a worker began it and how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dm.common.accounts import Account, chosen
from dm.common.errors import ConfigurationError, ProcessingError
from dm.station.processing.executors import dask_frames
from dm.station.processing.executors.base import MAX_OUTPUT_FILE, Outcome, Task
from dm.station.processing.executors.dask_settings import DaskSettings

log = logging.getLogger(__name__)
_PIP = "pip install 'beamline-dm[dask]'"
_NOTE, _OWNER, _SCHEDULERS, _LOG = "note", ".owner", ".schedulers", ".client.log"
_MAX_LOG = 1 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_END_SECONDS = 10.0
_SLACK = 1024  # for words on what is missing


class _Ended(BaseModel):
    """What the client says of an ended stage."""

    model_config = ConfigDict(extra="forbid")

    op: Literal["ended"]
    key: str
    reason: str = Field(default="", max_length=10_000)
    lost: bool = False
    status: int | None = Field(default=None, ge=-64, le=255)
    start: float | None = None
    end: float | None = None
    cpu: float | None = None
    memory: int | None = None
    cut: list[Literal["stdout", "stderr"]] = []
    sizes: list[int] = []


@dataclass
class _Stage:
    task: Task | None  # None: an earlier engine's
    outcome: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Dask:
    """Runs processes on dask workers. See :class:`~dm.station.processing.executors.base.Executor`."""

    name: ClassVar[str] = "dask"
    settings_model: ClassVar[type[DaskSettings]] = DaskSettings

    def __init__(self, spool: Path, settings: DaskSettings) -> None:
        self.spool = spool
        self.settings = settings
        self.problem = "The client process has not reached the scheduler yet."  # empty while connected
        self._account: Account | None = None
        self._owner = ""
        self._schedulers: list[str] = []
        self._stages: dict[str, _Stage] = {}
        self._finds: dict[str, asyncio.Future[bool | None]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def open(self, keys: Collection[str]) -> None:
        """See the protocol. The scheduler need not be there: what is started meanwhile waits for it."""
        self._check_installed()
        try:
            self._account = chosen(self.settings.account, "stages on dask", "account in the dask executor's settings")
        except ProcessingError as error:
            raise ConfigurationError(error.message) from error
        await asyncio.to_thread(self._prepare, set(keys))
        self._keeper = asyncio.create_task(self._keep(set(keys)))

    def _check_installed(self) -> None:
        wanted = ["distributed"]
        if self.settings.cluster not in (None, "local"):
            wanted.append("dask_jobqueue")
        missing = [name for name in wanted if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigurationError(f"The dask executor needs {' and '.join(missing)}: {_PIP}.")

    def _prepare(self, keys: set[str]) -> None:
        self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.spool.chmod(0o700)
        owner = self.spool / _OWNER
        if not owner.exists():
            _write(owner, uuid.uuid4().hex)
        self._owner = owner.read_text()
        with contextlib.suppress(FileNotFoundError):
            self._schedulers = (self.spool / _SCHEDULERS).read_text().split()
        for place in self.spool.iterdir():
            if not place.name.startswith(".") and place.name not in keys:
                shutil.rmtree(place, ignore_errors=True)

    async def find(self, key: str) -> bool:
        """See the protocol."""
        if not (self.spool / key / _NOTE).exists():
            return False
        if key in self._stages:
            return True
        self._stages[key] = _Stage(None)
        if await self._held(key):
            return True
        del self._stages[key]
        await asyncio.to_thread(shutil.rmtree, self.spool / key, ignore_errors=True)
        return False

    async def _held(self, key: str) -> bool:
        """Whether a worker began a stage, for all that is known; what is not known any more becomes a lost outcome."""
        answer = self._finds[key] = asyncio.get_running_loop().create_future()
        self._send({"op": "find", "key": key})
        held = await answer
        if held:
            return True
        since = json.loads(await asyncio.to_thread((self.spool / key / _NOTE).read_text))["schedulers"]
        others = set(self._schedulers[max(0, since - 1) :]) - set(self._schedulers[-1:])
        if held is None:
            self._lose(key, f"The dask scheduler has not answered for {self.settings.patience:g} s.")
        elif others:
            self._lose(key, "The dask scheduler was restarted, so nobody knows whether it ran.")
        else:
            return False
        return True

    def _lose(self, key: str, reason: str) -> None:
        self._set(key, Outcome(None, time.time(), reason=reason, lost=True))

    def _set(self, key: str, outcome: Outcome) -> None:
        stage = self._stages.get(key)
        if stage is not None and not stage.outcome.done():
            stage.outcome.set_result(outcome)

    async def start(self, task: Task) -> None:
        """See the protocol."""
        assert self._account is not None
        if task.account.name != self._account.name:
            raise ProcessingError(
                f"Stages on dask run under {self._account.name!r}, the account of the workers, not under "
                f"{task.account.name!r}: set the workflow's userAccount to it, or give the stage another executor."
            )
        try:
            await asyncio.to_thread(self._note, task.key)
        except OSError as error:
            raise ProcessingError(f"A process could not be started: {error.strerror} ({error.filename}).") from error
        self._stages[task.key] = _Stage(task)
        self._send({"op": "start", "key": task.key}, task.script)

    def _note(self, key: str) -> None:
        place = self.spool / key
        place.mkdir(mode=0o700)
        _write(place / _NOTE, json.dumps({"schedulers": len(self._schedulers)}))
        _sync(self.spool)

    async def wait(self, key: str) -> Outcome:
        """See the protocol."""
        return await asyncio.shield(self._stages[key].outcome)

    def output(self, key: str, stream: str) -> Path | None:
        """See the protocol. The output of a process comes when it has ended."""
        path = self.spool / key / stream
        return path if path.exists() else None

    async def stop(self, key: str, number: signal.Signals) -> None:
        """See the protocol."""
        if key in self._stages:
            self._send({"op": "stop", "key": key, "number": int(number)})

    async def forget(self, key: str) -> None:
        """See the protocol."""
        self._stages.pop(key, None)
        self._send({"op": "forget", "key": key})
        await asyncio.to_thread(shutil.rmtree, self.spool / key, ignore_errors=True)

    async def close(self) -> None:
        """See the protocol."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        for stage in self._stages.values():
            stage.outcome.cancel()
        for answer in self._finds.values():
            answer.cancel()

    def _send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Tell the client; when there is none at present, the next one is told all that matters."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(dask_frames.pack(header, body))

    async def _keep(self, keys: set[str]) -> None:
        """Keep a client process running."""
        pause = _FIRST_PAUSE
        while True:
            begun = time.monotonic()
            process = await self._launch(keys | self._stages.keys())
            try:
                await self._listen(process)
            except (EOFError, ValueError) as error:
                log.warning("dask: the client process ended or spoke nonsense (%s); see %s", error, self.spool / _LOG)
            except OSError as error:
                log.error("dask: %s", error)
            finally:
                self._process = None
                await _end(process)
            self.problem = f"The client process ended; see {self.spool / _LOG}."
            keys = set()
            pause = _FIRST_PAUSE if time.monotonic() - begun > _LONGEST_PAUSE else min(_LONGEST_PAUSE, 2 * pause)
            await asyncio.sleep(pause)

    async def _launch(self, live: set[str]) -> asyncio.subprocess.Process:
        assert self._account is not None
        path = self.spool / _LOG
        too_long = path.exists() and path.stat().st_size > _MAX_LOG
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DM_", "PYTHON"))}
        python = self.settings.python
        if python is not None and (library := python.parent.parent / "lib").is_dir():  # its own shared libraries
            environment["LD_LIBRARY_PATH"] = ":".join(filter(None, (str(library), os.environ.get("LD_LIBRARY_PATH"))))
        with path.open("wb" if too_long else "ab") as stream:
            process = await asyncio.create_subprocess_exec(
                *self._account.prefix,
                str(python or sys.executable),
                "-P",
                "-m",
                "dm.station.processing.executors.dask_client",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stream,
                cwd="/",
                env=environment | {"HOME": self._account.home, "USER": self._account.name},
                start_new_session=True,
            )
        self._process = process
        begin = {
            "settings": self.settings.model_dump(mode="json"),
            "owner": self._owner,
            "live": sorted(live),
            "account": self._account.name,
        }
        self._send(begin)
        for key in self._finds:
            self._send({"op": "find", "key": key})
        for key, stage in self._stages.items():
            if not stage.outcome.done() and key not in self._finds:
                asyncio.create_task(self._again(key, stage)).add_done_callback(_log_failure)
        return process

    async def _again(self, key: str, stage: _Stage) -> None:
        """A new client: what the old one had not placed is started again, the rest is waited for."""
        if not await self._held(key) and self._stages.get(key) is stage:
            if stage.task is None:
                self._lose(key, "The dask scheduler knows nothing of it any more.")
            else:
                self._send({"op": "start", "key": key}, stage.task.script)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            header, body = await dask_frames.receive(process.stdout)
            match header.get("op"):
                case "attached":
                    await self._attached(str(header.get("scheduler")))
                case "away":
                    self.problem = f"The dask scheduler cannot be reached: {str(header.get('reason'))[:1000]}"
                case "found":
                    answer = self._finds.pop(str(header.get("key")), None)
                    if answer is not None and not answer.done():
                        held = header.get("held")
                        answer.set_result(held if held is None else bool(held))
                case "output":
                    await asyncio.to_thread(self._output, header, body)
                case "ended":
                    await self._ended(header, body)

    async def _attached(self, scheduler: str) -> None:
        """Note a scheduler before anything is offered there."""
        if self._schedulers[-1:] != [scheduler]:
            self._schedulers.append(scheduler)
            await asyncio.to_thread(_write, self.spool / _SCHEDULERS, "\n".join(self._schedulers))
        self.problem = ""
        self._send({"op": "noted"})

    def _output(self, header: dict[str, Any], body: bytes) -> None:
        key, stream, offset = header.get("key"), header.get("stream"), header.get("offset")
        if key not in self._stages or stream not in ("stdout", "stderr") or not isinstance(offset, int):
            return
        if offset < 0 or offset + len(body) > self.settings.output_limit + _SLACK:
            raise ValueError("more output than was asked for")
        with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile
            descriptor = os.open(self.spool / str(key) / stream, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                if offset == 0:
                    file.truncate()
                file.seek(offset)
                file.write(body)

    async def _ended(self, header: dict[str, Any], body: bytes) -> None:
        try:
            said = _Ended.model_validate(header)
        except ValidationError as error:
            self._lose(str(header.get("key")), f"What was said of its end has {error.error_count()} impossible values.")
            return
        if said.key not in self._stages:
            return
        place = self.spool / said.key
        for stream, size in zip(("stdout", "stderr"), said.sizes, strict=False):
            if stream in said.cut:
                text = f"\n[cut: the first {self.settings.output_limit} of {size} bytes]\n"
                await asyncio.to_thread(_append, place / stream, text)
        number = -said.status if said.status is not None and said.status < 0 else None
        self._set(
            said.key,
            Outcome(
                exit_status=said.status if number is None else 128 + number,
                end_time=time.time() if said.end is None else said.end,
                start_time=said.start,
                signal=number,
                reason=said.reason,
                lost=said.lost,
                stdout=place / "stdout",
                stderr=place / "stderr",
                output=body[: MAX_OUTPUT_FILE + 1],
                cpu_seconds=said.cpu,
                max_memory=said.memory,
            ),
        )


def _write(path: Path, text: str) -> None:
    """Replace a small file durably."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _append(path: Path, text: str) -> None:
    with contextlib.suppress(OSError), path.open("a") as stream:
        stream.write(text)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("dask: %r", error)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Close the client's input, which ends it; else kill it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
