"""Names that users give files, as they are: from a watched directory to storage, catalog, REST and commands."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.paths import decode, display, encode
from dm.site.storage.api import ExperimentDsApi, FileDsApi
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.catalog.api import FileCatApi
from tests.live import STATION, Suite

EXPERIMENT = "names"
NAMES = [
    b"two words", b"%41", b"#1", b"what?", b"new\nline", b"tab\t", b"carriage\rreturn", b"'single'", b'"double"',
    b"$(id)", b"`id`", b"$HOME", b";ls", b"a&b", b"a|b", b"-rf", b"--help", b"*", b"[x]", b"{a,b}", b"back\\slash",
    b"trailing ", b" leading", b"co:lon", b"a=b", b"=1+1", b"@host", b"~", b"!x", b"b'YQ=='", b"x" * 250, b"y" * 255,
    b"...", b"..a", b"\xff\xfe\x80", b"half\xc3", "e\u0301-NFD".encode(), "\u00e9-NFC".encode(),
    "\U0001f600".encode(), b"\x01\x1f\x7f", "üñï-日本.h5".encode(), b"<img src=x>", b"{{7*7}}", b"%s%n",
    b"NUL.txt", b"+", b"?a=b&c=d", b"a%2Fb", b"CON",
]  # fmt: skip
PATHS = {name + b"/" + name for name in NAMES}


@pytest.fixture(scope="module")
def source(run_directory: Path) -> Iterator[Path]:
    directory = run_directory / "names-source"
    directory.mkdir(mode=0o755)
    yield directory


@pytest.fixture(scope="module")
def environment(suite: Suite) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in suite.environment.items():
            if name.startswith("DM_"):
                patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def daq(suite: Suite, source: Path, environment: None) -> Iterator[str]:
    """A DAQ that has taken a file of every name, each in a directory of the same name."""
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST")
    words = ["--experiment", EXPERIMENT, "--data-directory", source]
    started = suite.dm("dm-start-daq", *words, "--process-hidden-files", "--display-keys=id")
    daq = started.strip().removeprefix("id=")
    for name in NAMES:
        directory = os.path.join(os.fsencode(source), name)
        os.mkdir(directory)
        with open(os.path.join(directory, name), "wb") as file:
            file.write(b"contents of " + name)
    api = ExperimentDaqApi(*suite.manager)
    deadline = time.monotonic() + 90
    while api.countDaqFiles(daq)["done"] < len(NAMES):
        assert time.monotonic() < deadline, [dict(row) for row in api.listDaqFiles(daq) if row["state"] != "done"]
        time.sleep(0.1)
    api.close()
    yield daq
    suite.dm("dm-stop-daq", *words, "--wait")


def test_storage_has_them_byte_for_byte(suite: Suite, daq: str) -> None:
    api, files = ExperimentDsApi(*suite.manager), FileDsApi(*suite.manager)
    root = os.fsencode(api.getExperimentByName(EXPERIMENT, STATION)["dataDirectory"])
    found = {
        os.path.relpath(os.path.join(place, name), root) for place, _below, names in os.walk(root) for name in names
    }
    assert found == PATHS
    for name in NAMES:
        with open(os.path.join(root, name, name), "rb") as file:
            assert file.read() == b"contents of " + name
        record = files.statFile(decode(name + b"/" + name), EXPERIMENT)
        assert encode(record["experimentFilePath"]) == name + b"/" + name and record["readyForProcessing"] is True
    api.close()
    files.close()


def test_the_catalog_and_the_ledger_say_them_over_rest(suite: Suite, daq: str) -> None:
    catalog, daqs = FileCatApi(*suite.manager), ExperimentDaqApi(*suite.manager)
    assert {encode(record["experimentFilePath"]) for record in catalog.getExperimentFiles(EXPERIMENT)} == PATHS
    assert {encode(record["path"]) for record in daqs.listDaqFiles(daq)} == PATHS
    lines = b"".join(daqs.exportDaqFiles(daq, "jsonl")).splitlines()
    assert {encode(json.loads(line)["path"]) for line in lines} == PATHS
    shown = {
        row["path"] for row in csv.DictReader(io.StringIO(b"".join(daqs.exportDaqFiles(daq)).decode(), newline=""))
    }
    assert shown == {("'" if path.startswith((b"=", b"+", b"-", b"@")) else "") + display(path) for path in PATHS}
    for path in PATHS:
        assert encode(daqs.getDaqFile(daq, decode(path))["path"]) == path
        assert encode(catalog.getExperimentFile(EXPERIMENT, decode(path))["experimentFilePath"]) == path
        told = daqs.explainFile(path, daq)
        assert told["reason"] == "done" and encode(told["path"]) == path, told
        assert daqs.waitFile(experimentName=EXPERIMENT, path=path, timeout=30)["reached"] is True
    catalog.close()
    daqs.close()


def test_commands_take_and_print_them(suite: Suite, daq: str) -> None:
    output = suite.dm("dm-list-daq-files", "--id", daq, "--display-format=json")
    assert {encode(json.loads(line)["path"]) for line in output.splitlines()} == PATHS
    output = suite.dm("dm-list-experiment-files", "--experiment", EXPERIMENT, "--display-format=json")
    assert {encode(json.loads(line)["experimentFilePath"]) for line in output.splitlines()} == PATHS
    for name in (b"--help", b"\xff\xfe\x80", b"new\nline", b"b'YQ=='"):
        path = os.fsdecode(name + b"/" + name)
        output = suite.dm("dm-get-daq-file", "--id", daq, f"--path={path}", "--display-format=json")
        assert encode(json.loads(output)["path"]) == name + b"/" + name
        output = suite.dm("dm-stat-file", "--experiment", EXPERIMENT, f"--file={path}", "--display-format=json")
        assert encode(json.loads(output)["experimentFilePath"]) == name + b"/" + name
        output = suite.dm("dm-explain-file", "--experiment", EXPERIMENT, f"--path={path}", "--display-format=json")
        assert json.loads(output)["reason"] == "done"


def test_decisions_find_them(suite: Suite, daq: str) -> None:
    daqs = ExperimentDaqApi(*suite.manager)
    for name in (b"\xff\xfe\x80", b"-rf", b"[x]", b"new\nline", b"b'YQ=='"):
        path = decode(name + b"/" + name)
        assert daqs.reprocessDaqFiles(daq, ["catalog"], path) == {"count": 1}, path
        assert daqs.waitFile(path, daq, timeout=60)["reached"] is True
        assert [event["event"] for event in daqs.getDaqFile(daq, path)["history"]] == ["reprocessed"]
    daqs.close()
