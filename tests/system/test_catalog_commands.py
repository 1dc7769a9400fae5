"""The catalog commands as people and scripts call them, on a whole running suite."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.environment import write_login_file
from dm.common.errors import AuthorizationError, InvalidArgument, ObjectAlreadyExists, ObjectNotFound
from dm.deploy.install import ADMINISTRATOR
from dm.station.catalog.api import RunCatApi
from tests.live import Suite

USAGE = 2
_numbers = itertools.count(1)


def records(text: str) -> list[dict[str, Any]]:
    """Read what ``--display-format dict`` printed."""
    return [ast.literal_eval(line) for line in text.splitlines()]


def column(text: str, key: str) -> list[str]:
    """Return the values of one key in ``key=value `` lines."""
    return re.findall(rf"(?:^| ){key}=(\S*) ", text, re.MULTILINE)


@pytest.fixture(scope="module")
def filled(suite: Suite, run_directory: Path) -> str:
    """An experiment with twelve uploaded files, ``scan`` in their metadata, and one file below analysis."""
    name = "catalog-commands"
    suite.dm("dm-add-experiment", "--experiment", name, "--type=TEST")
    source = run_directory / name
    for directory, words in (("data", ["sample:Cu 3"]), ("analysis", ["--use-analysis-directory-as-root"])):
        below = source / directory / "run1"
        below.mkdir(parents=True)
        for n in range(12) if directory == "data" else [99]:
            (below / f"f{n}.dat").write_bytes(b"x" * n)
        suite.dm("dm-upload", "--experiment", name, f"--data-directory={source / directory}", "--wait", *words)
    for n in (5, 7, 9):
        suite.dm("dm-update-experiment-file", "--experiment", name, f"--file=run1/f{n}.dat", "--json", f"scan:{n}")
    return name


@pytest.fixture
def stranger(suite: Suite) -> Iterator[str]:
    """A new user without roles, with a login file."""
    name = f"d{710_000 + next(_numbers)}"
    login = suite.installed.layout.login_file(name)
    suite.dm("dm-add-user", "--username", name, "--password-file=-", user=ADMINISTRATOR, stdin="pass-word-1\n")
    write_login_file(login, name, "pass-word-1")
    yield name
    login.unlink()


@pytest.fixture
def run_of(suite: Suite) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A function that adds a run to an experiment; there is no command for it."""
    api = RunCatApi(
        *suite.manager, suite.environment["DM_CAT_WEB_SERVICE_URL"], ca_file=suite.environment["DM_CA_FILE"]
    )
    yield lambda experiment, run: api.addExperimentRun(run | {"experimentName": experiment}) and None
    api.close()


def test_lists_of_files(suite: Suite, filled: str) -> None:
    listing = suite.dm("dm-list-experiment-files", "--experiment", filled)
    assert suite.dm("dm-get-experiment-files", f"--experiment={filled}") == listing
    lines = listing.splitlines()
    assert len(lines) == 13 and all(line.endswith(" ") for line in lines)
    keys = ["id", "fileName", "experimentFilePath", "fileSize", "md5Sum"]
    assert [word.partition("=")[0] for word in lines[0].split()] == keys
    assert set(column(listing, "experimentFilePath")) == {f"run1/f{n}.dat" for n in [*range(12), 99]}
    some = suite.dm("dm-list-experiment-files", "--experiment", filled, "--skip=3", "--limit", "2")
    assert some.splitlines() == lines[3:5]
    assert suite.dm("dm-list-experiment-files", "--experiment", filled, "--limit=0") == ""


def test_filters_of_files(suite: Suite, filled: str) -> None:
    words = ["dm-list-experiment-files", "--experiment", filled, "--display-keys", "fileName,scan"]
    assert suite.dm(*words, "scan:7") == "fileName=f7.dat scan=7 \n"
    assert suite.dm(*words, "sample:Cu 3", "fileSize:3").startswith("fileName=f3.dat ")
    query = ["--query", '{"scan": {"$gt": 5}, "sample": "Cu 3"}']
    assert sorted(column(suite.dm(*words, *query), "fileName")) == ["f7.dat", "f9.dat"]
    assert column(suite.dm(*words, *query, "fileSize:9"), "scan") == ["9"]
    assert suite.dm(*words, "sample:gold") == ""


