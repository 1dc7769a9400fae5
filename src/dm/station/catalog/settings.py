"""Settings of the metadata catalog: section ``[catalog]`` of the settings file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from dm.common.settings import ServiceSettings


class CatalogSettings(ServiceSettings):
    """Settings of the metadata catalog."""

    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: int = Field(default=44436, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    certificate: Path = Field(description="TLS certificate chain (PEM).", examples=["server.pem"])
    key: Path = Field(description="Private key of the certificate (PEM, readable by the service only).")
    threads: int = Field(default=24, ge=4, le=256, description="Requests served at the same time.")
    database_url: str = Field(
        description="MongoDB of the station; the path names the database.",
        examples=["mongodb://localhost:27017/dm"],
        pattern=r"^mongodb(\+srv)?://",
    )
    log_file: Path | None = Field(default=None, description="Log file; unset: standard error.")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least important messages logged."
    )
    session_idle_minutes: int = Field(default=60, ge=1, description="A session not used for so long ends.")
    session_hours: int = Field(default=24, ge=1, description="A session ends after so long in any case.")
