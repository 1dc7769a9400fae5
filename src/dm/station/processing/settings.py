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
    executor: str = Field(default="local", description="Executor that runs the stages which name none.")
    executors: dict[str, dict[str, Any]] = Field(
        default={},
        description="Settings of executors by name. The name is that of the plugin unless they say plugin = ...; those "
        "listed here can be named by stages.",
    )
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
    owner_stages: int = Field(
        default=0, ge=0, description="Processes of one owner's jobs run at the same time; 0 for any number."
    )
    concurrent_jobs: int = Field(
        default=500, ge=1, le=10_000, description="Jobs under way at the same time; further ones wait as pending."
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
    output_limit: int = Field(
        default=1 << 20,
        ge=1024,
        le=64 << 20,
        description="Bytes of standard output that are searched by output regexes.",
    )
    record_output_limit: int = Field(
        default=32 << 10,
        ge=256,
        le=64 << 10,
        description="Bytes of each output that are kept in the job record: of longer ones beginning and end. They are "
        "kept whole in files below spool/logs.",
    )
    log_days: int = Field(
        default=90, ge=0, description="Days for which whole outputs are kept in files; 0 until their job is deleted."
    )
    logbook_days: int = Field(
        default=0,
        ge=0,
        description="Days for which the logbook of accepted jobs is kept (var_dir/logbook); 0 for ever.",
    )
    lost_stage: Literal["fail", "rerun"] = Field(
        default="fail",
        description="What becomes of a process that disappeared without a result, e.g. by a power cut, where its stage "
        "or workflow does not say (onLost).",
    )

    zeromq: bool = Field(default=True, description="Whether jobs can be submitted and followed by ZeroMQ too.")
    zeromq_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of ZeroMQ requests; unset: the one after port; 0: a free one."
    )
    zeromq_events_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port of ZeroMQ events; unset: the second after port; 0: a free one."
    )
    zeromq_keys: Path | None = Field(
        default=None,
        description="Directory of the service's ZeroMQ keys (made when missing) and, below clients, of the public keys "
        "that are let in; unset: zeromq below the station's var_dir.",
    )
    zeromq_threads: int = Field(default=8, ge=1, le=64, description="ZeroMQ requests carried out at the same time.")

    artefact_directory: Path | None = Field(
        default=None,
        description="Directory for copies of artefacts on their way into an experiment, which the acquisition service "
        "must be able to read and which must not lie below the station's var_dir; unset: stages cannot have artefacts.",
    )
    artefact_login_file: Path | None = Field(
        default=None,
        description="Login file of a manager of the station under whose name artefacts are uploaded; unset: stages "
        "cannot have artefacts.",
    )
    acquisition_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Base URL of the acquisition service, for artefacts; unset: DM_DAQ_WEB_SERVICE_URL.",
    )
    catalog_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Base URL of the station's catalog, for input files by dataset or file query; unset: "
        "DM_CAT_WEB_SERVICE_URL.",
    )

    @property
    def zeromq_ports(self) -> dict[str, int]:
        """The ports of ZeroMQ by setting; 0 for a free one."""
        ports = {"zeromq_port": self.zeromq_port, "zeromq_events_port": self.zeromq_events_port}
        near = {name: min(self.port + distance, 65535) if self.port else 0 for distance, name in enumerate(ports, 1)}
        return {name: near[name] if port is None else port for name, port in ports.items()} if self.zeromq else {}
