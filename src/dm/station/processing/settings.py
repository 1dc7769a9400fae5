"""Settings of the Processing Service: section ``[processing]`` of the settings file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dm.common.settings import StationServiceSettings


class ProcessingSettings(StationServiceSettings):
    """Settings of the Processing Service."""

    port: int = Field(default=55536, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    spool: Path | None = Field(
        default=None,
        description="Directory for the state of running stages, on a local disk; unset: processing below the "
        "station's var_dir.",
    )
    executor: str = Field(default="local", description="Executor plugin that runs the stages.")
    executor_settings: dict[str, Any] = Field(default={}, description="Settings of that plugin.")
    stage_account: str | None = Field(
        default=None,
        description="Unix account that stages run under; unset: the service's own. Must be set, and not be root, when "
        "the service runs as root.",
    )
    user_accounts: list[str] = Field(
        default=[],
        description="Other Unix accounts that a workflow may name as userAccount (by sudo unless the service is root).",
    )
    environment: Path | None = Field(
        default=None, description="Setup file (dm.setup.sh) whose DM_ variables every stage gets."
    )
    path: str = Field(
        default="/usr/local/bin:/usr/bin:/bin", description="PATH of the stages; the dm commands are added at its end."
    )
    users_may_author: bool = Field(
        default=False,
        description="Whether users who do not manage the station may add workflows of their own, that is, run any "
        "command under the stage account.",
    )

    concurrent_stages: int = Field(
        default=2 * (os.cpu_count() or 1), ge=1, le=10_000, description="Processes run at the same time."
    )
    parallel_files: int = Field(
        default=os.cpu_count() or 1,
        ge=1,
        le=10_000,
        description="Processes of one stage at the same time where the stage says parallelExec.",
    )
    active_jobs: int = Field(default=10_000, ge=1, description="Jobs accepted that have not ended yet.")
    files_per_job: int = Field(default=10_000, ge=1, le=1_000_000, description="Most input files of one job.")
    stage_timeout: float = Field(
        default=7 * 86_400, ge=0, description="Seconds a process may run; 0 for ever. A stage's timeout key lowers it."
    )
    stop_grace: float = Field(
        default=5, ge=0, le=600, description="Seconds between asking a process to end and killing it."
    )
    output_grace: float = Field(
        default=10, gt=0, le=3600, description="Seconds to wait for output of what a stage left running when it ended."
    )
    output_limit: int = Field(
        default=1 << 20,
        ge=1024,
        le=64 << 20,
        description="Bytes of standard output, and of standard error, that are kept and searched per process.",
    )
    record_output_limit: int = Field(
        default=32 << 10,
        ge=256,
        le=64 << 10,
        description="Bytes of each that are kept in the job record; of longer output its beginning and end.",
    )
    lost_stage: Literal["fail", "rerun"] = Field(
        default="fail", description="What becomes of a process that disappeared without a result, e.g. by a power cut."
    )
