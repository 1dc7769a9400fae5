"""The XPCS pipeline of 8-ID as published, for real: GridFTP to the cluster, metadata, Grid Engine, GridFTP back.

Jobs are started by curl, as a SPEC macro does for each raw file. The raw files are an image stack of a SAXS beamline,
each with counts of its own.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from dm.deploy import components
from dm.station.catalog.api import FileCatApi
from dm.station.processing.api import WorkflowProcApi
from tests.beamline_files import copy_image_stack
from tests.live import Suite
from tests.service.gridftp_server import GridFtpServer, running
from tests.service.processing_fixtures import STAGE_ACCOUNT
from tests.service.sge_server import SgeCluster, sge
from tests.service.slurm_server import SlurmCluster, slurm

__all__ = ["sge", "slurm"]
EXPERIMENT = "xpcs-2026"
WORKFLOW = "xpcs-8id"
FRAME_TIME = 0.25
RINGS = 6
PATIENCE = 100.0


@dataclass
class Beamline:
    """What a beamline of this kind has. :param cluster: directory that GridFTP and the batch system share."""

    suite: Suite
    sge: SgeCluster
    url: str
    cluster: Path
    scratch: Path
    home: Path

    def arguments(self, file: str) -> dict[str, Any]:
        return {
            "filePath": file,
            "experimentName": EXPERIMENT,
            "clusterUrl": self.url,
            "clusterDirectory": str(self.cluster),
            "batchEnvironment": str(self.sge.settings),
            "outputDirectory": str(self.scratch),
            "frameTime": FRAME_TIME,
            "rings": RINGS,
        }

    def api(self, kind: Any, variable: str) -> Any:
        """Return an API object of the station's manager."""
        environment = self.suite.environment
        return kind(*self.suite.manager, url=environment[variable], ca_file=environment["DM_CA_FILE"])

    def manage(self, *command: str) -> None:
        """Run a command as the manager of the Grid Engine, who is the account of the tests."""
        environment = {"PATH": os.environ["PATH"], **self.sge.environment}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)

    def log_in(self) -> Path:
        """Log in as the SPEC session does once, and return the cookie jar."""
        jar = self.home / "jar"
        username, password = self.suite.manager
        command = (
            'curl -sS --fail-with-body --cacert "$DM_CA_FILE" -c "$JAR" -d username="$NAME" '
            '--data-urlencode password="$WORD" "$DM_PROC_WEB_SERVICE_URL/dm/login"'
        )
        self._shell(command, JAR=str(jar), NAME=username, WORD=password)
        return jar

    def submit(self, jar: Path, workflow: str, file: str, **changes: str) -> dict[str, Any]:
        """Start a job by the one line of a SPEC macro."""
        line = (
            'curl -sS --fail-with-body --cacert "$DM_CA_FILE" -b "$JAR" --data-urlencode "argsDict=$ARGS" '
            '"$DM_PROC_WEB_SERVICE_URL/dm/processingJobsByWorkflow/$OWNER/$WORKFLOW/startProcessingJob"'
        )
        said = self._shell(
            line,
            JAR=str(jar),
            ARGS=json.dumps(self.arguments(file) | changes),
            OWNER=self.suite.manager[0],
            WORKFLOW=workflow,
        )
        return dict(json.loads(said))

    def _shell(self, command: str, **variables: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            env=self.suite.environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def beamline(suite: Suite, sge: SgeCluster, run_directory: Path) -> Iterator[Beamline]:
    home = run_directory / "xpcs"
    for name in ("cluster", "scratch"):
        (home / name).mkdir(parents=True)
        (home / name).chmod(0o1777)
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST")
    suite.dm("dm-install-workflows", WORKFLOW, "xpcs-8id-batch")
    with running(GridFtpServer(home / "gridftp", account=STAGE_ACCOUNT or "")) as server:
        yield Beamline(suite, sge, f"{server.url}{home / 'cluster'}", home / "cluster", home / "scratch", home)


def raw_files(beamline: Beamline, number: int) -> list[str]:
    """Acquire raw files into the experiment; return their paths there."""
    source = beamline.home / f"detector-{number}" / f"run{number}"
    source.mkdir(parents=True)
    names = [f"A{scan:03d} Lq0 @{number}.h5" for scan in range(number)]
    names[0] = f"-rf $(touch hacked); 'q' \"x\" #{number}%41.h5"  # nobody would call a file so; it does no harm
    for scan, name in enumerate(names):
        copy_image_stack(source / name)
        with h5py.File(source / name, "r+") as file:
            frames = file["entry/data/frames"]
            frames[:, 20:40, 20:40] += np.random.default_rng(scan).integers(0, 500, (10, 20, 20), dtype=frames.dtype)
    words = ("--experiment", EXPERIMENT, "--data-directory", source.parent, "--wait")
    assert "status=done" in beamline.suite.dm("dm-upload", *words)
    return [f"run{number}/{name}" for name in names]


def parts(suite: Suite) -> dict[str, Any]:
    return {part.name: part for part in components.chosen("all", suite.installed.layout.settings)}


def independent_g2(raw: Path) -> np.ndarray:
    """Compute g2 as its definition says, pixel by pixel and pair by pair."""
    with h5py.File(raw) as file:
        frames = file["entry/data/frames"][()].astype(float)
    number, rows, columns = frames.shape
    y, x = np.indices((rows, columns))
    radius = np.sqrt((y - (rows - 1) / 2) ** 2 + (x - (columns - 1) / 2) ** 2)
    edges = np.linspace(radius.min(), radius.max(), RINGS + 1)
    ring = np.clip(np.searchsorted(edges, radius, side="right") - 1, 0, RINGS - 1)
    result = np.zeros((number - 1, RINGS))
    for delay in range(1, number):
        early = [frames[t] for t in range(number - delay)]
        late = [frames[t + delay] for t in range(number - delay)]
        both = sum(a * b for a, b in zip(early, late, strict=True)) / len(early)
        each = both / (sum(early) / len(early)) / (sum(late) / len(late))
        result[delay - 1] = [each[ring == one].mean() for one in range(RINGS)]
    return result


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def run_all(beamline: Beamline, workflow: str, files: list[str], **changes: str) -> list[Any]:
    """Submit a job for each file, all at once, and return the ended jobs."""
    jar = beamline.log_in()
    with concurrent.futures.ThreadPoolExecutor(len(files)) as pool:
        started = list(pool.map(lambda file: beamline.submit(jar, workflow, file, **changes), files))
    assert {job["status"] for job in started} == {"pending"}
    api = beamline.api(WorkflowProcApi, "DM_PROC_WEB_SERVICE_URL")
    try:
        return [api.waitProcessingJob(None, job["id"], PATIENCE) for job in started]
    finally:
        api.close()


def told(job: Any) -> str:
    """Return what a job that failed says of itself."""
    children = [
        {key: child.get(key) for key in ("stageId", "command", "exitStatus", "stdOut", "stdErr")}
        for stage in job["workflow"]["stages"].values()
        for child in (stage.get("childProcesses") or {}).values()
    ]
    return json.dumps({"status": job["status"], "error": job.get("errorMessage"), "children": children[-2:]}, indent=1)


def check(beamline: Beamline, files: list[str], jobs: list[Any]) -> None:
    """Everything that was asked for is there and true, and the accounting of the Grid Engine agrees."""
    check_results(beamline, files, jobs)
    for file, job in zip(files, jobs, strict=True):
        stem = Path(file).stem
        accounted = beamline.sge.record(job["sgeJobId"])
        assert accounted["jobname"] == job["sgeJobName"]
        assert job["sgeJobName"].partition(".")[0] == "xpcs_" + re.sub(r"\W", "_", stem)
        assert (accounted["owner"], accounted["qname"]) == (beamline.sge.account, job["sgeQueue"] or beamline.sge.queue)
        assert (accounted["exit_status"].strip(), str(job.get("sgeExitStatus", job.get("exitStatus")))) == ("0", "0")


def check_results(beamline: Beamline, files: list[str], jobs: list[Any]) -> None:
    """Each job is done, and its result is true, in storage, and in the catalog."""
    for job in jobs:
        assert job["status"] == "done", told(job)
    record = dict(
        json.loads(
            beamline.suite.dm(
                "dm-get-experiment", "--experiment", EXPERIMENT, "--display-keys", "ALL", "--display-format", "json"
            )
        )
    )
    data, analysis = Path(record["dataDirectory"]), Path(record["analysisDirectory"])
    catalog = beamline.api(FileCatApi, "DM_CAT_WEB_SERVICE_URL")
    try:
        known = {(file["root"], file["experimentFilePath"]): file for file in catalog.getExperimentFiles(EXPERIMENT)}
    finally:
        catalog.close()
    assert len({job["sgeJobId"] for job in jobs}) == len(jobs)
    for file, job in zip(files, jobs, strict=True):
        stem = Path(file).stem
        result = analysis / "xpcs-8id" / f"{stem}.xpcs.h5"
        entry = known["analysis", f"xpcs-8id/{stem}.xpcs.h5"]
        assert (entry["md5Sum"], entry["fileSize"]) == (md5(result), result.stat().st_size)
        assert known["data", file]["md5Sum"] == md5(data / file)  # the raw file is as the detector wrote it
        with h5py.File(result) as found, h5py.File(data / file) as raw:
            assert "xpcs" not in raw
            np.testing.assert_allclose(found["exchange/norm-0-g2"][()], independent_g2(data / file)[:8], rtol=1e-9)
            np.testing.assert_allclose(found["exchange/tau"][()], np.arange(1, 9) * FRAME_TIME)
            frames = raw["entry/data/frames"][()]
            np.testing.assert_array_equal(found["exchange/frame_sum"][()], frames.sum(axis=(1, 2)))
            assert found["xpcs/run_owner"][()].decode() == job["owner"]
    assert not [path for path in beamline.cluster.iterdir() if path.is_dir()], "the cluster is left as it was"
    assert not list(beamline.scratch.iterdir())


@pytest.mark.parametrize("number", [5, pytest.param(30, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_pipeline(beamline: Beamline, number: int) -> None:
    """A job for each raw file, all at once."""
    files = raw_files(beamline, number)
    check(beamline, files, run_all(beamline, WORKFLOW, files))


@pytest.mark.long
def test_pipeline_with_batch_run(beamline: Beamline) -> None:
    """The same with one stage for the batch job."""
    files = raw_files(beamline, 2)
    jobs = run_all(beamline, "xpcs-8id-batch", files)
    check(beamline, files, jobs)
    assert {job["outcome"] for job in jobs} == {"exited"}


@pytest.mark.long
def test_pipeline_on_slurm(beamline: Beamline, slurm: SlurmCluster) -> None:
    """The same workflow, on the other batch system: only what is sourced first is another."""
    environment = beamline.home / "slurm.sh"
    environment.write_text("".join(f"export {name}={value}\n" for name, value in slurm.environment.items()))
    files = raw_files(beamline, 3)
    jobs = run_all(beamline, "xpcs-8id-batch", files, batchEnvironment=str(environment), queue=slurm.partition)
    check_results(beamline, files, jobs)
    for job in jobs:
        asked = ("sacct", "-X", "-n", "-P", "-o", "JobName,State,User", "-j", job["sgeJobId"])
        assert slurm.run(*asked).stdout.strip() == f"{job['sgeJobName']}|COMPLETED|{slurm.account}"


@pytest.mark.parametrize("workflow", [WORKFLOW, pytest.param("xpcs-8id-batch", marks=pytest.mark.long)])
def test_a_batch_job_that_fails(beamline: Beamline, workflow: str) -> None:
    """One frame cannot be correlated: the job fails, and what the program said is in its record."""
    name = f"single-{workflow}.h5"
    with h5py.File(beamline.home / name, "w") as file:
        file["entry/data/frames"] = np.ones((1, 20, 20), "i4")
    (job,) = run_all(beamline, workflow, [str(beamline.home / name)])
    assert job["status"] == "failed"
    said = json.dumps(job["workflow"]["stages"])
    assert "1 frames of 20x20 pixels cannot be correlated" in said
    assert job["sgeJobId"] in beamline.sge.run("qacct", "-j", job["sgeJobId"]).stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_service_is_killed_on_the_way(beamline: Beamline) -> None:
    """kill -9 of the processing service five times while the pipeline runs: each batch job is submitted once."""
    files = raw_files(beamline, 8)
    jar = beamline.log_in()
    part = next(part for name, part in parts(beamline.suite).items() if "processing" in name)
    started = [beamline.submit(jar, WORKFLOW, file) for file in files]
    for _ in range(5):
        time.sleep(2)
        pid = part.pid_file.alive()
        assert pid is not None
        process = psutil.Process(pid)
        process.kill()
        psutil.wait_procs([process], timeout=20)
        components.start([part])
    api = beamline.api(WorkflowProcApi, "DM_PROC_WEB_SERVICE_URL")
    try:
        jobs = [api.waitProcessingJob(None, job["id"], PATIENCE) for job in started]
    finally:
        api.close()
    check(beamline, files, jobs)
    for job in jobs:
        accounted = beamline.sge.run("qacct", "-j", job["sgeJobName"]).stdout
        assert accounted.count("jobnumber") == 1, "submitted twice"
        counts = {
            name: len(stage["childProcesses"])
            for name, stage in job["workflow"]["stages"].items()
            if name != "05-WATCH"
        }
        assert set(counts.values()) == {1}, counts


def test_a_job_that_is_stopped(beamline: Beamline) -> None:
    """It takes its batch job with it, also one that has not begun."""
    jar = beamline.log_in()
    api = beamline.api(WorkflowProcApi, "DM_PROC_WEB_SERVICE_URL")
    beamline.manage("qmod", "-d", beamline.sge.queue)
    try:
        job = beamline.submit(jar, WORKFLOW, str(copy_image_stack(beamline.home / "elsewhere.h5")))
        deadline = time.monotonic() + 60
        while not (found := api.getProcessingJobById(None, job["id"])).get("sgeState"):
            assert time.monotonic() < deadline, told(found)
            time.sleep(0.2)
        assert found["sgeJobId"] in beamline.sge.jobs()
        api.stopProcessingJob(None, job["id"])
        assert api.waitProcessingJob(None, job["id"], PATIENCE)["status"] == "aborted"
        assert found["sgeJobId"] not in beamline.sge.jobs()
        assert not (beamline.cluster / job["id"]).exists()
    finally:
        beamline.manage("qmod", "-e", beamline.sge.queue)
        api.close()
