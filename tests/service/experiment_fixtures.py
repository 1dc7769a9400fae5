"""Experiments with files in them, and processes that work on them and die."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dm.site.storage.api import Experiment
from dm.site.storage.manifest import read
from tests.service import storage_fixtures as fx

RUNNER = Path(__file__).with_name("experiment_process.py")
CONTENTS = {"a": b"alpha", "run1/b": b"beta", "run1/deep/c": b""}
STEPS = [9, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(900)])]


def named(prefix: str = "exp") -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def filled(site: fx.Site, name: str, **options: Any) -> Experiment:
    """Return an experiment with some published files, and nothing running."""
    made = site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, **options)
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    outcome = fx.publish(site.station(), grant, CONTENTS)
    assert {found["status"] for found in outcome.values()} == {"stored"}
    site.station().deleteGrant(grant["id"])
    return made


def finished(api: Any, operation: Any, status: str = "done") -> Any:
    deadline = time.monotonic() + 30
    while operation["status"] in ("pending", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        operation = api.getOperation(operation["id"])
    assert operation["status"] == status, operation
    return operation


def whole(site: fx.Site, record: Any) -> None:
    """Check that an experiment has all that :func:`filled` put into it, at its place, verified."""
    data = Path(record["dataDirectory"])
    on_disk = {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    assert on_disk == CONTENTS
    files = site.files(fx.MANAGER)
    for path in CONTENTS:
        assert files.statFile(path, record["name"], fx.STATION)["readyForProcessing"]
    assert {line["path"] for line in read(record["storageDirectory"])} == set(CONTENTS)


class Deaths:
    """A process whose children do one thing each, and die where they are told to."""

    def __init__(self, site: fx.Site) -> None:
        settings = json.loads(site.settings.model_dump_json()) | {"publisher_threads": 0}
        command = [sys.executable, str(RUNNER), json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, call: str, death: int = 0, **arguments: Any) -> int:
        """Return the exit status of the child that did it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"call": call, "arguments": arguments, "death": death}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def rounds(self, step: int, call: str, before: Any, after: Any, **arguments: Any) -> int:
        """Have it done with deaths at every ``step``-th change until one survives; each time go on in another child.

        :param before: called ahead of each; returns more arguments. :param after: checks what came of it.
        """
        for death in range(1, 200, step):
            more = before()
            status = self.do(call, death, **arguments, **more)
            if status == -signal.SIGKILL:
                assert self.do("nothing") == 0
            else:
                assert status == 0
            if not after(**more):  # it died before anything was asked for
                assert status == -signal.SIGKILL
                assert self.do(call, **arguments, **more) == 0
                assert after(**more)
            if status == 0:
                return death
        raise AssertionError("it always dies")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def deaths_of(site: fx.Site) -> Iterator[Deaths]:
    """Run such a process; the site's own threads stand still meanwhile."""
    kept = site.service.use_cases.operations
    kept.stop()
    running = Deaths(site)
    try:
        yield running
    finally:
        running.close()
        site.restart()
