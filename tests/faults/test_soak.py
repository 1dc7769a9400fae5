"""A lot at the same time and for long: uploads, jobs, clients (F-50). Nothing may grow, fail or stall."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def soak(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False, timeout=900
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(900)
def test_uploads_jobs_and_clients_for_minutes() -> None:
    # How quick answers are depends on what else runs here: the script tells, and judges only when it runs alone.
    said = soak("--seconds", 180, "--files", 2000, "--status", 30, "--memory", 0.15)
    assert "uploads finished" in said
