"""Settings of the ``dask`` executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dm.station.processing.executors.base import ExecutorSettings


class DaskSettings(ExecutorSettings):
    """Settings of the ``dask`` executor: an existing scheduler, or a cluster of its own."""

    scheduler: str | None = Field(
        default=None, description="Address of a running dask.distributed scheduler, e.g. tls://dask.example.org:8786."
    )
    cluster: Literal["local", "sge", "slurm", "pbs", "htcondor"] | None = Field(
        default=None,
        description="Make a scheduler and workers instead: on this host, or as jobs of a batch system (dask-jobqueue).",
    )
    cluster_options: dict[str, Any] = Field(
        default={}, description="Options of the cluster class, e.g. cores, memory, queue, walltime."
    )
    cluster_directory: Path | None = Field(
        default=None,
        description="Directory for the cluster's state and keys, which the workers' hosts see as well; unset: "
        ".dm-dask in the account's home.",
    )
    minimum: int = Field(default=0, ge=0, le=100_000, description="Workers kept although nothing is to do.")
    maximum: int = Field(default=4, ge=1, le=100_000, description="Most workers of such a cluster.")
    idle: float = Field(default=60, ge=1, description="Seconds after which a worker without work is given up.")
    linger: float = Field(
        default=600, ge=1, description="Seconds such a cluster lives on when nothing runs and no service asks for it."
    )
    account: str | None = Field(
        default=None,
        description="Unix account of the workers, and of this service's dask client; unset: the service's own. Must "
        "be set, and not be root, when the service runs as root.",
    )
    python: Path | None = Field(
        default=None,
        description="Python with DM and distributed that the account can run, where it cannot run the service's own.",
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates of the authority that all of the scheduler trust."
    )
    certificate: Path | None = Field(default=None, description="Certificate of this client, for tls:// schedulers.")
    key: Path | None = Field(default=None, description="Its private key; the account must be able to read it.")
    run_directory: Path | None = Field(
        default=None,
        description="Directory on the workers' hosts for running stages; unset: the worker's own local directory.",
    )
    worker_environment: list[str] = Field(
        default=["CUDA_VISIBLE_DEVICES", "JOB_ID", "NSLOTS", "TMPDIR", "SGE_*", "SLURM_*", "PBS_*", "_CONDOR_*"],
        description="Variables of the worker's environment that stages get as well; * is a wildcard.",
    )
    output_limit: int = Field(
        default=64 << 20,
        ge=1024,
        le=4 << 30,
        description="Bytes of standard output, and of standard error, that are fetched per process.",
    )
    output_grace: float = Field(
        default=10, gt=0, le=3600, description="Seconds to wait for output of what a stage left running when it ended."
    )
    patience: float = Field(
        default=300,
        gt=0,
        description="Seconds without the scheduler after which what it runs is lost, and what waits for it fails.",
    )
    wait_for_worker: float = Field(
        default=86_400, gt=0, description="Seconds a process waits for a free worker before it fails."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.scheduler is None) == (self.cluster is None):
            raise ValueError("set one of scheduler and cluster")
        if len({self.ca_file is None, self.certificate is None, self.key is None}) > 1:
            raise ValueError("set all of ca_file, certificate and key, or none")
        if self.cluster and self.ca_file:
            raise ValueError("a cluster of its own makes its own keys: leave out ca_file, certificate and key")
        if self.minimum > self.maximum:
            raise ValueError("minimum is more than maximum")
        return self
