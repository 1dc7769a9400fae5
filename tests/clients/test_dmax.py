"""The published dmax client, unmodified, in both flavours, against the live suite."""

import pytest


@pytest.fixture(scope="module", params=["sync", "async"])
def seen(request, suite, drive, run_directory, facility):
    flavour = request.param
    experiment = f"dmax-{flavour}-exp"
    suite.dm("dm-add-experiment", "--experiment", experiment, "--type", "TEST")
    source = run_directory / f"dmax-{flavour}"
    source.mkdir()
    environment = {name: value for name, value in suite.environment.items() if name.startswith("DM_")}
    if flavour == "async":  # with an API token in the password's place
        file = suite.installed.layout.login_file("dmax")
        scopes = "--scopes=read,acquisition,processing"
        suite.dm("dm-add-token", "--name", "dmax", scopes, "--station=25IDC", "--login-file", file)
        environment["DM_LOGIN_FILE"] = str(file)
    found = drive("dmax_live.py", flavour, experiment, source, **environment)
    suite.dm("dm-stop-daq", "--experiment", experiment, "--data-directory", source)
    return found | {"flavour": flavour, "experiment": experiment, "source": str(source)}


def test_experiments(seen, suite):
    assert seen["username"] == suite.manager[0]
    assert seen["experiment"] in seen["experiments"]
    record = seen["byName"]
    assert record["name"] == seen["byId"] == seen["experiment"]
    assert record["station"]["name"] == "25IDC"
    assert record["data_path"].endswith(f"/{seen['experiment']}/data")
    assert record["storage_path"].endswith(f"/25IDC/{seen['experiment']}")
    assert "does not exist" in seen["unknownExperiment"]


def test_data_archive_queue(seen):
    daq = seen["daq"]
    assert daq["experiment_name"] == seen["experiment"]
    assert daq["data_directory"] == seen["source"]
    assert daq["skip_file_path_pattern"] == "*.skipme,skipped/*"
    assert daq["status"] in {"pending", "running"}
    assert seen["daqAgain"] == daq["id"]
    assert f"{seen['source']}-missing" in seen["missingSource"]


def test_workflows(seen):
    name = f"dmax-{seen['flavour']}"
    assert seen["added"]["name"] == name
    assert len(seen["added"]["id"]) == 24
    assert seen["workflow"]["id"] == seen["added"]["id"]
    assert list(seen["workflow"]["stages"]) == ["01-Show", "02-Path", "03-Done"]
    assert name in seen["workflows"]
    assert name in seen["addedAgain"]
    assert (seen["set"], seen["updated"]) == ("set by dmax", "updated by dmax")


def test_processing_jobs(seen):
    job = seen["job"]
    assert seen["submitted"] == "pending"
    assert job["status"] == "done", job
    assert job["file_count"] == 1
    stages = job["workflow"]["stages"]
    output = [process["standard_output"] for stage in stages.values() for process in stage["child_processes"].values()]
    assert output[0] == "run: 5f3c; touch /tmp/x\n"
    assert output[1] == "path /dev/null 5f3c; touch /tmp/x\n"
    assert output[2] == "finished 5f3c; touch /tmp/x\n"
    assert [list(stage["child_processes"]) for stage in stages.values()] == [["0"], ["1"], ["2"]]
    assert seen["jobs"][-2] == job["id"]  # oldest first
    assert seen["page"] == seen["jobs"][-2:-1]  # skip and limit count from the newest


def test_proposals(seen, facility):
    assert set(seen["proposals"]) == set(seen["allProposals"]) == {"0158394", "0100001"}
    proposal = seen["proposals"]["0158394"]
    assert proposal["title"] == seen["proposal"] == facility.title
    assert [(user["badge"], user["is_pi"]) for user in proposal["users"]] == [("111111", True), ("222222", False)]
    assert proposal["duration"] == "P2D"
    assert "Proposal 1 of station '25IDC' does not exist" in seen["noProposal"]


def test_safety_forms(seen, facility):
    assert set(seen["esafs"]) == {"200001", "200002"}
    form = seen["esafs"]["200001"]
    assert form["title"] == seen["esaf"] == facility.title
    assert (form["sector"], form["status"], form["description"]) == ("25", "Approved", "about silver")
    assert [(user["badge"], user["is_pi"]) for user in form["users"]] == [("111111", True), ("222222", False)]
    assert "ESAF 200003 of station '25IDC' does not exist" in seen["foreignEsaf"]
