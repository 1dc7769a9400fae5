"""What dm-start-daq and dm-upload make of their options, and that every acquisition command has help."""

from __future__ import annotations

import importlib
import pkgutil
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from dm.common.errors import ProcessingError
from dm.station.acquisition import commands
from dm.station.acquisition.api import UploadInfo
from dm.station.acquisition.commands.task_options import (
    Duration,
    printed_then_judged,
    task_info,
)
from dm.station.acquisition.commands.upload import main as upload

_SHARED = ("file_options", "progress", "task_options")
COMMANDS = [name for _finder, name, _package in pkgutil.iter_modules(commands.__path__) if name not in _SHARED]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_installed_under_its_name_and_helps(name: str) -> None:
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    command = "dm-" + name.replace("_", "-")
    assert scripts[command] == f"dm.station.acquisition.commands.{name}:main"
    main = importlib.import_module(f"dm.station.acquisition.commands.{name}").main
    assert main.name == command
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0 and command in result.output
    assert ("--display-format" in result.output) is (name != "export_daq_files")  # that has formats of its own


@pytest.mark.parametrize(
    ("text", "hours"), [("1d", 24), ("12h", 12), ("90m", 1.5), ("1d12h", 36), ("30s", 1 / 120), ("2", 2), ("0.5", 0.5),
                        ("1w", 168), (" 1D ", 24)],
)  # fmt: skip
def test_durations(text: str, hours: float) -> None:
    assert Duration().convert(text, None, None) == pytest.approx(hours)


@pytest.mark.parametrize("text", ["", "x", "1y", "-1d", "1d-2h", "d", "1 d"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no duration"):
        Duration().convert(text, None, None)


def test_flags_and_words_become_task_info() -> None:
    flags: dict[str, Any] = {
        "dest_directory": "run1", "reprocess_files": True, "process_hidden_files": None, "skip_plugins": None,
        "workflow_args": ("a:1 b:2", "c:3"), "max_run_time_in_hours": 24.0, "processing_mode": "files",
    }  # fmt: skip
    assert task_info(flags, {"sample": "Cu", "destDirectory": "run1"}) == {
        "sample": "Cu", "destDirectory": "run1", "reprocessFiles": True, "workflowArgs": "a:1 b:2 c:3",
        "maxRunTimeInHours": 24.0, "processingMode": "files",
    }  # fmt: skip


def test_a_key_given_both_ways_must_agree() -> None:
    with pytest.raises(click.UsageError, match="'destDirectory' is given twice, as 'a' and 'b'"):
        task_info({"dest_directory": "b"}, {"destDirectory": "a"})
    assert task_info({"skip_catalog": True}, {"skipCatalog": "true"}) == {"skipCatalog": "true"}


def test_final_record_is_printed_before_the_verdict() -> None:
    good = UploadInfo({"id": "u", "status": "done", "nProcessingErrors": 0})
    assert list(printed_then_judged(good)) == [good]
    for bad, text in (
        ({"id": "u", "status": "done", "nProcessingErrors": 2}, "2 files failed"),
        ({"id": "u", "status": "failed", "nProcessingErrors": 0, "errorMessage": "Disk full."}, "Disk full"),
        ({"id": "u", "status": "aborted", "nProcessingErrors": 0}, "aborted"),
    ):
        seen = printed_then_judged(UploadInfo(dict(bad)))
        assert next(seen)["id"] == "u"
        with pytest.raises(ProcessingError, match=text):
            next(seen)


def test_required_options_are_named() -> None:
    result = CliRunner().invoke(upload, ["--experiment", "e"])
    assert result.exit_code == 2 and "--data-directory" in result.stderr
