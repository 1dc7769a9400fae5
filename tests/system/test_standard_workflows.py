"""The standard workflows, installed and run by commands on files of real beamlines; results land in analysis/."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabio
import h5py
import numpy as np
import pytest
from PIL import Image

from dm.common.environment import write_login_file
from dm.station.catalog.api import FileCatApi
from dm.station.processing.api import WorkflowProcApi
from dm.station.workflows import standard
from tests.beamline_files import beamline_file
from tests.live import Suite
from tests.service.acquisition_hosts import running_sshd
from tests.service.gridftp_server import GridFtpServer, running
from tests.service.processing_fixtures import STAGE_ACCOUNT
from tests.service.sge_server import SgeCluster, sge

__all__ = ["sge"]
EXPERIMENT = "standard-2026"
STACK, RINGS, SPEC = "sas/nexus-example.hdf5", "areadetector/AgBehenate_228.hdf5", "33id/APS_spec_data.dat"
ODD = "-rf $(touch hacked); 'q' \"x\" #%41.dat"  # nobody would call a file so; it does no harm


@dataclass
class Station:
    """A station with an experiment that holds real files. :param home: a place that stages can write to."""

    suite: Suite
    home: Path
    data: Path
    analysis: Path
    jobs: WorkflowProcApi
    catalog: FileCatApi

    def run(self, workflow: str, status: str = "done", **arguments: Any) -> dict[str, Any]:
        """Run a workflow and return the record of the job."""
        given = {"outputDirectory": str(self.home), **arguments}
        started = self.jobs.startProcessingJob(self.suite.manager[0], workflow, given)
        job = dict(self.jobs.waitProcessingJob(None, started["id"], 90))
        assert job["status"] == status, job
        return job

    def cataloged(self, path: str) -> Path:
        """Return a result of the analysis directory; the catalog has it with its digest."""
        record, file = self.catalog.getExperimentFile(EXPERIMENT, path), self.analysis / path
        assert (record["root"], record["md5Sum"]) == ("analysis", hashlib.md5(file.read_bytes()).hexdigest())
        return file


@pytest.fixture(scope="module")
def station(suite: Suite, run_directory: Path) -> Iterator[Station]:
    home = run_directory / "standard"
    source = home / "source"
    for name in (STACK, RINGS, SPEC):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(beamline_file(name).read_bytes())
    with h5py.File(source / RINGS) as file:
        fabio.cbfimage.CbfImage(data=file["entry/data/data"][()]).write(source / "areadetector" / "rings.cbf")
    (source / ODD).write_bytes(beamline_file(SPEC).read_bytes())
    (home / "results").mkdir()
    (home / "results").chmod(0o1777)
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST")
    suite.dm("dm-upload", "--experiment", EXPERIMENT, "--data-directory", source, "--wait")
    suite.dm("dm-install-workflows")
    record = json.loads(suite.dm("dm-get-experiment", "--experiment", EXPERIMENT, "-a", "--display-format", "json"))
    environment = suite.environment
    jobs, catalog = (
        kind(*suite.manager, url=environment[variable], ca_file=environment["DM_CA_FILE"])
        for kind, variable in ((WorkflowProcApi, "DM_PROC_WEB_SERVICE_URL"), (FileCatApi, "DM_CAT_WEB_SERVICE_URL"))
    )
    yield Station(
        suite, home / "results", Path(record["dataDirectory"]), Path(record["analysisDirectory"]), jobs, catalog
    )
    for name in standard.names():
        jobs.deleteWorkflowByName(suite.manager[0], name)
    jobs.close()
    catalog.close()


def test_installing_again_changes_nothing(station: Station) -> None:
    dm = station.suite.dm
    names = standard.names()
    assert len(names) == 10
    states = [line.split("state=")[1].split()[0] for line in dm("dm-install-workflows").splitlines()]
    assert states == ["unchanged"] * len(names)
    before = json.loads(dm("dm-get-workflow", "--name", "file-summary", "-a", "--display-format", "json"))
    changed = station.home.parent / "changed.json"
    changed.write_text(json.dumps({**before, "description": "Changed here."}))
    dm("dm-upsert-workflow", f"--json-spec={changed}")
    assert "state=different " in dm("dm-install-workflows", "--list", "file-summary")
    listed = dm("dm-install-workflows", "file-summary", "image-statistics").splitlines()
    assert ["state=updated " in listed[0], "state=unchanged " in listed[1]] == [True, True]
    after = json.loads(dm("dm-get-workflow", "--name", "file-summary", "-a", "--display-format", "json"))
    assert (after["description"], after["id"]) == (before["description"], before["id"])


def test_a_copy_to_change(station: Station) -> None:
    """What --show prints is a spec file."""
    dm = station.suite.dm
    shown = station.home.parent / "mine.py"
    text = dm("dm-install-workflows", "--show", "file-summary")
    assert text.rstrip() == standard.text("file-summary").rstrip()
    shown.write_text(text.replace('"name": "file-summary"', '"name": "my-summary"'))
    dm("dm-add-workflow", f"--py-spec={shown}")
    assert "name=my-summary " in dm("dm-list-workflows")
    dm("dm-delete-workflow", "--name", "my-summary")
    said = dm("dm-install-workflows", "no-such", status=14)
    assert "Standard workflow 'no-such' does not exist; there are: azimuthal-integration," in said


def test_image_statistics(station: Station) -> None:
    job = station.run("image-statistics", filePath=STACK, experimentName=EXPERIMENT, pixels=64)
    with h5py.File(beamline_file(STACK)) as file:
        frames = file["entry/data/frames"][()]
    assert (job["nFrames"], job["count"], job["maximum"]) == (10, frames.size, frames.max())
    assert job["mean"] == pytest.approx(frames.mean())
    with Image.open(station.cataloged(f"image-statistics/{STACK}.png")) as picture:
        assert max(picture.size) == 61  # 487 pixels in bins of 8
    written = json.loads(station.cataloged(f"image-statistics/{STACK}.statistics.json").read_text())
    assert [frame["maximum"] for frame in written["frames"]] == [float(frame.max()) for frame in frames]
    assert not (station.home / job["id"]).exists()


def test_summary_of_many_files(station: Station) -> None:
    """One job for several files."""
    files = [STACK, RINGS, SPEC, ODD]
    job = station.run("file-summary", filePathList=files, experimentName=EXPERIMENT)
    assert job["countFiles"] == 4
    kinds = [json.loads(station.cataloged(f"file-summary/{file}.summary.json").read_text())["kind"] for file in files]
    assert kinds == ["NeXus", "NeXus", "SPEC", "SPEC"]


def test_azimuthal_integration(station: Station) -> None:
    job = station.run(
        "azimuthal-integration", filePath=RINGS, experimentName=EXPERIMENT, beamX=-5.42, beamY=85.86, points=600
    )
    assert job["nPoints"] > 500
    curve = np.loadtxt(station.cataloged(f"azimuthal-integration/{RINGS}.integrated.dat"))
    ring = (curve[:, 0] > 0.15) & (curve[:, 0] < 0.28)  # the second ring of silver behenate
    assert curve[ring][curve[ring][:, 1].argmax(), 0] == pytest.approx(2 * 2 * np.pi / 58.38, rel=0.012)
    with h5py.File(station.cataloged(f"azimuthal-integration/{RINGS}.integrated.h5")) as file:
        np.testing.assert_allclose(file["entry/data/I"][()], curve[:, 1], rtol=1e-6)


def test_without_geometry_it_says_so(station: Station) -> None:
    job = station.run("azimuthal-integration", "failed", filePath="areadetector/rings.cbf", experimentName=EXPERIMENT)
    (child,) = job["workflow"]["stages"]["01-INTEGRATE"]["childProcesses"].values()
    assert "is not an HDF5 file; convert it first" in child["stdErr"]


def test_compression(station: Station) -> None:
    """With the arguments that a DAQ gives its jobs."""
    given = {"filePath": str(station.data / SPEC), "experimentFilePath": SPEC, "experimentName": EXPERIMENT}
    job = station.run("compress-files", **given, level=9)
    assert job["md5Sum"] == hashlib.md5(beamline_file(SPEC).read_bytes()).hexdigest()
    packed = station.cataloged(f"compress-files/{SPEC}.gz")
    assert gzip.decompress(packed.read_bytes()) == beamline_file(SPEC).read_bytes()


def test_conversion(station: Station) -> None:
    station.run("convert-to-hdf5", filePath="areadetector/rings.cbf", experimentName=EXPERIMENT)
    with (
        h5py.File(station.cataloged("convert-to-hdf5/areadetector/rings.cbf.h5")) as made,
        h5py.File(beamline_file(RINGS)) as original,
    ):
        np.testing.assert_array_equal(made["entry/data/data"][0], original["entry/data/data"][()])


def test_without_an_experiment_results_stay(station: Station) -> None:
    file = station.home.parent / "source" / SPEC
    job = station.run("file-summary", filePath=str(file))
    assert (station.home / job["id"] / "file-summary" / job["summary"]).exists()


def test_a_wrong_argument_is_refused(station: Station) -> None:
    words = ("--workflow-name", "compress-files", f"filePath:{SPEC}", "method:rar")
    said = station.suite.dm("dm-start-processing-job", *words, status=8)
    assert "method" in said and "rar" in said


def test_copy_there_and_back(station: Station) -> None:
    """By GridFTP; the file comes back as it went."""
    there = station.home / "there"
    there.mkdir()
    there.chmod(0o1777)
    with running(GridFtpServer(station.home.parent / "gridftp", account=STAGE_ACCOUNT or "")) as server:
        job = station.run("hpc-copy", filePath=STACK, experimentName=EXPERIMENT, remoteUrl=f"{server.url}{there}")
    assert job["copiedMd5Sum"] == hashlib.md5(beamline_file(STACK).read_bytes()).hexdigest()
    assert station.cataloged("hpc-copy/nexus-example.hdf5").read_bytes() == beamline_file(STACK).read_bytes()
    assert (there / job["id"] / "nexus-example.hdf5").read_bytes() == beamline_file(STACK).read_bytes()


def test_something_done_there(station: Station) -> None:
    """By rsync and ssh: the file goes, a command makes something of it, that comes back."""
    home = station.home.parent
    with running_sshd(home / "ssh") as command:
        identity = home / "key"
        identity.write_bytes((home / "ssh" / "user").read_bytes())
        identity.chmod(0o600)
        if STAGE_ACCOUNT:
            shutil.chown(identity, STAGE_ACCOUNT)
        known = home / "known"
        known.write_bytes((home / "ssh" / "known").read_bytes())
        user = pwd.getpwuid(os.geteuid()).pw_name
        job = station.run(
            "hpc-copy", filePath=SPEC, experimentName=EXPERIMENT, remoteUrl=f"{user}@localhost:{home}/hpc",
            remoteHost=f"{user}@localhost", remoteDirectory=f"{home}/hpc", identity=str(identity),
            knownHosts=str(known), sshPort=command[command.index("-p") + 1],
            remoteCommand="sort -o sorted.dat APS_spec_data.dat", resultName="sorted.dat",
        )  # fmt: skip
    wanted = sorted(beamline_file(SPEC).read_bytes().splitlines())
    assert sorted(station.cataloged("hpc-copy/sorted.dat").read_bytes().splitlines()) == wanted
    assert job["copiedSize"] == beamline_file(SPEC).stat().st_size


def test_batch_job(station: Station, sge: SgeCluster) -> None:
    job = station.run(
        "batch-job", filePath=SPEC, experimentName=EXPERIMENT, sharedDirectory=str(station.home),
        program="/usr/bin/sha256sum",
        programArguments="--binary --zero", batchEnvironment=str(sge.settings), slots=1, walltime="5m",
    )  # fmt: skip
    (child,) = job["workflow"]["stages"]["01-RUN"]["childProcesses"].values()
    digest = hashlib.sha256(beamline_file(SPEC).read_bytes()).hexdigest()
    assert f"{digest} *{station.data / SPEC}" in child["stdOut"]
    assert sge.record(job["jobId"])["exit_status"].strip() == "0"


@pytest.fixture
def login(station: Station) -> Iterator[Path]:
    """A login file that the stages may read."""
    path = station.home.parent / "audit.login"
    write_login_file(path, *station.suite.manager)
    if STAGE_ACCOUNT:
        shutil.chown(path, STAGE_ACCOUNT)
    yield path
    path.unlink()


def test_checksum_audit(station: Station, login: Path) -> None:
    """Fine at first; then one file is damaged, one is gone, one appears."""
    job = station.run("checksum-audit", experimentName=EXPERIMENT, loginFile=str(login))
    assert (job["nMissing"], job["nDifferent"], job["nExtra"], job["nUnverified"]) == (0, 0, 0, 0)
    assert job["nFine"] == job["nFiles"] >= 5
    damaged, gone, stray = station.data / SPEC, station.data / RINGS, station.data / "stray.dat"
    content, status = damaged.read_bytes(), damaged.stat()
    gone.rename(station.home.parent / "gone")
    stray.write_bytes(b"?")
    try:
        damaged.write_bytes(content[:-1] + b"X")
        os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))  # only reading it tells
        job = station.run("checksum-audit", "failed", experimentName=EXPERIMENT, loginFile=str(login))
    finally:
        damaged.write_bytes(content)
        (station.home.parent / "gone").rename(gone)
        stray.unlink()
    assert (job["nMissing"], job["nDifferent"], job["nUnreadable"], job["nExtra"]) == (1, 1, 0, 1)
    report = json.loads(station.cataloged(f"checksum-audit/{EXPERIMENT}.audit.json").read_text())
    assert [one["path"] for one in report["different"]] == [SPEC]
    assert [one["path"] for one in report["missing"]] == [RINGS]
    (child,) = job["workflow"]["stages"]["02-VERDICT"]["childProcesses"].values()
    assert f"{EXPERIMENT}: 1 missing, 1 different, 0 unreadable of" in child["stdErr"]
    said = station.suite.dm("dm-wait-processing-job", "--id", job["id"], status=11)
    assert f"Job {job['id']} is failed: it ended in stage '02-VERDICT'." in said


def test_the_tools_by_hand(station: Station) -> None:
    """What stages run is a command like others."""
    said = station.suite.dm("dm-process", "summary", "--output", station.home.parent, beamline_file(SPEC))
    assert "kind: SPEC\ntitle: Interesting samples\nnScans: 20\n" in said
    said = station.suite.dm("dm-process", "integrate", beamline_file(RINGS), "--energy", "-4", status=8)
    assert said == "Error: The energy -4 is not a positive number.\n"
