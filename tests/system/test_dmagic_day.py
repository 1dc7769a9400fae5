"""A set-up program in the manner of DMagic: an experiment from a safety form, its users, two DAQs, and its end.

The program knows nothing but the setup file's environment and the published Python API.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dm import ExperimentDsApi, InvalidArgument, ObjectAlreadyExists, ObjectNotFound, UserDsApi
from dm.common.environment import write_login_file
from dm.deploy.install import ADMINISTRATOR
from tests import live
from tests.live import PROGRAMS, STATION, Suite
from tests.service import storage_fixtures as fx

PEOPLE = ["d100001", "d100002"]

PROGRAM = """
import datetime, json, os, sys, time
from dm import EsafApsDbApi, ExperimentDaqApi, ExperimentDsApi, UserDsApi
from dm import DmException, ObjectAlreadyExists, ObjectNotFound

# made when the module is imported, from the environment alone
esafApi, expApi, userApi, daqApi = EsafApsDbApi(), ExperimentDsApi(), UserDsApi(), ExperimentDaqApi()
station = os.environ["DM_STATION_NAME"]
raw, rec = sys.argv[1:3]
said = {}

today = datetime.date.today()
span = [str(today - datetime.timedelta(days=1)), str(today + datetime.timedelta(days=1))]
esafs = esafApi.listStationEsafsByDateRange(station, *span)
esaf = esafs[0]
said["esafs"] = [one["esafId"] for one in esafs]
start = datetime.datetime.strptime(esaf["experimentStartDate"], "%Y-%m-%d %H:%M:%S")
end = datetime.datetime.strptime(esaf["experimentEndDate"], "%Y-%m-%d %H:%M:%S")
pi = [user for user in esaf["experimentUsers"] if user["piFlag"] == "Yes"][0]
name = f"{start:%Y-%m}-{pi['lastName']}-{esaf['esafId']}"

try:
    expApi.getExperimentByName(name)
except ObjectNotFound as error:
    assert "does not exist" in str(error)
arguments = dict(typeName=os.environ["DM_ALLOWED_EXPERIMENT_TYPES"].split(",")[0], description=esaf["esafTitle"],
                 rootPath=f"{start:%Y-%m}", startDate=f"{start:%d-%b-%y}", endDate=f"{end:%d-%b-%y}")
experiment = expApi.addExperiment(name, **arguments)
assert experiment["name"] == name
try:
    expApi.addExperiment(name, **arguments)
except ObjectAlreadyExists:
    said["again"] = "already exists"

said["users"], said["missing"] = [], []
badges = [user["badge"] for user in esaf["experimentUsers"]]
for badge in badges + badges[:1]:
    try:
        userApi.getUserByUsername("d" + str(badge))
        userApi.addUserExperimentRole("d" + str(badge), "User", name)
        said["users"].append("d" + str(badge))
    except ObjectAlreadyExists:
        said["twice"] = "d" + str(badge)
    except ObjectNotFound:
        said["missing"].append("d" + str(badge))

first = daqApi.startDaq(name, raw, {"processExistingFiles": True})
second = daqApi.startDaq(name, rec, {"processExistingFiles": True, "useAnalysisDirectoryAsRoot": True})
running = [daq for daq in daqApi.listDaqs() if daq["experimentName"] == name and daq["status"] in ("pending", "running")
           and daq["experimentStationName"] == station]
