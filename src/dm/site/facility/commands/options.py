"""Options that several facility commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dm.common.command import option

F = TypeVar("F", bound=Callable[..., Any])

station_option: Callable[[F], F] = option(
    "--station", metavar="NAME", help="Station name; default: the station of the setup file."
)
beamline_option: Callable[[F], F] = option("--beamline", metavar="NAME", help="Only of this beamline.")
run_option: Callable[[F], F] = option("--run", metavar="NAME", help="Run, e.g. 2026-1; default: the current one.")
