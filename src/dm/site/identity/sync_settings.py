"""Settings of synchronising people with user directories: ``[facility.user_sync]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dm.common.settings import ServiceSettings

Policy = Literal["immediately", "after_runs", "after_days", "never"]


class UserSyncSettings(ServiceSettings):
    """When users follow the facility's directories, and what happens to those who vanish from them."""

    adapters: list[str] = Field(
        default_factory=list, description="Adapters to synchronise with; empty: all that provide users."
    )
    every_hours: float = Field(
        default=24, ge=0, description="Hours between runs in the background; 0: by command only."
    )
    deactivate: Policy = Field(
        default="after_days",
        description="When somebody the directory does not know any more is deactivated: immediately, after_runs, "
        "after_days or never.",
    )
    absent_runs: int = Field(default=3, ge=1, description="Runs without somebody that make after_runs.")
    absent_days: float = Field(default=7, ge=0, description="Days without somebody that make after_days.")
    limit_percent: float = Field(
        default=10,
        ge=0,
        le=100,
        description="A run that would change or lose more of the directory's known users is refused unless forced.",
    )
    limit_least: int = Field(default=10, ge=0, description="So many changes are never too many.")
    keep_days: int = Field(default=400, ge=1, description="Reports of runs are kept so long.")
