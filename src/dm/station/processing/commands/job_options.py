"""What the commands about processing jobs share."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dm.common.command import option

F = TypeVar("F", bound=Callable[..., Any])
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def job_options(function: F) -> F:
    """Add the options that name one job."""
    for decorate in (
        option("--owner", help="Its owner; default: whoever it is."),
        option("--id", required=True, help="Job id."),
    ):
        function = decorate(function)
    return function


class Moment(click.ParamType):
    """A moment: so long ago (``90m``, ``2d``), or a date, perhaps with a time, of this computer's clock.

    :param end: whether a date alone means the end of that day.

    The value is in epoch seconds.
    """

    name = "time"

    def __init__(self, end: bool = False) -> None:
        self._end = end

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return epoch seconds."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        if match := _AGO.fullmatch(text):
            return time.time() - float(match[1]) * _SECONDS[match[2]]
        try:
            moment = datetime.datetime.fromisoformat(text)
            if self._end and len(text) <= len("2026-03-05"):
                moment += datetime.timedelta(days=1, microseconds=-1)
            return moment.timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write for example 90m (ago), 2026-03-05 or 2026-03-05T14:00.", param, ctx)
