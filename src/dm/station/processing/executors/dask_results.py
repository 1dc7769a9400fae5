"""How results of stages come from dask workers to the service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from dm.station.processing.executors import dask_worker

if TYPE_CHECKING:
    from dm.station.processing.executors.dask_client import Bridge, Stage

_CHUNK = 4 << 20
_TRIES = 4
_STREAMS = ("stdout", "stderr")


class Results:
    """Takes results to the service. :param bridge: the client."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    async def deliver(self, stage: Stage, result: Any) -> None:
        """Deliver a result, whatever a worker made of it."""
        try:
            await self._send(stage, result)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            await self.bridge.lost(
                stage, f"What its worker {stage.name} says of its end cannot be read: {error!r}"[:500]
            )

    async def _send(self, stage: Stage, result: dict[str, Any]) -> None:
        """Send the service the streams and the result of an ended stage."""
        if "reason" in result:
            await self.bridge.ended(stage, reason=f"{result['reason']} ({stage.name}, {stage.worker})")
            return
        if "lost" in result:
            await self.bridge.lost(stage, f"{result['lost']} (worker {stage.name}, {stage.worker})")
            return
        directory = result["directory"]
        for name, kept, size in zip(_STREAMS, result["streams"], result["sizes"], strict=True):
            fetched = min(size, self.bridge.settings.output_limit)
            if not directory or not await self._fetch(stage, f"{directory}/{name}", name, fetched):
                header = {"op": "output", "key": stage.key, "stream": name, "offset": 0}
                await self.bridge.channel.send(header, bytes(kept[:_CHUNK]))
        if directory:
            self.bridge.places[stage.key] = (stage.worker, directory)
        ended = {name: result[name] for name in ("status", "start", "end", "cpu", "memory")}
        cut = [
            name
            for name, size in zip(_STREAMS, result["sizes"], strict=True)
            if size > self.bridge.settings.output_limit
        ]
        await self.bridge.ended(
            stage, body=bytes(result["output"][:_CHUNK]), cut=cut, sizes=list(result["sizes"]), **ended
        )

    async def _fetch(self, stage: Stage, path: str, name: str, size: int) -> bool:
        """Send the service a stream piece by piece; false when its worker has gone meanwhile."""
        offset, failures = 0, 0
        while offset < size:
            part = None
            if self.bridge.away_since is None:
                part = await self.bridge.run_on(
                    dask_worker.read, path, offset, min(_CHUNK, size - offset), worker=stage.worker
                )
                failures += not part
            if part:
                await self.bridge.channel.send(
                    {"op": "output", "key": stage.key, "stream": name, "offset": offset}, part
                )
                offset += len(part)
            elif failures >= _TRIES or self.bridge.stages.get(stage.key) is not stage:
                return False
            else:
                await asyncio.sleep(0.5)
        return True
