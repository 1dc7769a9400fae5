"""Drive the published ``dmax`` client against a live suite and print what it saw as JSON.

Run by the clients' own interpreter: ``python dmax_live.py sync|async EXPERIMENT SOURCE_DIRECTORY``. The DM_* variables
of the setup file are in the environment.
"""

import asyncio
import contextlib
import inspect
import io
import json
import sys
import time

import dmax
import dmax.processing
import httpx

flavour, experiment_name, source_directory = sys.argv[1:4]
client = dmax.Client() if flavour == "sync" else dmax.AsyncClient()
workflow_name = f"dmax-{flavour}"
loop = asyncio.new_event_loop()


def call(name, /, *args, **kwargs):
    """Call a client method of either flavour; dmax prints every submitted job, which is kept off our output."""
    with contextlib.redirect_stdout(io.StringIO()):
        result = getattr(client, name)(*args, **kwargs)
        return loop.run_until_complete(result) if inspect.isawaitable(result) else result


def refusal(name, /, *args, **kwargs):
    """Return the text of the HTTP error that the client raises."""
    try:
        call(name, *args, **kwargs)
    except httpx.HTTPStatusError as error:
        return f"{error} {error.response.text}"
    return ""


seen = {"username": client.username}
listed = call("experiments")
seen["experiments"] = [item.name for item in listed]
experiment = call("experiment", name=experiment_name)
seen["byName"] = json.loads(experiment.model_dump_json())
seen["byId"] = call("experiment", id=str(experiment.id)).name
seen["unknownExperiment"] = refusal("experiment", name="no-such-experiment")

daq = call("start_data_archive_queue", source_directory, experiment_name, skip="*.skipme,skipped/*")
seen["daq"] = json.loads(daq.model_dump_json())
seen["daqAgain"] = call("start_data_archive_queue", source_directory, experiment_name).id
seen["missingSource"] = refusal("start_data_archive_queue", source_directory + "-missing", experiment_name)

spec = dmax.processing.Workflow(
    name=workflow_name,
    owner=client.username,
    userAccount=client.username,
    description="three stages by dmax",
    id="",
    stages={
        "01-Show": {"command": 'echo "run: $run_uid"', "outputVariableRegexList": ["run: (?P<seenRun>.*)"]},
        "02-Path": {"command": "echo path $filePath '$run_uid'"},
        "03-Done": {"command": "echo finished $seenRun"},
    },
)
added = call("add_workflow", spec)
seen["added"] = json.loads(added.model_dump_json())
seen["addedAgain"] = refusal("add_workflow", spec)
seen["workflow"] = json.loads(call("workflow", workflow_name).model_dump_json())
seen["workflows"] = [item.name for item in call("workflows")]
seen["set"] = call("set_workflow", workflow_name, added.model_copy(update={"description": "set by dmax"})).description
seen["updated"] = call("update_workflow", workflow_name, {"description": "updated by dmax"}).description

job = call(
    "submit_processing_job", workflow_name, filePath="/dev/null", run_uid="5f3c; touch /tmp/x", target_folder="a b"
)
seen["submitted"] = job.status
deadline = time.monotonic() + 60
while (job := call("processing_job", job.id)).status not in ("done", "failed") and time.monotonic() < deadline:
    time.sleep(0.2)
seen["job"] = json.loads(job.model_dump_json())
call("submit_processing_job", workflow_name, filePath="/dev/null", run_uid="second")
jobs = call("processing_jobs", limit=1, offset=1)
seen["page"] = [item.id for item in jobs]
seen["jobs"] = [item.id for item in call("processing_jobs")]

proposals = call("proposals", beamline="25-ID-C")
seen["proposals"] = {item.proposal_id: json.loads(item.model_dump_json()) for item in proposals}
seen["allProposals"] = [item.proposal_id for item in call("proposals")]
proposal = call("proposal", "0158394")
seen["proposal"] = proposal.title
esafs = call("esafs", beamline="25-ID-C", year=str(proposal.start.year))
seen["esafs"] = {item.id: json.loads(item.model_dump_json()) for item in esafs}
seen["esaf"] = call("esaf", "200001").title
seen["noProposal"] = refusal("proposal", "1")
seen["foreignEsaf"] = refusal("esaf", "200003")
loop.close()
print(json.dumps(seen))
