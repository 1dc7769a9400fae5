"""The executors of a service by name: one by default, others where a stage names them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from dm.common.errors import DmException, ProcessingError
from dm.station.processing.executors.base import Executor

log = logging.getLogger(__name__)
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


class Executors:
    """Executors, each opened as soon as what it needs is there. For use in the engine's loop.

    :param default: name of the one that runs stages which name none. :param executors: by name.
    """

    def __init__(self, default: str, executors: Mapping[str, Executor]) -> None:
        self.default = default
        self._executors = dict(executors)
        self._opening: dict[str, asyncio.Task[None]] = {}
        self.problems: dict[str, str] = {}  # why one cannot be used at present, by name

    def troubles(self) -> dict[str, str]:
        """Return why executors cannot be used at present, by name: not opened, or out of reach since."""
        out_of_reach = {name: str(getattr(executor, "problem", "")) for name, executor in self._executors.items()}
        return {name: problem for name, problem in {**out_of_reach, **self.problems}.items() if problem}

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._executors)

    async def open(self, keys: Mapping[str, Collection[str]]) -> None:
        """Open all; one that cannot be opened now is tried again and again, and its stages wait.

        :param keys: by executor: the processes whose results are not recorded yet.
        """
        for name, executor in self._executors.items():
            try:
                await executor.open(keys.get(name, ()))
            except (DmException, OSError) as error:
                if name == self.default == "local":
                    raise
                self.problems[name] = _why(error)
                self._opening[name] = asyncio.create_task(self._open_later(name, executor, keys.get(name, ())))

    async def _open_later(self, name: str, executor: Executor, keys: Collection[str]) -> None:
        pause = _FIRST_PAUSE
        while name in self.problems:
            log.warning("executor %s: %s", name, self.problems[name])
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
            try:
                await executor.open(keys)
            except (DmException, OSError) as error:
                self.problems[name] = _why(error)
            else:
                del self.problems[name]

    def opened(self, name: str) -> bool:
        """Whether nobody has to wait for this executor."""
        return name not in self.problems

    async def get(self, name: str) -> Executor:
        """Return an executor, waiting until it is open. :raises ProcessingError: there is none of that name."""
        if name not in self._executors:
            raise ProcessingError(
                f"Executor {name!r} is not configured at this service; known: {', '.join(self.names)}."
            )
        if (opening := self._opening.get(name)) is not None:
            await asyncio.shield(opening)
        return self._executors[name]

    def output(self, name: str, key: str, stream: str) -> Path | None:
        """Return where an executor has the output of a process; see :meth:`Executor.output`; from any thread."""
        executor = self._executors.get(name)
        return executor.output(key, stream) if executor is not None else None

    async def close(self) -> None:
        """Close all; their processes go on."""
        for task in self._opening.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for name, executor in self._executors.items():
            if name not in self.problems:
                await executor.close()


def _why(error: DmException | OSError) -> str:
    return error.message if isinstance(error, DmException) else f"It cannot be opened: {error}."
