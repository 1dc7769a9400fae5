"""A workflow as production ones are written: eight stages, joined strings, conditions, scripts, unset arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing

SCRIPTS = {
    # Says where to reconstruct; the answer has the name of the argument and overrides it.
    "machine.sh": r"""
        . "$1"
        machine=${2:-$DEFAULT_MACHINE}
        echo "Log: machine chosen at `date`"
        echo "Reconstruction Machine: $machine"
    """,
    # Makes an argument string of many optional arguments.
    "arguments.sh": r"""
        echo "given: $#"
        raw=$2
        dir=/gdata/$1
        args="--raw $dir/$raw --dark $dir/${3:-dark.h5}"
        args="$args --algorithm ${4:-gridrec}"
        args="$args --center ${5:--1} --first ${6:-1} --last ${7:--1} --step ${8:-1} --bin ${9:-1}"
        args="$args --rows \\\"${10:-all}\\\""
        args="$args --filter ${11:-parzen}"
        if [ "${12:-True}" != "False" ]; then args="$args -v"; fi
        if [ "${13:-False}" != "False" ]; then args="$args --save"; fi
        if [ "${14:-False}" != "False" ]; then args="$args --overwrite"; fi
        echo "Metadata File: $dir/${raw%.*}.hdf"
        echo "Recon Arguments: $args"
        if [ -n "${15}" ]; then echo "Result File: ${15}/${raw%.*}_rec.h5"; fi
    """,
    # Does as ssh does: a second shell reads the words behind the host.
    "ssh": 'host=$1; shift; echo "On: $host"; exec /bin/sh -c "$*"',
    "recon.sh": 'for word in "$@"; do echo "<$word>"; done',
    "group.sh": '. "$1"; echo "Group: $GROUP_PREFIX-$2"',
    "submit.sh": 'shift; n=$#; echo "Words: $n"; echo "Job ID: 77"; echo "URL: https://cluster.example/jobs/77"; '
    'echo "Status: QUEUED"; echo 0 > "$STATE"',
    "state.sh": 'n=$(cat "$1"); n=$((n + 1)); echo $n > "$1"; if [ $n -lt 3 ]; then echo "Status: ACTIVE"; '
    'else echo "Status: SUCCEEDED"; fi',
    "permissions.sh": 'echo "set $# $1 <${2:-nothing}>"',
}
SPEC = r"""
## dm-upsert-workflow --py-spec recon-01.py
##
## dm-start-processing-job --workflow-name recon-01 filePath:scan_007.h5 experimentName:... machine:cluster

DIR = '@DIR@'
SETUP = DIR + '/workflow.setup.sh '

