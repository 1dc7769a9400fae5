"""The Grid Engine that other tests use: it runs jobs as the account that submits them and accounts for each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service.sge_server import SgeCluster, sge

__all__ = ["sge"]


@pytest.mark.long
def test_a_cluster_runs_thirty_jobs_at_once_and_accounts_for_each(sge: SgeCluster, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    script = open_directory / "job.sh"
    script.write_text('echo "I am $(id -un)"\necho "$NSLOTS" >&2\nexit 3\n')

    def submit(number: int) -> str:
        return sge.run("qsub", "-terse", "-N", f"n{number}", "-cwd", script, cwd=open_directory).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(submit, range(30)))
        records = list(pool.map(sge.record, jobs))
    assert [record["exit_status"] for record in records] == ["3"] * 30
    assert {record["owner"] for record in records} == {sge.account}
    assert (open_directory / f"n7.o{jobs[7]}").read_text() == f"I am {sge.account}\n"
    assert sge.jobs() == []


@pytest.mark.long
def test_a_cluster_goes_on_after_its_daemons_were_killed(sge: SgeCluster, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    command = ["qsub", "-terse", "-b", "y", "-wd", open_directory, "/bin/sleep"]
    job = sge.run(*command, "3").stdout.strip()
    sge.stop_qmaster()
    assert sge.run("qstat", check=False).returncode != 0
    sge.stop_execd()
    sge.start_qmaster()
    sge.start_execd()
    assert sge.record(job)["exit_status"] == "0"
    assert sge.record(sge.run(*command, "0").stdout.strip())["exit_status"] == "0"
