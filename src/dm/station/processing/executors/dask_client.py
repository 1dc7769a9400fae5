"""The dask client of the ``dask`` executor, in a process of its own under the workers' account.

What a dask client receives, it unpickles: whoever is a worker, or reaches the scheduler, can have code run by it. So
the service itself has none. It talks to this process by frames on standard input and output
(:mod:`~dm.station.processing.executors.dask_frames`); this process has no more rights than the workers.

From the service: ``start`` (with the script), ``find``, ``stop``, ``forget``, ``noted``. To the service: ``attached``
(a scheduler, answered by ``noted`` once that is on disk), ``away``, ``found``, ``output`` and ``ended``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from dm.station.processing.executors import dask_frames, dask_ledger, dask_worker
from dm.station.processing.executors.dask_results import Results
from dm.station.processing.executors.dask_settings import DaskSettings
from dm.station.processing.executors.dask_workers import Workers

log = logging.getLogger("dm.dask")
_ROUND = 1.0
_WATCH = 20.0
_ANSWER = 60.0
_STALE_OFFER = 5.0
_FORGOTTEN_OFFER = 60.0
_CONNECT = 5.0
_FAREWELL = 3.0
_UNSUITABLE_GRACE = 2.0
_SIGNAL_TRIES = 50


@dataclass
class Stage:
    """A stage this client looks after.

    :param script: ``None`` when it was started by an earlier client. :param since: when it came into this state.
    """

    key: str
    script: bytes | None
    state: str
    since: float
    worker: str = ""
    name: str = ""
    token: str = ""


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Channel:
    """The way to the service."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()

    async def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame; waits while the service is busy with earlier ones."""
        async with self._lock:
            self._writer.write(dask_frames.pack(header, body))
            await self._writer.drain()


class Bridge:
    """Keeps the connection to the scheduler, and does there what the service asks for.

    :param settings: of the executor. :param owner: id of the service's spool. :param live: keys the service knows;
        what the scheduler has of others is stopped and removed.
    """

    def __init__(self, channel: Channel, settings: DaskSettings, owner: str, live: set[str], account: str) -> None:
        self.channel = channel
        self.settings = settings
        self.owner = owner
        self.live = live
        self.account = account
        self.stages: dict[str, Stage] = {}
        self.finds: set[str] = set()
        self.forgets: set[str] = set()
        self.places: dict[str, tuple[str, str]] = {}  # worker and directory of delivered stages whose output is there
        self.workers = Workers(self)
        self.results = Results(self)
        self.wake = asyncio.Event()
        self.noted = asyncio.Event()
        self.client: Any = None
        self.epoch = 0
        self.scheduler = ""
        self.away_since: float | None = time.monotonic()
        self.wanted = -1
        self.background: set[asyncio.Task[None]] = set()
        self.supervisor = importlib.resources.files(__package__).joinpath("dask_supervisor.py").read_text()

    # the service's side

    async def obey(self) -> None:
        """Do what the service says, until it goes."""
        while True:
            try:
                header, body = await dask_frames.receive(self.channel.reader)
            except EOFError:
                return
            key = header.get("key", "")
            match header["op"]:
                case "start":
                    self.live.add(key)
                    self.stages[key] = Stage(key, body, "queued", time.monotonic())
                case "find":
                    self.finds.add(key)
                case "stop":
                    self.spawn(self._stop(key, int(header["number"])))
                case "forget":
                    self.live.discard(key)
                    self.stages.pop(key, None)
                    self.forgets.add(key)
                    self.finds.discard(key)
                case "noted":
                    self.noted.set()
            self.wake.set()

    async def farewell(self) -> None:
        """Do what the service still said before it went: a cluster ends only when all results are fetched."""
        if self.client is not None and self.away_since is None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._forget(), _FAREWELL)

    def spawn(self, work: Any) -> None:
        """Do something beside the rest."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("in the background: %r", error)

    # the scheduler's side

    async def connect(self) -> None:
        """Keep connected for ever."""
        from distributed import Client, Security

        pause = 0.2
        while True:
            try:
                address, security = await self._address(Security)
                self.client = await asyncio.wait_for(
                    Client(address, security=security, asynchronous=True, set_as_default=False, timeout=_CONNECT),
                    2 * _CONNECT,
                )
                await self._attached()
            except Exception as error:  # whatever breaks between here and the scheduler: connect anew
                if await self._broken(_first(error)):
                    return
            if self.client is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(self.client.close(), _CONNECT)
            self.client = None
            self.workers.forget()
            away = time.monotonic() - (self.away_since or 0)
            if away > self.settings.patience:
                await self._give_up()
            pause = 0.2 if away < 1 else min(5.0, 2 * pause)
            await asyncio.sleep(pause)

    async def _broken(self, error: BaseException) -> bool:
        """Tell the service that the connection is broken; true when another client has taken over."""
        if isinstance(error, PermissionError) and error.errno is None:  # the ledger's word, no file's
            log.error("another client of this service has taken over")
            return True
        if self.away_since is None:
            self.away_since = time.monotonic()
        log.warning("scheduler: %r", error)
        await self.channel.send({"op": "away", "reason": f"{type(error).__name__}: {error}"[:1000]})
        return False

    async def _address(self, security_class: Any) -> tuple[str, Any]:
        settings = self.settings
        if settings.cluster is not None:
            from dm.station.processing.executors import dask_cluster

            found = await dask_cluster.ensure(settings, self.owner)
            return found.address, found.security(security_class)
        if settings.ca_file is None:
            return str(settings.scheduler), None
        role = {"tls_client_cert": str(settings.certificate), "tls_client_key": str(settings.key)}
        return str(settings.scheduler), security_class(
            tls_ca_file=str(settings.ca_file), require_encryption=True, **role
        )

    async def call(self, act: str, **values: Any) -> Any:
        """Have the ledger do something; see :class:`~dm.station.processing.executors.dask_ledger.Ledger`."""
        values = {"owner": self.owner, "epoch": self.epoch, **values}
        return await asyncio.wait_for(self.client.scheduler.dm_ledger_1(act=act, values=values), _ANSWER)

    async def _attached(self) -> None:
        theirs = dict((await self.client.scheduler.versions())["host"])["python"]
        if theirs.split(".")[:2] != [str(part) for part in sys.version_info[:2]]:
            raise RuntimeError(f"the scheduler runs Python {theirs}; the service's is {sys.version.split()[0]}")
        await self.client.register_plugin(dask_ledger.Ledger())
        begun = await self.client.scheduler.dm_ledger_1(act="attach", values={"owner": self.owner})
        self.epoch, self.wanted = begun["epoch"], -1
        self.noted.clear()
        await self.channel.send({"op": "attached", "scheduler": begun["scheduler"]})
        await self.noted.wait()
        if self.scheduler and self.scheduler != begun["scheduler"]:
            await self._other_scheduler()
        self.scheduler = begun["scheduler"]
        await self._reconcile(begun["entries"])
        self.away_since = None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._work())

    async def _other_scheduler(self) -> None:
        for stage in list(self.stages.values()):
            if stage.state != "queued":
                await self.lost(stage, "The dask scheduler was restarted while it ran or was about to.")

    async def _reconcile(self, entries: dict[str, Any]) -> None:
        for key, entry in entries.items():
            if key not in self.live:
                await self._discard(key, entry)
        for stage in list(self.stages.values()):
            if stage.state != "queued" and stage.key not in entries:
                await self.lost(stage, "The dask scheduler knows nothing of it any more.")
            elif stage.key not in entries:
                continue
            elif stage.state == "queued" and not await self.call("withdraw", key=stage.key):
                stage.state = "claimed"  # the answer to the offer was lost on the way, and yet it was taken

    async def _discard(self, key: str, entry: dict[str, Any]) -> None:
        """Stop and remove what the service wants to know nothing of any more."""
        if not await self.call("withdraw", key=key):
            if entry["state"] == dask_ledger.CLAIMED:
                await self._signal(entry["worker"], entry["token"], signal.SIGKILL)
            elif directory := (entry["result"] or {}).get("directory"):
                await self.run_on(dask_worker.remove, directory, worker=entry["worker"])
            await self.call("drop", key=key)

    async def _signal(self, worker: str, token: str, number: int) -> None:
        """Signal a claimed stage, which its worker may only be about to start."""
        for _ in range(_SIGNAL_TRIES):
            if await self.run_on(dask_worker.send_signal, token, number, worker=worker) is not False:
                return
            await asyncio.sleep(0.2)

    async def _watch(self) -> None:
        seen, patience = 0, min(_WATCH, self.settings.linger / 3)  # a cluster ends when nobody asks for it
        while True:
            news = await self.call("watch", seen=seen, patience=patience)
            seen = news["version"]
            for key, entry in news["changed"].items():
                stage = self.stages.get(key)
                if stage is not None:
                    await self._news(stage, entry)
            self.wake.set()

    async def _news(self, stage: Stage, entry: dict[str, Any]) -> None:
        if stage.state == "ending":
            return
        stage.worker, stage.name, stage.token = entry["worker"], entry["name"], entry["token"]
        match entry["state"]:
            case dask_ledger.CLAIMED:
                stage.state = "claimed"
            case dask_ledger.ENDED:
                stage.state = "ending"
                self.spawn(self.results.deliver(stage, entry["result"]))
            case dask_ledger.LOST:
                await self._cancel(stage.token)
                await self.lost(stage, f"The dask worker {stage.name} ({stage.worker}) went away while it ran.")
            case dask_ledger.UNPLACED:
                await self._take_back(stage)

    async def _take_back(self, stage: Stage) -> bool:
        """Take an offer back and queue the stage again."""
        if not await self.call("withdraw", key=stage.key):
            return False
        await self._cancel(stage.token)
        stage.state = "queued"
        return True

    async def _cancel(self, token: str) -> None:
        """Have the scheduler forget a task that will not run: it waits for a worker that has gone."""
        from distributed import Future

        with contextlib.suppress(Exception):
            await self.client.cancel([Future(token, client=self.client)], force=True)

    async def _work(self) -> None:
        """Place what waits, take back offers nobody claims, answer the service, in rounds."""
        while True:
            self.wake.clear()
            await self._find()
            await self._forget()
            queued = [stage for stage in self.stages.values() if stage.state == "queued"]
            if queued:
                await self._place(queued)
            await self._stale()
            wanted = sum(stage.state != "ending" for stage in self.stages.values())
            if wanted != self.wanted:
                await self.call("want", threads=wanted)
                self.wanted = wanted
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), _ROUND)

    async def _find(self) -> None:
        """Answer whether stages of an earlier client were started; those that were not never will be."""
        keys = list(self.finds)
        if not keys:
            return
        held = [key for key in keys if not await self.call("withdraw", key=key)]
        kept = (await self.call("watch", seen=0, patience=0.0))["changed"]
        for key in keys:
            if key in held and key not in self.stages:
                self.stages[key] = Stage(key, None, "claimed", time.monotonic())
            await self.channel.send({"op": "found", "key": key, "held": key in held})
            self.finds.discard(key)
            if key in held:
                await self._news(self.stages[key], kept[key])

    async def _forget(self) -> None:
        """Remove what is kept about stages; one that the service gave up before its end is stopped."""
        keys = list(self.forgets)
        if not keys:
            return
        for key in keys:
            if (place := self.places.pop(key, None)) is not None:
                self.spawn(self.run_on(dask_worker.remove, place[1], worker=place[0]))
        for key, entry in (await self.call("forget", keys=keys)).items():
            self.spawn(self._discard(key, entry))
        self.forgets.difference_update(keys)

    async def _place(self, queued: list[Stage]) -> None:
        from distributed import fire_and_forget

        workers = await self.workers.seen()
        now = time.monotonic()
        room = sum(max(0, workers[address][2]) for address in self.workers.suitable)
        placed = {}
        if room:
            keys = [stage.key for stage in queued[:room]]
            placed = await self.call("place", keys=keys, allowed=sorted(self.workers.suitable))
        for key, (address, name, token) in placed.items():
            stage = self.stages.get(key)
            if stage is None or stage.state != "queued":  # stopped meanwhile
                await self.call("withdraw", key=key)
                continue
            stage.state, stage.since = "placed", now
            stage.worker, stage.name, stage.token = address, name, token
            order = self._order(stage)
            fire_and_forget(
                self.client.submit(
                    dask_worker.run,
                    order,
                    key=token,
                    workers=[address],
                    allow_other_workers=False,
                    pure=False,
                    retries=0,
                )
            )
        if workers and not self.workers.suitable:
            await self._none_suitable(queued)
        for stage in queued:
            if stage.state == "queued" and now - stage.since > self.settings.wait_for_worker:
                await self.ended(
                    stage, reason=f"No dask worker was free for it within {self.settings.wait_for_worker:g} s."
                )

    def _order(self, stage: Stage) -> dict[str, Any]:
        settings = self.settings
        return {
            "owner": self.owner,
            "key": stage.key,
            "token": stage.token,
            "script": stage.script,
            "supervisor": self.supervisor,
            "limit": settings.output_limit,
            "grace": settings.output_grace,
            "directory": str(settings.run_directory or ""),
            "environment": settings.worker_environment,
            "variables": {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C", "DM_PROCESSING_KEY": stage.key},
        }

    async def _none_suitable(self, queued: list[Stage]) -> None:
        refused = self.workers.unsuitable
        address, why = next(iter(refused.items()), ("", ""))
        reason = f"None of the {len(refused)} dask workers can run it; the one at {address} {why}."
        for stage in queued:
            if why and time.monotonic() - stage.since > _UNSUITABLE_GRACE:
                await self.ended(stage, reason=reason)

    async def _stale(self) -> None:
        """Give an offer to another worker when the chosen one does not take it: it is paused, or busy for others."""
        now = time.monotonic()
        waiting = [s for s in self.stages.values() if s.state == "placed" and now - s.since > _STALE_OFFER]
        if not waiting:
            return
        workers = await self.workers.seen()
        spare = [a for a, (_, _, free, takes) in workers.items() if a in self.workers.suitable and takes and free > 0]
        for stage in waiting:
            taking = stage.worker in workers and workers[stage.worker][3] and now - stage.since < _FORGOTTEN_OFFER
            if (not taking or any(address != stage.worker for address in spare)) and await self._take_back(stage):
                stage.since = now
                self.wake.set()

    async def run_on(self, function: Any, *arguments: Any, worker: str) -> Any:
        """Run a function of :mod:`dask_worker` on a worker; ``None`` when the worker cannot be reached."""
        try:
            done = await asyncio.wait_for(
                self.client.run(function, *arguments, workers=[worker], on_error="ignore"), _ANSWER
            )
        except (OSError, KeyError, TimeoutError, AttributeError):
            return None
        return done.get(worker)

    async def _stop(self, key: str, number: int) -> None:
        stage = self.stages.get(key)
        if stage is None or stage.state == "ending":
            return
        if stage.state == "queued":
            await self.ended(stage, reason="It was stopped before a dask worker started it.")
            return
        for _ in range(_SIGNAL_TRIES):
            if self.client is not None and self.stages.get(key) is stage and stage.state != "ending":
                if stage.state == "placed" and await self.call("withdraw", key=key):
                    await self._cancel(stage.token)
                    await self.ended(stage, reason="It was stopped before a dask worker started it.")
                    return
                if await self.run_on(dask_worker.send_signal, stage.token, number, worker=stage.worker):
                    return
            elif self.stages.get(key) is not stage or stage.state == "ending":
                return
            await asyncio.sleep(0.2)  # the worker has claimed it and not started it yet, or the scheduler is away

    async def lost(self, stage: Stage, reason: str) -> None:
        """Tell the service that a stage is lost."""
        await self.ended(stage, reason=reason, lost=True)

    async def ended(self, stage: Stage, body: bytes = b"", **values: Any) -> None:
        """Tell the service how a stage ended, or why it was not started."""
        stage.state = "ending"
        if self.stages.get(stage.key) is stage:
            del self.stages[stage.key]
        await self.channel.send({"op": "ended", "key": stage.key, **values}, body)

    async def _give_up(self) -> None:
        """The scheduler has been away for too long: what it ran is lost, what waits for it fails."""
        reason = f"The dask scheduler has not answered for {self.settings.patience:g} s."
        for stage in list(self.stages.values()):
            if stage.state == "queued":
                await self.ended(stage, reason=reason)
            elif stage.state != "ending":
                await self.lost(stage, reason)
        while self.finds:
            await self.channel.send({"op": "found", "key": self.finds.pop(), "held": None})


async def _main() -> None:
    loop = asyncio.get_running_loop()
    out = os.dup(1)
    os.dup2(2, 1)  # nobody else writes frames
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(out, "wb"))
    channel = Channel(reader, asyncio.StreamWriter(transport, protocol, None, loop))
    begin, _ = await dask_frames.receive(reader)
    settings = DaskSettings.model_validate(begin["settings"])
    bridge = Bridge(channel, settings, begin["owner"], set(begin["live"]), begin["account"])
    connection = asyncio.create_task(bridge.connect())
    service = asyncio.create_task(bridge.obey())
    await asyncio.wait({connection, service}, return_when=asyncio.FIRST_COMPLETED)
    for task in (connection, service):
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.error("ended: %r", error)
    await bridge.farewell()
    logging.shutdown()
    os._exit(0)  # neither threads of distributed nor its farewell to the scheduler are waited for


def main() -> None:
    """Serve the service until it goes."""
    import cloudpickle

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if os.geteuid() == 0:
        sys.exit("The dask client never runs as root.")
    for module in (dask_ledger, dask_worker):
        cloudpickle.register_pickle_by_value(module)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        asyncio.run(_main())


if __name__ == "__main__":
    main()
