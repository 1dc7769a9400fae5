"""Jobs on files that the catalog knows, in an installation as ``dm-install`` leaves it, by commands."""

from __future__ import annotations

import json
from pathlib import Path

from dm.station.catalog.api import DatasetCatApi, FileCatApi
from tests.live import Suite

EXPERIMENT = "with-datasets"
SPEC = {"name": "of-the-catalog", "stages": {"1": {"command": "echo $filePath", "parallelExec": True}}}


def test_a_dataset_and_a_query_name_the_files_of_a_job(suite: Suite, tmp_path: Path) -> None:
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST")
    login = (*suite.manager, suite.environment["DM_CAT_WEB_SERVICE_URL"])
    files, datasets = (kind(*login, ca_file=suite.environment["DM_CA_FILE"]) for kind in (FileCatApi, DatasetCatApi))
    for number in range(3):
        record = {"experimentName": EXPERIMENT, "experimentFilePath": f"scan_{number}.h5", "sample": f"s{number % 2}"}
        files.addExperimentFile(record)
    paths = ["scan_2.h5", "scan_1.h5"]
    datasets.addExperimentDataset({"experimentName": EXPERIMENT, "datasetName": "two", "experimentFilePathList": paths})
    files.close()
    datasets.close()
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC))
    suite.dm("dm-upsert-workflow", f"--json-spec={spec}")
    for word, found in (("datasetName:two", paths), ('fileQuery:{"sample": "s0"}', ["scan_0.h5", "scan_2.h5"])):
        words = ["--workflow-name=of-the-catalog", f"experimentName:{EXPERIMENT}", word]
        started = suite.dm("dm-start-processing-job", *words, "--display-format=json")
        job = json.loads(started)["id"]
        suite.dm("dm-wait-processing-job", f"--id={job}")
        ended = json.loads(suite.dm("dm-get-processing-job", f"--id={job}", "-a", "--display-format=json"))
        children = ended["workflow"]["stages"]["1"]["childProcesses"].values()
        assert sorted(child["stdOut"].strip() for child in children) == sorted(found)
        assert ended["countFiles"] == 2
