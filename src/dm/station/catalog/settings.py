"""Settings of the metadata catalog: section ``[catalog]`` of the settings file."""

from __future__ import annotations

from pydantic import Field

from dm.common.settings import StationServiceSettings


class CatalogSettings(StationServiceSettings):
    """Settings of the metadata catalog."""

    port: int = Field(default=44436, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
