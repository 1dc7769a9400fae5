"""The ``[facility]`` section of the settings file."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from dm.common.settings import ServiceSettings, WebSettings
from dm.site.identity.sync_settings import UserSyncSettings

TEMPLATE_FIELDS = (
    "esaf_id", "gup_id", "record_id", "run", "station", "title", "pi_last_name", "pi_first_name", "pi_badge", "year",
    "month", "day",
)  # fmt: skip


class StationSelection(ServiceSettings):
    """Which of the facility's records belong to a station: ``[facility.stations.<name>]``."""

    sector: str | None = Field(
        default=None, description="Sector of the station; unset: the digits its name starts with.", examples=["25"]
    )
    beamlines: list[str] = Field(
        default_factory=list,
        description="Its beamlines as the facility writes them, wildcards allowed; empty: the station's name.",
        examples=[["25-ID-C"]],
    )


class TemplateSettings(ServiceSettings):
    """How experiments made from proposals and safety forms are called: ``[facility.templates]``.

    Fields: {esaf_id} {gup_id} {record_id} {run} {station} {pi_last_name} {pi_first_name} {pi_badge} {title} {year}
    {month} {day} (of the first day).
    """

    esaf_name: str = Field(default="{pi_last_name}-{year}{month}-{esaf_id}", description="Name, from an ESAF.")
    proposal_name: str = Field(default="{pi_last_name}-{run}-{gup_id}", description="Name, from a proposal.")
    root_path: str = Field(default="{year}-{month}", description="Directories above the experiment's; may be empty.")
    description: str = Field(default="{title}", description="Its description.")

    @field_validator("*")
    @classmethod
    def _known_fields(cls, value: str) -> str:
        for name in re.findall(r"\{([^{}]*)\}", value):
            if name not in TEMPLATE_FIELDS:
                raise ValueError(f"there is no field {{{name}}}; known are {', '.join(TEMPLATE_FIELDS)}")
        return value


class FacilitySettings(WebSettings):
    """Settings of the Facility Service."""

    port: int = Field(default=11236, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    database_url: str = Field(
        description="PostgreSQL of the site, as an SQLAlchemy URL with driver psycopg2.",
        examples=["postgresql+psycopg2://dm@db.example.org/dm"],
        pattern=r"^postgresql(\+psycopg2)?://",
    )
    database_connections: int = Field(default=5, ge=2, le=100, description="Database connections kept open.")
    adapters: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="The facility's systems: a name of your choice -> adapter (csv, sql, http or module:Class) and its "
        "own settings.",
    )
    stations: dict[str, StationSelection] = Field(
        default_factory=dict, description="Which records belong to a station: station -> sector, beamlines."
    )
    templates: TemplateSettings = Field(
        default_factory=TemplateSettings, description="Names of experiments made from proposals and safety forms."
    )
    user_sync: UserSyncSettings = Field(
        default_factory=UserSyncSettings, description="How users follow the facility's user directories."
    )
    refresh_minutes: float = Field(default=15, gt=0, description="Proposals, ESAFs and the rest are read so often.")
    past_runs: int = Field(
        default=3, ge=0, description="Runs before the current one whose proposals are read again each time."
    )
    past_years: int = Field(default=1, ge=0, description="Years before this one whose ESAFs are read again each time.")
    stale_hours: float = Field(
        default=24, gt=0, description="Health warns when what the facility said last is older than this."
    )
    drop_limit_percent: float = Field(
        default=30, ge=0, le=100, description="A refresh that would drop more of the known records is refused."
    )
