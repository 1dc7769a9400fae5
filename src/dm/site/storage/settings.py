"""The ``[storage]`` section of the settings file."""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field

from dm.common.settings import WebSettings
from dm.site.identity.ldap.settings import LdapSettings
from dm.site.storage.inspection_settings import InspectionSettings
from dm.site.storage.outside_settings import DownloadSettings, GlobusSettings


class StorageSettings(WebSettings):
    """Settings of the Storage Management Service."""

    port: int = Field(default=22236, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    database_url: str = Field(
        description="PostgreSQL, as an SQLAlchemy URL with driver psycopg2.",
        examples=["postgresql+psycopg2://dm@db.example.org/dm"],
        pattern=r"^postgresql(\+psycopg2)?://",
    )
    database_connections: int = Field(default=10, ge=2, le=100, description="Database connections kept open.")
    storage_host: str = Field(
        default_factory=socket.gethostname,
        description="Host name under which stations reach the staging directories.",
    )
    file_owner: str | None = Field(
        default=None, description="Account that owns published files; only a service run as root can set it."
    )
    file_group: str | None = Field(
        default=None,
        description="Group of experiments that have no Unix group of their own; unset: the service's group.",
    )
    staging_owner: str | None = Field(
        default=None, description="Account of the stations' movers; only a service run as root can give it staging."
    )
    staging_group: str | None = Field(
        default=None, description="Group of the stations' movers, may write into staging directories."
    )

    token_max_days: int = Field(default=366, ge=1, le=3660, description="Longest life of an API token.")
    audit_days: float = Field(
        default=1096,
        ge=1,
        description="Events of the audit log, and tokens that have ended, are dropped after so long.",
    )
    pi_manages_users: bool = Field(
        default=False, description="Whether principal investigators add and remove users of their experiments."
    )

    publisher_threads: int = Field(
        default=2, ge=0, le=64, description="Batches published at the same time; 0 leaves it to other processes."
    )
    verify_threads: int = Field(default=4, ge=1, le=64, description="Files read and digested at the same time.")
    lease_seconds: int = Field(
        default=60, ge=5, description="A batch whose publisher was silent for so long is taken over."
    )
    staging_max_age_hours: float = Field(
        default=72, gt=0, description="Batches opened and never handed over are swept after so long."
    )
    batch_max_files: int = Field(default=20_000, ge=1, le=200_000, description="Most files of one batch.")
    archive_directory: Path | None = Field(
        default=None,
        description="Existing directory for verified copies of experiments (dm-archive-experiment); unset: no archive.",
    )
    deleted_keep_days: float = Field(
        default=7, ge=0, le=3650, description="Deleted experiments can be restored for so long; 0: not at all."
    )
    minimum_free_gigabytes: float = Field(
        default=10, ge=0, description="Health warns when a storage has less free space; a tenth of it is critical."
    )
    download: DownloadSettings = Field(
        default_factory=DownloadSettings, description="From where files may be downloaded over HTTPS."
    )
    inspection: InspectionSettings = Field(
        default_factory=InspectionSettings,
        description="How often and how fast files in storage are compared with what is recorded of them.",
    )
    ldap: LdapSettings | None = Field(default=None, description="The site's LDAP directory; unset: none.")
    globus: GlobusSettings | None = Field(
        default=None, description="Globus groups of experiments and their guest collection; unset: none."
    )
