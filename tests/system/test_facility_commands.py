"""The commands of the facility service, on the sample that an installation begins with."""

from __future__ import annotations

import re
import subprocess
from datetime import date

import pytest

from dm.deploy.install import ADMINISTRATOR
from tests import live
from tests.live import PROGRAMS, STATION, Suite

YEAR = str(date.today().year)
TEXT = "Example; replace it by what your facility has"


@pytest.fixture(scope="module", autouse=True)
def _sample(suite: Suite) -> None:
    live.sample_facility(suite)


def test_runs_and_beamlines(suite: Suite) -> None:
    lines = suite.dm("dm-list-run-cycles").splitlines()
    assert len(lines) == 9
    current = suite.dm("dm-get-current-run")
    assert current.startswith(f"name={YEAR}-") and current.rstrip("\n") in lines
    assert suite.dm("dm-list-beamlines") == f"name={STATION} \n"


def test_proposals(suite: Suite) -> None:
    listed = suite.dm("dm-list-proposals", "--station", STATION, "--beamline", "25-ID-C")
    assert listed.startswith(f"id=100001 title={TEXT} startTime={YEAR}-")
    assert suite.dm("dm-get-proposal", "--id", "0100001") == listed
    assert suite.dm("dm-list-proposals", "--run", "1999-1") == ""
    assert "Proposal 7 does not exist" in suite.dm("dm-get-proposal", "--id", 7, status=14)


def test_safety_forms(suite: Suite) -> None:
    listed = suite.dm("dm-list-esafs", "--year", YEAR)
    assert listed.startswith(f"esafId=200001 esafTitle={TEXT} experimentStartDate={YEAR}-")
    assert suite.dm("dm-list-esafs", "--sector", "25") == listed
    assert suite.dm("dm-list-esafs", "--start-date", date.today(), "--end-date", date.today()) == listed
    assert suite.dm("dm-get-esaf", "--id=200001") == listed
    assert "ESAF 7 does not exist" in suite.dm("dm-get-esaf", "--id", 7, status=14)
    assert "together" in suite.dm("dm-list-esafs", "--start-date", date.today(), status=2)
    assert "without" in suite.dm(
        "dm-list-esafs", "--start-date=2026-01-01", "--end-date=2026-01-02", "--year=2026", status=2
    )


def test_reading(suite: Suite) -> None:
    shown = suite.dm("dm-refresh-facility", "--show", "--kind", "esafs")
    assert shown.startswith("adapter=sample kind=esafs readTimestamp=") and "countRecords=1 " in shown
    assert "may not do this" in suite.dm("dm-refresh-facility", status=5)
    done = suite.dm("dm-refresh-facility", "--kind=runs", "--adapter=sample", user=ADMINISTRATOR)
    assert done == "adapter=sample kind=runs status=done countRecords=9 countRejected=0 errorMessage= \n"


def test_experiments_for_them(suite: Suite) -> None:
    suite.dm("dm-add-user", "--username", "d100002", "--no-password", user=ADMINISTRATOR)
    for _ in range(2):
        made = suite.dm("dm-add-experiment", "--esaf", "200001", "--type", "TEST")
        assert f" name=Example-{date.today():%Y%m}-200001 " in made
    found = suite.dm("dm-get-experiment", "--experiment", f"Example-{date.today():%Y%m}-200001", "-a")
    # d100001 is somebody only if another test has made them a user
    assert re.search(r"experimentUsernameList=\[('d100001', )?'d100002'\] ", found) and " esafId=200001 " in f" {found}"
    words = ["--proposal", 100001, "--experiment", "my-name", "--root-path", "mine", "--description", "own words"]
    suite.dm("dm-add-experiment", *words)
    found = suite.dm("dm-get-experiment", "--experiment", "my-name", "-a")
    assert "rootPath=mine " in found and "description=own words " in found and "proposalId=100001 " in found
    assert "is not of esafId 200001" in suite.dm(
        "dm-add-experiment", "--esaf", "200001", "--experiment", "my-name", status=15
    )
    assert "not both" in suite.dm("dm-add-experiment", "--esaf", "1", "--proposal", "1", status=2)
    assert "Name the experiment" in suite.dm("dm-add-experiment", status=2)
    assert "ESAF 7 of station '25IDC' does not exist" in suite.dm("dm-add-experiment", "--esaf", 7, status=14)


def test_people_who_are_no_users_are_named(suite: Suite) -> None:
    people = suite.installed.layout.facility / "proposal_people.csv"
    people.write_text(people.read_text().replace("100001,100001,First,", "100001,199999,No,"))
    suite.dm("dm-refresh-facility", "--kind=proposals", user=ADMINISTRATOR)
    words = [PROGRAMS / "dm-add-experiment", "--proposal", "100001", "--experiment", "unknown-people"]
    done = subprocess.run(words, env=suite.environment, capture_output=True, text=True, check=True)
    assert done.stderr == "Not a user here, left out: d199999 (No Example)\n"
    found = suite.dm("dm-get-experiment", "--experiment", "unknown-people", "-a")
    assert "experimentUsernameList=[] " in found
