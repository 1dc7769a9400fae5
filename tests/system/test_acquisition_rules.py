"""Completion rules through the front doors: commands, catalog, versions."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live import STATION, Suite


def record(text: str) -> dict[str, Any]:
    """Read what ``--display-format dict`` printed."""
    (line,) = text.splitlines()
    found: dict[str, Any] = ast.literal_eval(line)
    return found


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def experiment(suite: Suite) -> str:
    suite.dm("dm-add-experiment", "--experiment", "rules", "--type", "TEST", "--station", STATION)
    return "rules"


def test_a_writer_that_says_when_a_file_is_whole(suite: Suite, experiment: str, open_directory: Path) -> None:
    info = record(
        suite.dm(
            "dm-start-daq", "--experiment", experiment, "--data-directory", open_directory, "--completion-rule",
            "marker,message", "--completion-args", "marker:{stem}.ok", "--watch-method", "both", "-a",
            "--display-format", "dict",
        )
    )  # fmt: skip
    assert (info["completionRule"], info["completionArgs"]) == ("marker,message", {"marker": "{stem}.ok"})
    daq = str(info["id"])

    def shown() -> dict[str, Any]:
        return record(suite.dm("dm-get-daq-info", "--id", daq, "-a", "--display-format", "dict"))

    (open_directory / "a.dat").write_bytes(b"one")
    until(lambda: shown().get("nSettlingFiles") == 1)
    assert shown()["watchMethod"] == "both"
    waiting = record(suite.dm("dm-list-daq-files", "--id", daq, "--state", "seen", "-a", "--display-format", "dict"))
    assert waiting["path"] == "a.dat" and "marker 'a.ok'" in waiting["notes"][0] and "message" in waiting["notes"][0]
    assert suite.dm("dm-complete-daq-files", "--id", daq, "--path", "a.dat") == (
        "count=1 missing=[] ignored=[] pending=[] \n"
    )
    until(lambda: shown()["nCompletedFiles"] == 1)
    assert "1 files are not there, such as 'b.dat'" in suite.dm(
        "dm-complete-daq-files", "--id", daq, "--path", "b.dat", status=11
    )

    # The writer changes it, and says so: taken again, and the catalog has the last edition.
    (open_directory / "a.dat").write_bytes(b"second")
    suite.dm("dm-complete-daq-files", "--id", daq, "--path", f"{open_directory}/a.dat")

    def cataloged() -> dict[str, Any]:
        words = ("--experiment", experiment, "--file-path", "a.dat", "-a", "--display-format", "dict")
        return record(suite.dm("dm-get-experiment-file", *words))

    until(lambda: cataloged().get("version") == 2)
    assert cataloged()["fileSize"] == 6
    (row,) = suite.dm("dm-list-daq-files", "--id", daq, "--display-keys", "path,rule,version,state").splitlines()
    assert row.strip() == "path=a.dat rule=message version=2 state=done"

    suite.dm("dm-stop-daq", "--experiment", experiment, "--data-directory", open_directory)
    until(lambda: shown()["status"] == "done")
    assert shown()["lastReconcileTimestamp"]
    said = suite.dm("dm-complete-daq-files", "--id", daq, "--path", "a.dat", status=16)
    assert "files can be completed while it runs" in said


def test_a_rule_that_is_not_there(suite: Suite, open_directory: Path) -> None:
    said = suite.dm(
        "dm-start-daq", "--experiment", "rules", "--data-directory", open_directory, "--completion-rule", "marcer",
        status=8,
    )  # fmt: skip
    assert "'marcer', which is no completion rule here (known: closed, hdf5, marker, message, renamed, stable)" in said