{
    'name': 'recon-01',
    'owner': '@OWNER@',
    'userAccount': '@OWNER@',   # the account of the beamline
    'stages': {
        '01-MACHINE' : {
            'command': 'sh ' + DIR + '/machine.sh ' + \
                       SETUP + \
                       '\"$machine\"',
            'outputVariableRegexList' : [
                'Reconstruction Machine: (?P<machine>.*)',
            ]
        },
        '02-ARGUMENTS' : {
            'command': 'sh ' + DIR + '/arguments.sh ' + \
                '\"$sample\" ' + \
                '\"$filePath\" ' + \
                '\"$dark\" ' + \
                '\"$algorithm\" ' + \
                '\"$center\" ' + \
                '\"$firstProjection\" ' + \
                '\"$lastProjection\" ' + \
                '\"$stepProjection\" ' + \
                '\"$binning\" ' + \
                '\"$rows\" ' + \
                '\"$filter\" ' + \
                '\"$verbose\" ' + \
                '\"$save\" ' + \
                '\"$overwrite\" ' + \
                '\"$outputDir\" ',
            'outputVariableRegexList' : [
                'Metadata File: (?P<metadata>.*)',
                'Result File: (?P<resultFile>.*)',
                'Recon Arguments: (?P<reconArgs>.*)',
            ]
        },
        '03-LOCAL' : {
            'runIf': '\"$machine\" != \"cluster\"',
            'command': DIR + '/ssh $machine \"' + DIR + '/recon.sh $reconArgs\"'
        },
        '04-GROUP' : {
            'runIf': '\"$machine\" == \"cluster\"',
            'command': 'sh ' + DIR + '/group.sh ' + SETUP + '\"$sample\"',
            'outputVariableRegexList' : ['Group: (?P<group>.*)']
        },
        '05-CLUSTER' : {
            'runIf': '\"$machine\" == \"cluster\" and \"$group\" != \"\"',
            'command': 'STATE=' + DIR + '/state.$id sh ' + DIR + '/submit.sh ' + SETUP + \
                       '$group $metadata $reconArgs; ' \
                       'chmod a+rw ' + DIR + '/state.$id',
            'outputVariableRegexList' : [
                'Job ID: (?P<clusterJob>.*)',
                'URL: (?P<url>.*)',
                'Status: (?P<clusterStatus>.*)'
            ]
        },
        '06-MONITOR' : {
            'runIf': '\"$machine\" == \"cluster\"',
            'command': 'sh ' + DIR + '/state.sh ' + DIR + '/state.$id',
            'repeatPeriod': 0.05,
            'repeatUntil': '\"$clusterStatus\" == \"SUCCEEDED\" or \"$clusterStatus\" == \"FAILED\"',
            'maxRepeats': 999999,
            'outputVariableRegexList' : ['Status: (?P<clusterStatus>.*)']
        },
        '07-PERMISSIONS' : {
            'command': 'sh ' + DIR + '/permissions.sh ' + \
                '\"$sample\" $resultFile',
        },
        '08-DONE' : {
            'command': '/bin/echo Job done.'
        },
    },
    'description': 'Reconstructs one scan.\n' + \
        'Keyword Arguments:\n' + \
        '\tfilePath - Name of the raw file.\n' + \
        '\trows (optional) - rows, eg. \'1, 2, 5-7\'. default: all\n'
}
"""


@pytest.fixture(scope="module")
def service(
    postgres_url: str, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with (
        storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site,
        running_processing(site, mongo_url, certificates, tmp_path_factory.mktemp("processing")) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def loaded(service: Running, run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """The service with the workflow, brought there by the command, and its helper scripts."""
    open_directory, tmp_path = run_directory / "production", tmp_path_factory.mktemp("spec")
    open_directory.mkdir()
    open_directory.chmod(0o777)
    for name, text in SCRIPTS.items():
        lines = [line.strip() for line in text.strip().splitlines()]
        (open_directory / name).write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
        (open_directory / name).chmod(0o755)
    (open_directory / "workflow.setup.sh").write_text("DEFAULT_MACHINE=tomo1\nGROUP_PREFIX=dm\n")
    spec = tmp_path / "recon-01.py"
    spec.write_text(SPEC.replace("@DIR@", str(open_directory)).replace("@OWNER@", OWNER))
    login = tmp_path / "login"
    login.write_text(f"{OWNER}|{storage.password_of(OWNER)}\n")
    login.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DM_")}
    environment |= {
        "DM_HOME": str(tmp_path / "dm"),
        "DM_LOGIN_FILE": str(login),
        "DM_CA_FILE": str(service.site.ca_file),
        "DM_PROC_WEB_SERVICE_URL": service.url,
    }
    for command in ("check", "upsert"):
        module = f"dm.station.processing.commands.{command}_workflow"
        subprocess.run(
            [sys.executable, "-c", f"from {module} import main; main()", f"--py-spec={spec}"],
            env=environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
    return service


def outputs(job: Any) -> dict[str, list[str]]:
    stages = job["workflow"]["stages"]
    return {name: [child["stdOut"] for child in stages[name]["childProcesses"].values()] for name in stages}


def test_it_runs_with_hardly_any_argument(loaded: Running) -> None:
    job = loaded.finished(loaded.start("recon-01", filePath="scan_007.h5", sample="s1"))
    assert job["status"] == "done", job
    printed = outputs(job)
    assert printed["02-ARGUMENTS"][0].startswith("given: 15\n"), "unset ones arrive as empty words"
    assert job["machine"] == "tomo1" and job["metadata"] == "/gdata/s1/scan_007.hdf"
    assert "resultFile" not in job and printed["07-PERMISSIONS"] == ["set 1 s1 <nothing>\n"]
    assert printed["03-LOCAL"][0].splitlines()[:2] == ["On: tomo1", "<--raw>"]
    assert "<--rows>\n<all>\n<--filter>\n<parzen>\n<-v>\n" in printed["03-LOCAL"][0]
    stages = job["workflow"]["stages"]
    assert [name for name in stages if stages[name]["status"] == "skipped"] == ["04-GROUP", "05-CLUSTER", "06-MONITOR"]
    assert all(not stages[name]["childProcesses"] for name in ("04-GROUP", "05-CLUSTER", "06-MONITOR"))
    command = stages["03-LOCAL"]["childProcesses"]["2"]["command"]
    assert "/ssh tomo1 " in command and r'--rows \"all\" --filter parzen -v"' in command


def test_words_in_quotes_arrive_as_one(loaded: Running) -> None:
    given = {"filePath": "scan_007.h5", "sample": "s1", "rows": "1, 2, 5-7", "verbose": "False", "center": 512.5}
    job = loaded.finished(loaded.start("recon-01", **given, outputDir="/gdata/rec"))
    assert job["status"] == "done", job
    assert "<--center>\n<512.5>\n" in outputs(job)["03-LOCAL"][0]
    assert outputs(job)["03-LOCAL"][0].endswith("<--rows>\n<1, 2, 5-7>\n<--filter>\n<parzen>\n")
    assert job["resultFile"] == "/gdata/rec/scan_007_rec.h5"
    assert outputs(job)["07-PERMISSIONS"] == ["set 2 s1 </gdata/rec/scan_007_rec.h5>\n"]


def test_the_other_branch_is_taken_by_an_argument(loaded: Running) -> None:
    job = loaded.finished(loaded.start("recon-01", filePath="scan_007.h5", sample="s1", machine="cluster"))
    assert job["status"] == "done", job
    stages, printed = job["workflow"]["stages"], outputs(job)
    assert stages["03-LOCAL"]["status"] == "skipped" and stages["03-LOCAL"]["childProcesses"] == {}
    assert (job["group"], job["clusterJob"], job["url"]) == ("dm-s1", "77", "https://cluster.example/jobs/77")
    words = ["dm-s1", job["metadata"], *job["reconArgs"].split()]
    assert printed["05-CLUSTER"][0].startswith(f"Words: {len(words)}\n")
    assert printed["06-MONITOR"] == ["Status: ACTIVE\n", "Status: ACTIVE\n", "Status: SUCCEEDED\n"]
    numbers = [int(number) for stage in stages.values() for number in stage["childProcesses"]]
    assert numbers == list(range(len(numbers))), "numbers run on through stages and repeats"
    assert job["clusterStatus"] == "SUCCEEDED" and job["stage"] == "08-DONE"


def test_many_files_go_through_it_one_by_one(loaded: Running) -> None:
    files = [f"scan_{number:03d}.h5" for number in range(5)]
    job = loaded.finished(loaded.start("recon-01", filePathList=files, filePath="", sample="s1"))
    assert (job["status"], job["countFiles"]) == ("done", 5)
    for file, text in zip(files, outputs(job)["02-ARGUMENTS"], strict=True):
        assert f"/{file.removesuffix('.h5')}.hdf" in text
    assert len(outputs(job)["08-DONE"]) == 5