def test_one_file(suite: Suite, filled: str) -> None:
    words = ["dm-get-experiment-file", "--experiment", filled]
    (record,) = records(suite.dm(*words, "--file-path", "run1/f5.dat", "--display-format=dict"))
    assert (record["fileName"], record["fileSize"], record["sample"], record["scan"]) == ("f5.dat", 5, "Cu 3", 5)
    assert len(record["md5Sum"]) == 32 and {replica["type"] for replica in record["replicas"]} == {"storage", "source"}
    assert json.loads(suite.dm(*words, "--id", record["id"], "--display-format", "json")) == record
    pretty = suite.dm(*words, f"--id={record['id']}", "-pp")
    assert ast.literal_eval(pretty) == record and pretty.count("\n") > 5
    assert records(suite.dm(*words, "--file=run1/f99.dat", "--display-format=dict"))[0]["root"] == "analysis"
    error = suite.dm(*words, "--file-path=run1/none", status=ObjectNotFound.code)
    assert error.startswith("Error: ") and "run1/none" in error and "does not exist" in error
    assert "--file-path or --id" in suite.dm(*words, status=USAGE)


def test_updates_of_a_file(suite: Suite, filled: str) -> None:
    words = ["dm-update-experiment-file", "--experiment", filled, "--file-path", "run1/f1.dat"]
    text = suite.dm(*words, "note:a:b", "count:7")
    assert "note=a:b " in text and "count=7 " in text
    (record,) = records(suite.dm(*words, "--json", "count:7", "list:[1,null]", "word:plain", "--display-format=dict"))
    assert (record["count"], record["list"], record["word"], record["note"]) == (7, [1, None], "plain", "a:b")
    assert record["fileSize"] == 1
    assert "key:value" in suite.dm(*words, status=USAGE)
    missing = ["dm-update-experiment-file", "--experiment", filled, "--file=none", "a:b"]
    assert "'none'" in suite.dm(*missing, status=ObjectNotFound.code)


def test_statistics(suite: Suite, filled: str) -> None:
    line = suite.dm("dm-get-file-collection-stats", "--experiment", filled)
    assert line.startswith(f"experimentName={filled} countFiles=13 collectionSize=165 averageFileSize=12.69")
    assert "minFileSize=0 maxFileSize=99 stdDevFileSize=" in line and line.endswith(" \n")
    empty = f"{filled}-empty"
    suite.dm("dm-add-experiment", "--experiment", empty, "--type=TEST")
    assert "countFiles=0 collectionSize=0 " in suite.dm("dm-get-file-collection-stats", f"--experiment={empty}")


def test_datasets(suite: Suite, filled: str) -> None:
    words = ["dm-add-dataset", "--experiment", filled]
    added = suite.dm(*words, "--dataset=by-query", "--query", '{"fileSize": {"$lt": 3}}', "quality:good", "n:7")
    assert re.fullmatch(rf"id=\S+ experimentName={filled} datasetName=by-query createTimestamp=\S+ \S+ \S+ \n", added)
    suite.dm(*words, "--dataset", "by-path", "--file-path=run1/f9.dat", "--file-path", "run1/f5.dat", "quality:poor")
    (record,) = records(suite.dm(*words, "--dataset=by-word", "--json", "n:[7]", "-a", "--display-format=dict"))
    assert record["n"] == [7] and record["datasetName"] == "by-word"
    suite.dm("dm-update-experiment-file", "--experiment", filled, "--file=run1/f2.dat", "datasetName:by-word")
    error = suite.dm(*words, "--dataset=by-path", status=ObjectAlreadyExists.code)
    assert error.startswith("Error: ") and "by-path" in error

    listing = ["dm-list-datasets", "--experiment", filled]
    assert column(suite.dm(*listing), "datasetName") == ["by-query", "by-path", "by-word"]
    assert suite.dm(*listing, "quality:good", "n:7") == added
    assert column(suite.dm(*listing, "--skip=1", "--limit=1"), "datasetName") == ["by-path"]
    assert added in suite.dm("dm-list-datasets").splitlines(keepends=True)
    assert suite.dm("dm-list-datasets", f"experimentName:{filled}", "quality:good") == added

    files = ["dm-list-dataset-files", "--experiment", filled, "--display-keys=fileName", "--dataset"]
    assert sorted(suite.dm(*files, "by-query").split()) == ["fileName=f0.dat", "fileName=f1.dat", "fileName=f2.dat"]
    assert sorted(suite.dm(*files, "by-path").split()) == ["fileName=f5.dat", "fileName=f9.dat"]
    assert suite.dm(*files, "by-word") == "fileName=f2.dat \n"
    assert "does not exist" in suite.dm(*files, "none", status=ObjectNotFound.code)


