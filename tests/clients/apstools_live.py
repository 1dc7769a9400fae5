"""Drive the published ``apstools`` package against a live suite and print what it saw as JSON.

Run by the clients' own interpreter: ``python apstools_live.py SETUP_FILE EXPERIMENT SOURCE_DIRECTORY``. Only
DM_LOGIN_FILE is in the environment beforehand; the rest comes from the setup file, as at a beamline.
"""

import contextlib
import io
import json
import logging
import pathlib
import sys

import bluesky
import databroker
from apstools.devices import DM_WorkflowConnector
from apstools.utils import aps_data_management as aps
from ophyd.sim import det

setup_file, experiment, source = sys.argv[1:4]
seen = {}
root_handlers = list(logging.getLogger().handlers)
seen["owner"] = aps.dm_setup(setup_file)
seen["station"] = aps.dm_station_name()

listed = aps.dm_get_experiments()
seen["experiments"] = [item["name"] for item in listed]
seen["table"] = str(aps.dm_get_experiments(table=True))
seen["experimentPath"] = str(aps.dm_get_experiment_path(experiment))
aps.validate_experiment_dataDirectory(experiment)

watched = pathlib.Path(source, "watched")
daq = aps.dm_start_daq(experiment, str(watched), sample="silver behenate")
seen["daq"] = {key: daq[key] for key in ("id", "status", "experimentName", "dataDirectory", "sample")}
active = aps.dm_get_experiment_datadir_active_daq(experiment, str(watched))
seen["activeDaq"] = active["id"]
seen["daqs"] = [item["id"] for item in aps.dm_get_daqs(experiment)]
(watched / "while-watched.txt").write_text("seen by the DAQ\n")

RE = bluesky.RunEngine()
RE(aps.wait_dm_upload(experiment, "while-watched.txt", timeout=60, poll_period=0.5))
seen["watchedFile"] = aps.dm_get_experiment_file(experiment, "while-watched.txt")["fileName"]
aps.dm_stop_daq(experiment, str(watched))

upload_source = pathlib.Path(source, "upload")
aps.dm_upload(experiment, str(upload_source))
RE(aps.wait_dm_upload(experiment, "uploaded.txt", timeout=60, poll_period=0.5))
record = aps.dm_get_experiment_file(experiment, "uploaded.txt")
seen["uploaded"] = {key: record[key] for key in ("fileName", "experimentFilePath", "fileSize", "md5Sum")}
upload = aps.dm_api_daq().upload(experiment, str(upload_source), {"reprocessFiles": True})
RE(aps.dm_daq_wait_upload_plan(upload["id"], period=0.5))
seen["uploadStatus"] = aps.dm_api_daq().getUploadInfo(upload["id"])["status"]
seen["ready"] = aps.dm_file_ready_to_process("uploaded.txt", experiment, "", True)
try:
    seen["missingReady"] = aps.dm_file_ready_to_process("never.txt", experiment)
except Exception as error:
    seen["missingReady"] = type(error).__name__

api = aps.dm_api_proc()
spec = {
    "name": "apstools-01",
    "owner": api.username,
    "stages": {
        "01-Count": {
            "command": "wc -c < $filePath | sed 's/^/bytes: /'",
            "outputVariableRegexList": ["bytes: (?P<nBytes>[0-9]+)"],
        },
        "02-Skipped": {"command": "echo never", "runIf": '"$demand" == "yes"'},
        "03-DONE": {"command": "echo counted $nBytes"},
    },
}
workflow_file = pathlib.Path(source, "workflow.json")
workflow_file.write_text(json.dumps(spec))
seen["added"] = aps.dm_add_workflow(str(workflow_file))["name"]
spec["description"] = "counts bytes"
workflow_file.write_text(json.dumps(spec))
seen["updated"] = aps.dm_update_workflow(str(workflow_file))["description"]
seen["workflow"] = aps.dm_get_workflow("apstools-01")["name"]
seen["lastStage"] = aps.get_workflow_last_stage("apstools-01")

reports = io.StringIO()
handler = logging.StreamHandler(reports)
report_logger = logging.getLogger("apstools.devices.aps_data_management")
report_logger.addHandler(handler)
report_logger.setLevel(logging.INFO)
connector = DM_WorkflowConnector(name="connector", labels=["DM"])
connector.concise_reporting.put(False)
RE(connector.run_as_plan("apstools-01", timeout=60, filePath=str(upload_source / "uploaded.txt"), demand="no"))
connector.report_processing_stages()
seen["connector"] = {"status": connector.status.get(), "stage": connector.stage_id.get(), "id": connector.job_id.get()}
seen["report"] = reports.getvalue()
seen["connectorJobs"] = [job["id"] for job in connector.processing_jobs]
seen["connectorWorkflows"] = [workflow["name"] for workflow in connector.workflows]
cache = aps.DM_WorkflowCache()
cache.define_workflow("one", connector)
out = io.StringIO()
with contextlib.redirect_stdout(out):
    cache.report_dm_workflow_output("03-DONE")
    cache.print_cache_summary()
seen["cacheReport"] = out.getvalue()

catalog = databroker.temp()
RE.subscribe(catalog.v1.insert)
from bluesky.plans import count  # noqa: E402

(uid,) = RE(count([det]))
dataset = aps.share_bluesky_metadata_with_dm(experiment, "apstools-01", catalog.v2[uid], should_raise=True)
seen["runUid"] = uid
seen["dataset"] = {key: dataset[key] for key in ("experimentName", "datasetName", "bluesky_run_uid")}
stored = aps.dm_api_dataset_cat().getExperimentDataset(experiment, f"run_uid8_{uid[:8]}")
seen["datasetStreams"] = sorted(stored["bluesky_metadata"])
seen["rootHandlersKept"] = list(logging.getLogger().handlers) == root_handlers
print("\n" + json.dumps(seen))
