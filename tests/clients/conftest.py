"""One suite for the published clients, and their own interpreter."""

import json
import os
import subprocess
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client_python():
    """The interpreter of the environment that ``make clients`` builds: the clients from PyPI beside DM."""
    python = Path(os.environ.get("DM_TEST_CLIENTS", REPOSITORY / ".venv-clients")) / "bin" / "python"
    assert python.exists(), f"{python} is missing; run: make clients"
    return python


@pytest.fixture(scope="session")
def drive(client_python, suite):
    """Return a function that runs a client script with only the variables named, and returns the JSON it ends with."""

    def run(script, *words, **variables):
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
        done = subprocess.run(
            [client_python, Path(__file__).with_name(script), *map(str, words)],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        assert done.returncode == 0, f"{script}: {done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


@dataclass(frozen=True)
class Facility:
    """What the facility has in the tests: a run of today, two beamlines, proposals and safety forms of today."""

    run: str
    beamline: str = "25-ID-C"
    other_beamline: str = "02-BM-A"
    title: str = "Silver behenate <b>& friends</b>"


@pytest.fixture(scope="session")
def facility(suite):
    """The suite's facility service, its sample directory filled for the clients."""
    directory = suite.installed.layout.facility
    known = Facility(suite.dm("dm-get-current-run", "--display-keys", "name").strip().removeprefix("name="))
    today = date.today()
    begin, end = f"{today} 00:00:00", f"{today + timedelta(days=2)} 00:00:00"
    people = "recordId,badge,firstName,lastName,email,institution,piFlag"
    first = "111111,First,Example,first@example.org,Institute,Y"
    second = "222222,Second,Example,second@example.org,Institute,N"
    files = {
        "beamlines": ["name", known.beamline, known.other_beamline],
        "proposals": [
            "id,title,run,beamline,startTime,endTime,mailInFlag,proprietaryFlag",
            f'0158394,"{known.title}",{known.run},{known.beamline},{begin},{end},N,Y',
            f"100001,second,{known.run},{known.beamline},{begin},{end},,",
            f"100002,elsewhere,{known.run},{known.other_beamline},{begin},{end},,",
        ],
        "proposal_people": [people, f"158394,{first}", f"158394,{second}", f"100001,{second}", f"100002,{first}"],
        "esafs": [
            "esafId,esafTitle,description,beamlineStation,sector,esafStatus,experimentStartDate,experimentEndDate",
            f'200001,"{known.title}",about silver,{known.beamline},25,Approved,{begin},{end}',
            f"200002,second,,,25,Pending,{begin},{end}",
            f"200003,elsewhere,,{known.other_beamline},2,Approved,{begin},{end}",
        ],
        "esaf_people": [people, f"200001,{first}", f"200001,{second}", f"200002,{second}"],
    }
    for name, lines in files.items():
        (directory / f"{name}.csv").write_text("\n".join(lines) + "\n")
    suite.dm("dm-refresh-facility", "--force", user="dmadmin")
    return known