def test_runs(suite: Suite, filled: str, run_of: Callable[[str, dict[str, Any]], None]) -> None:
    for number in (1, 2, 3):
        run_of(filled, {"runId": f"r{number}", "metadata": {"scan": number}, "parity": number % 2})
    words = ["dm-list-runs", "--experiment", filled]
    listing = suite.dm(*words)
    assert column(listing, "runId") == ["r1", "r2", "r3"] and column(listing, "experimentName") == [filled] * 3
    assert column(suite.dm(*words, "parity:1"), "runId") == ["r1", "r3"]
    assert column(suite.dm(*words, "--skip", "1", "--limit=1"), "runId") == ["r2"]
    found = records(suite.dm(*words, "metadata.scan:3", "-a", "--display-format=dict"))
    assert [record["metadata"] for record in found] == [{"scan": 3}]


@pytest.mark.parametrize(
    "words",
    [
        ["dm-list-experiment-files"],
        ["dm-get-experiment-file", "--file-path=a"],
        ["dm-update-experiment-file", "--file-path=a", "b:c"],
        ["dm-get-file-collection-stats"],
        ["dm-add-dataset", "--dataset=a"],
        ["dm-list-datasets"],
        ["dm-list-dataset-files", "--dataset=a"],
        ["dm-list-runs"],
    ],
    ids=lambda words: words[0],
)
def test_an_unknown_experiment(suite: Suite, words: list[str]) -> None:
    error = suite.dm(*words, "--experiment", "nothing", status=ObjectNotFound.code)
    assert error.startswith("Error: Experiment 'nothing'") and "does not exist" in error and error.count("\n") == 1
    if words[0] != "dm-list-datasets":
        assert "--experiment" in suite.dm(*words, status=USAGE)


@pytest.mark.parametrize("query", ["{", "[1]", "7"])
def test_a_query_that_is_none(suite: Suite, filled: str, query: str) -> None:
    assert "--query" in suite.dm("dm-list-experiment-files", "--experiment", filled, "--query", query, status=USAGE)
    assert "--query" in suite.dm(
        "dm-add-dataset", f"--experiment={filled}", "--dataset=q", "--query", query, status=USAGE
    )


def test_queries_run_no_code(suite: Suite, filled: str) -> None:
    words = ["dm-list-experiment-files", "--experiment", filled, "--query", '{"$where": "sleep(1)"}']
    assert "$where" in suite.dm(*words, status=InvalidArgument.code)


def test_strangers(suite: Suite, filled: str, stranger: str) -> None:
    listing = ["dm-list-experiment-files", "--experiment", filled]
    assert "does not exist" in suite.dm(*listing, user=stranger, status=ObjectNotFound.code)
    assert filled not in suite.dm("dm-list-datasets", user=stranger)


@pytest.mark.parametrize("role", ["User", "PI"])
def test_members(suite: Suite, filled: str, stranger: str, role: str) -> None:
    suite.dm("dm-add-user-experiment-role", "--experiment", filled, "--username", stranger, "--role", role)
    assert len(suite.dm("dm-list-experiment-files", "--experiment", filled, user=stranger).splitlines()) == 13
    update = ["dm-update-experiment-file", "--experiment", filled, "--file=run1/f3.dat", "by:member"]
    if role == "PI":
        assert "by=member " in suite.dm(*update, user=stranger)
    else:
        assert stranger in suite.dm(*update, user=stranger, status=AuthorizationError.code)
