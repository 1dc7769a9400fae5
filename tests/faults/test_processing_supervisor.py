"""kill -9 at random of an engine and of its supervisors: whatever is told of a process is what happened to it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.local_engine import STATUS
from tests.faults.processing_spool import until
from tests.service.processing_fixtures import STAGE_ACCOUNT

ROUNDS = 8


def engine(base: Path, name: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.faults.local_engine", str(base), name, STAGE_ACCOUNT or ""]
    return subprocess.Popen(words, cwd=Path(__file__).parents[2])


def supervisors(base: Path) -> list[int]:
    headers = [journal.read_text().split() for journal in base.glob("spool/g-*/journal")]
    return [int(header[3]) for header in headers if len(header) > 4]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
def test_every_process_runs_once_and_its_end_is_told(seed: int, open_directory: Path) -> None:
    chance = random.Random(seed)
    (open_directory / "work").mkdir()
    (open_directory / "work").chmod(0o777)
    (open_directory / "engine").touch()
    for number in range(ROUNDS):
        running = engine(open_directory, f"k{number}")
        until(lambda name=f"k{number}-1 ": name in (open_directory / "engine").read_text())
        time.sleep(chance.uniform(0.0, 0.5))
        assert running.poll() is None
        if chance.random() < 0.4 and (pids := supervisors(open_directory)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
            time.sleep(chance.choice([0.0, 0.2]))
        running.kill()
        running.wait()
    (open_directory / "stop").touch()
    assert engine(open_directory, "last").wait(60) == 0

    lines = [line.split() for line in (open_directory / "engine").read_text().splitlines()]
    ends = {key: rest for key, what, *rest in lines if what == "end"}
    never = {key for key, what, *_ in lines if what == "never"}
    happened = Counter((open_directory / "work" / "log").read_text().split())
    for key in {key for key, what, *_ in lines if what == "start"}:
        began, ended = happened[f"b-{key}"], happened[f"e-{key}"]
        if key in never:
            assert (began, ended) == (0, 0), key
        elif ends[key] == ["None", "1"]:
            assert began <= 1 and ended <= began, key
        else:
            assert ends[key] == [str(STATUS), "0"] and (began, ended) == (1, 1), key
    assert sum(end == [str(STATUS), "0"] for end in ends.values()) >= 5
    assert [path.name for path in (open_directory / "spool").iterdir()] == [".boot"]
