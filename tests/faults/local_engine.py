"""A bare engine on the local executor, as a program to be killed: it notes what it knows in a file, line by line.

``<key> start`` before an order, ``<key> found`` or ``<key> never`` for keys of an earlier run, ``<key> end <status>
<lost>``. It keeps sixteen processes running until the file ``stop`` appears.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from dm.station.processing import accounts
from dm.station.processing.executors.base import Task
from dm.station.processing.executors.local import Local, LocalSettings

AT_ONCE = 16
STATUS = 5


class Engine:
    """One run.

    :param base: directory of all runs. :param name: of this one.
    :param account: Unix account of the processes, or empty.
    """

    def __init__(self, base: Path, name: str, account: str) -> None:
        self.base = base
        self.name = name
        self.account = accounts.default(account or None)
        self.chance = random.Random(name)
        self.executor = Local(base / "spool", LocalSettings(output_grace=0.3))

    async def process(self, key: str, known: bool) -> None:
        """Start or find a process, and see it through to its end."""
        if known and await self.executor.find(key):
            self.note(key, "found")
        else:
            if known:
                self.note(key, "never")
                key += "x"
            self.note(key, "start")
            log, pause = self.base / "work" / "log", self.chance.random() * 0.15
            script = f"echo b-{key} >>{log}; sleep {pause:.3f}; echo e-{key} >>{log}; exit {STATUS}"
            await self.executor.start(Task(key, script.encode(), self.account))
        outcome = await self.executor.wait(key)
        self.note(key, "end", str(outcome.exit_status), str(int(outcome.lost)))
        await self.executor.forget(key)

    def note(self, *words: str) -> None:
        """Write a line; a killed process cannot take it back."""
        with (self.base / "engine").open("a") as stream:
            stream.write(" ".join(words) + "\n")

    async def run(self) -> None:
        """Take over what is open, then start more and more."""
        state = {}
        for line in (self.base / "engine").read_text().splitlines():
            key, what, *_ = line.split()
            state[key] = what
        known = [key for key, what in state.items() if what in ("start", "found")]
        await self.executor.open(known)
        running = {asyncio.create_task(self.process(key, True)) for key in known}
        number = 0
        while running or not (self.base / "stop").exists():
            while len(running) < AT_ONCE and not (self.base / "stop").exists():
                number += 1
                running.add(asyncio.create_task(self.process(f"{self.name}-{number}", False)))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        await self.executor.close()


if __name__ == "__main__":
    asyncio.run(Engine(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).run())
