"""What the commands about single files of DAQs and uploads share."""

from __future__ import annotations

import datetime
import functools
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dm.common.command import option
from dm.common.errors import ObjectNotFound
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.task_options import Duration

F = TypeVar("F", bound=Callable[..., Any])
STATES = ["seen", "settling", "ready", "moving", "stored", "done", "failed", "skipped", "vanished"]


def is_upload(api: ExperimentDaqApi, id: str) -> bool:
    """Whether an id is that of an upload; both kinds are given as ``--id``. :raises ObjectNotFound: of neither."""
    try:
        api.getDaqInfo(id)
    except ObjectNotFound:
        api.getUploadInfo(id)
        return True
    return False


def choice_options(function: F) -> F:
    """Add the options that say which files are meant."""
    for decorate in (
        option("--pattern", help="Only files whose path, or name, matches this shell wildcard."),
        option("--path", help="Only this file, relative to the data directory."),
        option("--id", required=True, help="DAQ or upload id."),
    ):
        function = decorate(function)
    return function


WantedFile = tuple[str | None, str | None, str | None, str | None, str | None]
"""Path, id of a DAQ or upload, experiment, root and source path, as the API takes them; some of them are given."""


def wanted_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which file is meant, in one of three ways; the function gets a ``wanted`` file."""

    @functools.wraps(function)
    def main(  # noqa: PLR0917 - the options
        api: ExperimentDaqApi,
        id: str | None,
        path: str | None,
        experiment: str | None,
        root: str | None,
        source_path: str | None,
        **others: Any,
    ) -> Any:
        return function(api, wanted=(path, id, experiment, root, source_path), **others)

    for decorate in (
        option("--source", "source_path", help="The file at its source: an absolute path, @host:/path, or URL."),
        option(
            "--root", type=click.Choice(["data", "analysis"]), help="With --experiment: what --path is below.  [data]"
        ),
        option("--experiment", help="Experiment name; --path is then the file's path in the experiment."),
        option("--path", help="The file, relative to the data directory of --id or in --experiment."),
        option("--id", help="DAQ or upload id."),
    ):
        main = decorate(main)
    return main


class Since(click.ParamType):
    """A moment: so long ago (``90m``, ``2d``), a date and time (``2026-03-05``, ``2026-03-05T14:00``, local time), or
    epoch seconds. The value is in epoch seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return epoch seconds."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        if re.fullmatch(r"\d{9,}(\.\d+)?", text):
            return float(text)
        try:
            return datetime.datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            pass
        try:
            return time.time() - float(Duration().convert(text, param, ctx)) * 3600
        except click.BadParameter:
            self.fail(f"{value!r} is no time; write for example 90m (ago), 2026-03-05 or 2026-03-05T14:00.", param, ctx)
