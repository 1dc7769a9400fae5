"""The tutorial on workflows, run as it stands: each block of the page in its order, in one shell."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import PROGRAMS, Suite

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "workflow.md"
PLACE = "/tmp/scans"


@pytest.fixture(scope="module")
def said(suite: Suite, run_directory: Path) -> Iterator[str]:
    """What the page's commands print. Only the place of the scans is another one."""
    here = run_directory / "tutorial"
    here.mkdir()
    lines = []
    for kind, text in re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        if kind == "python":
            lines.append(f"cat > peak.py <<'END OF FILE'\n{text}END OF FILE\n")
        else:
            lines.append(text.replace(PLACE, str(run_directory / "scans")))
    done = subprocess.run(
        ["bash", "-eu", "-c", "\n".join(lines)],
        cwd=here,
        env=suite.environment | {"PATH": f"{PROGRAMS}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield done.stdout
    suite.dm("dm-delete-workflow", "--name", "peak")


def jobs(suite: Suite, *words: str) -> list[dict[str, Any]]:
    shown = suite.dm("dm-list-processing-jobs", "--workflow-name", "peak", "-a", "--display-format", "json", *words)
    return [json.loads(line) for line in shown.splitlines()]


def test_what_the_page_says(said: str) -> None:
    assert "status=done maximum=905 position=0.4 \n" in said
    assert "dm-wait-processing-job ended with status 11\n" in said
    page = PAGE.read_text()
    assert "`status=done maximum=905 position=0.4`" in page
    assert page.count(PLACE) >= 6


def test_a_job_for_every_file(said: str, suite: Suite) -> None:
    found = {job["experimentFilePath"]: job for job in jobs(suite, "threshold:500")}
    assert {name: (job["status"], job["position"]) for name, job in found.items()} == {
        "scan2.dat": ("done", "-0.3"),
        "scan3.dat": ("done", "1.1"),
        "scan4.dat": ("done", "-2"),
    }
    stages = {name: job["workflow"]["stages"]["02-KEEP"]["status"] for name, job in found.items()}
    assert stages == {"scan2.dat": "done", "scan3.dat": "done", "scan4.dat": "skipped"}


def test_results_are_in_the_experiment(said: str, suite: Suite) -> None:
    shown = suite.dm("dm-get-experiment", "--experiment", "my-scans", "-a", "--display-format", "json")
    peaks = Path(json.loads(shown)["analysisDirectory"]) / "peaks"
    assert {file.name: file.read_text() for file in peaks.iterdir()} == {
        "scan1.dat.peak": "0.4 905\n",
        "scan2.dat.peak": "-0.3 905\n",
        "scan3.dat.peak": "1.1 905\n",
    }
    assert "experimentFilePath=peaks/scan3.dat.peak " in said
    assert not list(Path("/tmp").glob(f"peak-{jobs(suite, 'threshold:500')[0]['id']}"))


def test_the_failed_job_tells_why(said: str, suite: Suite) -> None:
    (failed,) = jobs(suite, "status:failed")
    (child,) = failed["workflow"]["stages"]["01-FIND"]["childProcesses"].values()
    assert (child["exitStatus"], failed["filePath"]) == (1, "nothing.dat")
    assert child["stdErr"] == "nothing.dat is empty or not there\n"
