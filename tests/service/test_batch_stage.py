"""``dm-batch-run`` as the command of a stage, with a real Grid Engine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.live import PROGRAMS
from tests.service import storage_fixtures as storage
from tests.service.batch_program import batch_program
from tests.service.batch_runs import until
from tests.service.processing_fixtures import Running, running_processing
from tests.service.sge_server import SgeCluster, sge

__all__ = ["batch_program", "sge"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processing")


@pytest.fixture(scope="module")
def service(
    postgres_url: str, certificates: Path, mongo_url: str, directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with (
        storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site,
        running_processing(site, mongo_url, certificates, directory, stop_grace=20.0) as running,
    ):
        yield running


@pytest.fixture
def work(open_directory: Path) -> Path:
    """What the execution hosts share; its job script notes each of its runs."""
    open_directory.chmod(0o777)
    script = open_directory / "job.sh"
    script.write_text(
        '#!/bin/sh\n#$ -l h_rt=100\necho "of $1"; echo "$1" >>begun\nwhile [ ! -e go ]; do sleep 0.1; done\n'
        'echo "{\\"words\\": 4}" >"$DM_OUTPUT_FILE"; echo "$1" >>ended\n'
    )
    return open_directory


@pytest.fixture
def stage(sge: SgeCluster, batch_program: Path, work: Path) -> dict[str, Any]:
    run = f'{batch_program} --scheduler sge --name "xpcs $run" --script job.sh -- "$filePath"'
    return {
        "command": f". {sge.settings} && {run}",
        "workingDir": str(work),
        "outputVariableRegexList": [r"Job id: (?P<sgeJobId>\d+)", r"Job name: (?P<sgeJobName>\S+)"],
        "parallelExec": True,
    }


def test_each_file_is_a_batch_job(service: Running, sge: SgeCluster, stage: dict[str, Any], work: Path) -> None:
    (work / "go").touch()
    files = ["/data/a b'.imm", "/data/$(touch canary)", "/data/c"]
    job = service.run(
        {"1": stage, "2": {"command": "echo $sgeJobName $words $host"}}, filePath=None, filePathList=files, run="A1"
    )
    assert job["status"] == "done", job
    batch = job["workflow"]["stages"]["1"]["childProcesses"]
    ids = set()
    for child, file in zip(batch.values(), files, strict=True):
        lines = child["stdOut"].splitlines()
        assert (child["exitStatus"], lines[2]) == (0, f"of {file}")
        ids.add(lines[0])
    assert len(ids) == 3
    assert sorted((work / "ended").read_text().splitlines()) == sorted(files)
    assert f"Job id: {job['sgeJobId']}" in ids
    assert sge.record(job["sgeJobId"])["owner"] == sge.account
    assert job["sgeJobName"].startswith("xpcs_A1.")
    assert (job["exitStatus"], job["outcome"], job["words"]) == (0, "exited", 4)
    assert not (work / "canary").exists()


def test_an_aborted_job_takes_its_batch_job_along(
    service: Running, sge: SgeCluster, stage: dict[str, Any], work: Path
) -> None:
    job = service.start(service.workflow({"1": stage}), run="A2")
    until((work / "begun").exists, "it does not begin")
    assert len(sge.jobs()) == 1
    service.api().stopProcessingJob(None, job["id"])
    assert service.finished(job)["status"] == "aborted"
    until(lambda: not sge.jobs(), "the batch job goes on")
    assert not (work / "ended").exists()


def test_a_lost_stage_goes_on_with_its_batch_job(
    service: Running, directory: Path, stage: dict[str, Any], work: Path
) -> None:
    """The host's supervisor of processes dies with all below it; the policy says to run the stage again."""
    job = service.start(service.workflow({"1": stage | {"onLost": "rerun"}}), run="A3")
    until((work / "begun").exists, "it does not begin")
    for journal in (directory / "var" / "processing" / "local").glob("g-*/journal"):
        pid = int(journal.read_text().split()[3])
        if psutil.pid_exists(pid):
            psutil.Process(pid).kill()
    until(lambda: any(child.get("lost") for child in children(service, job)), "the stage is not lost")
    (work / "go").touch()
    ended = service.finished(job)
    assert ended["status"] == "done", ended
    lost, rerun = children(service, job)
    assert lost["lost"] and not rerun.get("lost")
    assert "which an earlier run submitted" in rerun["stdErr"]
    assert (work / "begun").read_text() == (work / "ended").read_text() == "/dev/null\n"


def children(service: Running, job: Any) -> list[dict[str, Any]]:
    found = service.api().getProcessingJobById(None, job["id"])
    return list(found["workflow"]["stages"]["1"].get("childProcesses", {}).values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Give a command after --"),
        (["--walltime", "soon", "--", "true"], "'soon' is no time"),
        (["--memory", "0", "--", "true"], "'0' is no amount of memory"),
        (["--env", "NO_SUCH", "--", "true"], "NO_SUCH that the job is to get is not set"),
        (["--scheduler", "sge", "--native=-t", "--native=1-5", "--", "true"], "-t cannot be used"),
        (["--scheduler", "slurm", "--native=--array=1-5", "--", "true"], "--array=1-5 cannot be used"),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str) -> None:
    done = subprocess.run([PROGRAMS / "dm-batch-run", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
