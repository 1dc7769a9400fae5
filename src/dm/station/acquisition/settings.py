"""Settings of the Data Acquisition Service: section ``[acquisition]`` of the settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dm.common.digests import VERIFICATION
from dm.common.settings import StationServiceSettings


class AcquisitionSettings(StationServiceSettings):
    """Settings of the Data Acquisition Service."""

    port: int = Field(default=33336, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    allowed_directories: list[Path] = Field(
        default=[],
        description="Local directories that DAQs and uploads may read from; empty: any the service can read.",
    )
    storage_aliases: dict[str, str] = Field(
        default={},
        description="Names written as @name:/path for data that lies on storage already, and the directory of this "
        "machine each stands for; such data is cataloged, not moved. An experiment's own storage needs none.",
        examples=[{"voyager": "/gdata"}],
    )

    watch: Literal["auto", "events", "polling", "both"] = Field(
        default="auto",
        description="How new files are seen: events of the kernel (local disks), polling (network file systems), both, "
        "or auto: as the file system of the data directory needs. A DAQ may choose with watchMethod.",
    )
    scan_seconds: float = Field(
        default=60,
        gt=0,
        description="Every file of a data directory is looked at so often, whatever was told of it; less often where "
        "that would take more than about 1 % of a processor core.",
    )
    polling_seconds: float = Field(
        default=2,
        gt=0,
        description="Where there are no events, directories are looked at so often for new names; again less often "
        "where it costs too much.",
    )
    completion_rule: str = Field(
        default="closed",
        min_length=1,
        description="When files of a DAQ count as whole: the name of a rule (closed, stable, marker, renamed, hdf5, "
        "message), several joined by + (all) or by a comma (any of them). A DAQ may choose with completionRule.",
    )
    completion: dict[str, dict[str, Any]] = Field(
        default={},
        description="Settings of completion rules, e.g. [acquisition.completion.marker]; the key class names a "
        "module:Class that is not installed as an entry point.",
    )
    settle_closed_seconds: float = Field(
        default=0.3, ge=0, description="A file closed by its writer is whole when unchanged for so long."
    )
    settle_proven_seconds: float = Field(
        default=0.05,
        ge=0,
        description="The same when the kernel confirms that nobody has the file open for writing. It does so on local "
        "file systems, for files of the service's own account or with the capability CAP_LEASE.",
    )
    settle_scanned_seconds: float = Field(
        default=3, ge=0, description="A file found by looking is whole when unchanged for so long."
    )
    settle_upload_seconds: float = Field(
        default=1, ge=0, description="The same for uploads, whose files are expected to be whole."
    )
    settle_temporary_seconds: float = Field(
        default=60, ge=0, description="The same for names like x.tmp, x.part, x~, which usually are renamed."
    )
    finalize_seconds: float = Field(
        default=60, ge=0, description="When a DAQ is stopped, files that keep changing are waited for so long."
    )

    verification_digest: Literal["xxh3_128", "sha256"] = Field(
        default=VERIFICATION,
        description="Computed at the source while it is read, compared at storage, and kept with the file: xxh3_128 "
        "finds damage at the speed of memory; sha256, beside it, also what somebody forged. md5 is for users.",
    )
    batch_files: int = Field(default=500, ge=1, le=10_000, description="Most files moved as one batch.")
    batch_megabytes: int = Field(default=1024, ge=1, description="A batch is closed when it has so many megabytes.")
    batch_linger_milliseconds: float = Field(
        default=20,
        ge=0,
        description="A batch that is not full waits so long for more files while another is on its way.",
    )
    workers: int = Field(default=8, ge=1, le=64, description="Batches on their way at the same time.")
    moves: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Batches moved at the same time, of those on their way; half of them for one DAQ or upload.",
    )
    moves_per_destination: int = Field(
        default=3,
        ge=1,
        le=64,
        description="Batches moved to one storage at the same time: one that hangs must not keep all movers.",
    )
    batches_per_task: int = Field(
        default=3, ge=1, le=64, description="Batches of one DAQ or upload on their way at the same time."
    )
    open_batches: int = Field(
        default=40,
        ge=1,
        description="Batches of one DAQ or upload that may wait for a service that is down before no more are started.",
    )
    queue_files: int = Field(
        default=20_000,
        ge=100,
        description="Ready files of one DAQ or upload kept in memory; more stay in the database.",
    )
    retry_first_seconds: float = Field(default=0.5, gt=0, description="First pause before something is tried again.")
    retry_most_seconds: float = Field(default=60, gt=0, description="Longest pause before something is tried again.")
    attempts: int = Field(
        default=3, ge=1, description="How often a file is tried whose error does not look like a passing one."
    )
    retry_hours: float = Field(
        default=72, gt=0, description="For so long a file is tried again whose error looks like a passing one."
    )
    lease_seconds: float = Field(
        default=20, ge=2, description="A process that was silent for so long on another host lost its database."
    )

    keep_finished_days: float = Field(
        default=400,
        ge=0,
        description="DAQs and uploads that ended more days ago are forgotten, with the ledger of their files and their "
        "upload records; the files themselves stay. 0 keeps them for ever.",
    )

    plugins: dict[str, dict[str, Any]] = Field(
        default={},
        description="Processing plugins and their settings, e.g. [acquisition.plugins.catalog]; the key class names a "
        "module:Class that is not installed as an entry point.",
    )
    transports: dict[str, dict[str, Any]] = Field(
        default={"local": {}, "rsync": {}},
        description="Transports and their settings, e.g. [acquisition.transports.rsync]; the first that can is taken.",
    )

    stalled_minutes: float = Field(
        default=10, gt=0, description="Health warns when ready files made no progress for so long."
    )
    backlog_files: int = Field(default=100_000, ge=1, description="Health warns when more files are waiting.")
    growth_files: int = Field(
        default=1000, ge=1, description="Health warns when so many more files of one DAQ wait than growth_minutes ago."
    )
    growth_minutes: float = Field(default=10, gt=0, le=55, description="See growth_files.")
    failing_files: int = Field(
        default=10,
        ge=1,
        description="Health warns when so many files of a DAQ or upload failed within failing_minutes.",
    )
    failing_minutes: float = Field(default=10, gt=0, le=55, description="See failing_files.")
    source_free_percent: float = Field(
        default=5, ge=0, le=100, description="Health warns when less of the disk of a running DAQ or upload is free."
    )
    alarm_seconds: float = Field(default=10, gt=0, description="Alarms are looked at so often, asked for or not.")