said["running"] = sorted(daq["dataDirectory"] for daq in running)
for daq in (first, second):
    deadline = time.monotonic() + 60
    while daqApi.getDaqInfo(daq["id"])["nCompletedFiles"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
try:
    expApi.deleteExperimentByName(name)
except DmException as error:
    said["refused"] = str(error)
for directory in (raw, rec):
    daqApi.stopDaq(name, directory)
for daq in (first, second):
    while daqApi.getDaqInfo(daq["id"])["status"] not in ("done", "failed", "aborted"):
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    assert daqApi.getDaqInfo(daq["id"])["status"] == "done"

expApi.upsertExperimentMetadata("emailedUsers", said["users"], name)
whole = expApi.getExperimentByName(name)
said["emailed"] = whole["emailedUsers"]
said["experiment"] = {key: whole[key] for key in ("id", "rootPath", "startDate", "endDate", "storageDirectory",
                                                   "experimentUsernameList")}
said["stored"] = sorted(os.path.relpath(os.path.join(above, file), whole["storageDirectory"])
                        for root in ("dataDirectory", "analysisDirectory")
                        for above, _, files in os.walk(whole[root]) for file in files)
operation = expApi.deleteExperimentByName(name)
while operation["status"] in ("pending", "running"):
    time.sleep(0.1)
    operation = expApi.getOperation(operation["id"])
said["deleted"] = operation["status"]
try:
    expApi.getExperimentByName(name)
except ObjectNotFound as error:
    said["gone"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture
def manager(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> ExperimentDsApi:
    """The published class as a program of the station's manager makes it."""
    for key, value in suite.environment.items():
        monkeypatch.setenv(key, value)
    return ExperimentDsApi()


def test_a_set_up_program_in_one_go(suite: Suite, manager: ExperimentDsApi, tmp_path: Path) -> None:
    live.sample_facility(suite)
    users = UserDsApi(*suite.administrator)
    with contextlib.suppress(ObjectAlreadyExists):  # other tests of the run may have synchronised them
        users.addUser(PEOPLE[0], "not-used-here")
    known = {user["username"] for user in users.getUsers()}
    users.close()
    added = [person for person in PEOPLE if person in known]
    raw, rec = tmp_path / "scan", tmp_path / "scan_rec"
    for directory, content in ((raw, b"projections"), (rec, b"slices")):
        directory.mkdir()
        (directory / "scan_001.h5").write_bytes(content)
    program = tmp_path / "dmagic_like.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, raw, rec],
        env=suite.environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    today = date.today()
    assert said["esafs"] == [200001] and said["again"] == "already exists"
    assert (said["users"], said["twice"]) == (added, PEOPLE[0])
    assert said["missing"] == [person for person in PEOPLE if person not in known]
    assert said["running"] == sorted([str(raw), str(rec)]) and "2 running DAQs" in said["refused"]
    found = said["experiment"]
    name = f"{today:%Y-%m}-Example-200001"
    assert found["storageDirectory"].endswith(f"/{STATION}/{today:%Y-%m}/{name}")
    assert found["startDate"].startswith(str(today)) and found["rootPath"] == f"{today:%Y-%m}"
    assert found["experimentUsernameList"] == said["emailed"] == added
    assert said["stored"] == ["analysis/scan_001.h5", "data/scan_001.h5"]
    assert said["deleted"] == "done" and "does not exist" in said["gone"]
    assert not Path(found["storageDirectory"]).exists()
    # Nobody meant it.
    listed = suite.dm("dm-list-deleted-experiments")
    assert f"id={found['id']} name={name} " in listed
    assert "status=done " in suite.dm("dm-restore-deleted-experiment", "--id", found["id"])
    stored = Path(found["storageDirectory"])
    assert (stored / "analysis/scan_001.h5").read_bytes() == b"slices"
    assert "experimentFilePath=scan_001.h5 " in suite.dm("dm-list-experiment-files", "--experiment", name)
    error = suite.dm(
        "dm-purge-experiment", "--id", found["id"], "--yes", status=ObjectNotFound.code, user=ADMINISTRATOR
    )
    assert "does not exist" in error
    suite.dm("dm-delete-experiment", "--experiment", name, "--yes", "--wait")
    suite.dm("dm-purge-experiment", "--id", found["id"], status=1, stdin="no\n", user=ADMINISTRATOR)
    suite.dm("dm-purge-experiment", "--id", found["id"], "--yes", "--wait", user=ADMINISTRATOR)
    assert str(found["id"]) not in suite.dm("dm-list-deleted-experiments")


def test_the_order_of_the_stations_gui(suite: Suite, manager: ExperimentDsApi) -> None:
    """Everything by position, roles in the manner of 8-ID's agent, deletion by number."""
    made = manager.addExperiment(
        "gui-order", STATION, "TEST", "by position", "2026-2", None, None, "05-Mar-26", "07-Mar-26", True,
        "user8", "admin8"
    )  # fmt: skip
    assert (made["startDate"][:10], made["endDate"][:10]) == ("2026-03-05", "2026-03-07")
    assert (made["description"], made["rootPath"]) == ("by position", "2026-2")
    assert (made["beamlineUserAccount"], made["beamlineAdminAccount"]) == ("user8", "admin8")
    assert made["managedDirectoryStructure"] is True and Path(made["dataDirectory"]).is_dir()
    users, pi = UserDsApi(), suite.manager[0]
    for role in ("PI", "User"):
        users.addUserExperimentRole(pi, role, "gui-order")
        with pytest.raises(ObjectAlreadyExists):
            users.addUserExperimentRole(pi, role, "gui-order")
    for bad in ("31-Feb-26", "sometime"):
        with pytest.raises(InvalidArgument):
            manager.updateExperiment(made["id"], startDate=bad)
    changed = manager.updateExperiment(
        experimentId=made["id"], experimentName="gui-renamed", startDate="06-Mar-26", endDate="08-Mar-26",
        typeName=STATION, description="changed", rootPath="2026-3",
    )  # fmt: skip
    assert changed["storageDirectory"] == made["storageDirectory"].replace("2026-2/gui-order", "2026-3/gui-renamed")
    assert (changed["experimentType"]["name"], changed["startDate"][:10]) == (STATION, "2026-03-06")
    assert Path(changed["dataDirectory"]).is_dir() and not Path(made["storageDirectory"]).parent.exists()
    operation = manager.deleteExperimentById(made["id"])
    deadline = time.monotonic() + 60
    while manager.getOperation(operation["id"])["status"] != "done":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    users.close()


def test_stations_storages_and_types_by_command(suite: Suite, run_directory: Path) -> None:
    def admin(*words: str) -> str:
        return suite.dm(*words, user=ADMINISTRATOR)

    second = run_directory / "second-storage"
    second.mkdir(mode=0o711)
    admin("dm-add-station", "--station", "99ID")
    admin("dm-add-storage", "--storage", "SECOND", "--host", "localhost", "--directory", str(second))
    admin("dm-add-experiment-type", "--type", "LIFE")
    words = [
        "dm-update-station",
        "--station",
        "99ID",
        "--path-template",
        "{station}/{year}/{name}",
        "--storage",
        "SECOND",
    ]
    assert "name=99ID " in admin(*words)
    assert "pathTemplate={station}/{year}/{name} " in admin("dm-list-stations", "--display-keys", "ALL")
    admin("dm-update-experiment-type", "--type", "LIFE", "--new-name", "LIVES", "--description", "nine")
    admin("dm-update-storage", "--storage", "SECOND", "--retired")
    assert "retired=True " in admin("dm-list-storages", "--display-keys", "ALL")
    suite.dm("dm-update-storage", "--storage", "SECOND", "--in-use", status=5)
    suite.dm("dm-update-station", "--station", "99ID", status=2, user=ADMINISTRATOR)
    admin("dm-update-station", "--station", "99ID", "--storage", "")
    admin("dm-delete-experiment-type", "--type", "LIVES")
    admin("dm-delete-station", "--station", "99ID")
    admin("dm-delete-storage", "--storage", "SECOND")
    assert "99ID" not in admin("dm-list-stations") and second.is_dir()


def test_moved_archived_and_pinned_by_command(
    new_postgres_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> None:
    """On a site of its own, with two storages and an archive."""
    archive, second, login = tmp_path / "archive", tmp_path / "second", tmp_path / "login"
    archive.mkdir()
    second.mkdir()
    with fx.running_site(new_postgres_database(), certificates, tmp_path / "site", archive_directory=archive) as site:
        write_login_file(login, fx.ADMIN, fx.password_of(fx.ADMIN))
        mine = {name: value for name, value in os.environ.items() if not name.startswith("DM_")}
        there = {"DM_DS_WEB_SERVICE_URL": site.url, "DM_CA_FILE": str(site.ca_file), "DM_LOGIN_FILE": str(login)}
        there |= {"DM_STATION_NAME": STATION, "DM_HOME": str(tmp_path / "home")}

        def dm(*words: str) -> str:
            done = subprocess.run(
                [str(PROGRAMS / words[0]), *words[1:]], env=mine | there, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        made = site.experiments(fx.ADMIN).addExperiment("life", STATION)
        site.experiments(fx.ADMIN).addStorage("SECOND", "localhost", str(second))
        dm("dm-pin-experiment", "--experiment", "life", "--n-days", "3")
        assert f"pinnedByUser={fx.ADMIN} " in dm("dm-get-experiment", "--experiment", "life", "--display-keys", "ALL")
        task = dm("dm-archive-experiment", "--experiment", "life", "--wait")
        assert task.startswith("id=") and " name=archiveExperiment experimentName=life status=done " in task
        assert " status=done " in dm("dm-restore-experiment", "--experiment", "life", "--wait")
        assert dm("dm-list-archive-tasks").splitlines()[0] == task.strip("\n")
        number = task.split()[0].removeprefix("id=")
        assert "countFiles=1 " in dm("dm-get-archive-task", "--id", number, "--display-keys", "ALL")
        assert " status=done " in dm("dm-move-experiment", "--experiment", "life", "--storage", "SECOND", "--wait")
        assert (second / STATION / "life" / "data").is_dir() and (archive / STATION / str(made["id"])).is_dir()
