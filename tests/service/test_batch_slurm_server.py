"""The Slurm that other tests use: it runs jobs as the account that submits them and accounts for each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service.slurm_server import SlurmCluster, slurm

__all__ = ["slurm"]


@pytest.mark.long
def test_a_cluster_runs_thirty_jobs_at_once_and_accounts_for_each(slurm: SlurmCluster, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    script = open_directory / "job.sh"
    script.write_text('#!/bin/sh\necho "I am $(id -un)"\nexit 3\n')

    def submit(number: int) -> str:
        return slurm.run("sbatch", "--parsable", "-o", f"{number}.out", script, cwd=open_directory).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(submit, range(30)))
        records = list(pool.map(slurm.record, jobs))
    assert [(record["State"], record["ExitCode"]) for record in records] == [("FAILED", "3:0")] * 30
    assert (open_directory / "7.out").read_text() == f"I am {slurm.account}\n"
    assert slurm.jobs() == []


@pytest.mark.long
def test_a_cluster_goes_on_after_its_controller_was_killed(slurm: SlurmCluster, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    job = slurm.run("sbatch", "--parsable", "--wrap", "sleep 2", cwd=open_directory).stdout.strip()
    slurm.stop_controller()
    assert slurm.run("squeue", check=False).returncode != 0
    slurm.start_controller()
    assert slurm.record(job)["ExitCode"] == "0:0"
