"""Running a stage for one input file: as many processes, one after the other, as its policies allow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dm.common import statuses
from dm.station.processing.childrun import ChildRun
from dm.station.processing.documents import Child

if TYPE_CHECKING:
    from dm.station.processing.stagerun import StageRun

MAX_LOST = 3  # processes of a file lost in a row: it is not chance any more
_LONGEST_PAUSE = 86_400.0


class FileRun:
    """One input file of a stage.

    :param stage: its stage. :param file: index of the input file. :param repeat: which repeat of the stage.
    :param tried: the processes that were run for it in this repeat, oldest first.
    """

    def __init__(self, stage: StageRun, file: int, repeat: int, tried: list[Child]) -> None:
        self.stage = stage
        self.file = file
        self.repeat = repeat
        self.tried = list(tried)

    async def run(self) -> Child | None:
        """Run until a process succeeded or no policy allows another; return the last one.

        :returns: ``None`` when the job was stopped before any was started. :raises DmException: it cannot be run.
        """
        while True:
            last = self.tried[-1] if self.tried else None
            if last is not None and last.ended:
                pause = self._pause()
                if pause is None:
                    return last
                if not await self._rest(min(pause, max(0.0, (last.endTime or 0.0) + pause - time.time()))):
                    return last  # the clock of another host, or this one's before, may be ahead
                last = None
            child = await ChildRun(self.stage, self.file, self.repeat, last, len(self.tried) - (last is not None)).run()
            if child is None:
                return self.tried[-1] if self.tried else None
            self.tried[len(self.tried) - (last is not None) :] = [child]  # one that was never started has a new record

    def _pause(self) -> float | None:
        """Return the seconds between the end of the last process and the next one; ``None``: there is none."""
        last = self.tried[-1]
        if last.status != statuses.FAILED or self.stage.abort.is_set() or self.stage.halt.is_set():
            return None
        lost = [child for child in self.tried if child.lost]
        if last.lost:
            return 0.0 if self._reruns() and len(lost) <= MAX_LOST else None
        retry = self.stage.stage.get("retry") or {}
        failures = len(self.tried) - len(lost)
        if failures > int(retry.get("count") or 0):
            return None
        return float(min(_LONGEST_PAUSE, float(retry.get("backoff") or 0) * 2 ** min(failures - 1, 30)))

    def _reruns(self) -> bool:
        job = self.stage.job
        policy = self.stage.stage.get("onLost") or job.workflow.get("onLost") or job.context.settings.lost_stage
        return bool(policy == "rerun")

    async def _rest(self, seconds: float) -> bool:
        """Wait between two attempts; say whether there is to be another one."""
        if seconds <= 0:
            return True
        await self.stage.job.flush()
        return await self.stage.job.rest(seconds, self.stage.abort, self.stage.halt)
