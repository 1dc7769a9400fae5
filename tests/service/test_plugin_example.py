"""The example plugin package, installed by pip into an environment of its own, and a DAQ that runs with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.acquisition_fixtures import Site

EXAMPLE = Path(__file__).parents[2] / "examples" / "dm-plugin-example"

#: What runs in that environment: the acquisition service's inside, with the plugin that its settings name.
PROGRAM = """
import json, sys
from pathlib import Path
from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.plugins.base import PluginContext
from dm.common.errors import InvalidArgument
from tests.service.acquisition_fixtures import *

site, database, source, books = Site(**{**json.loads(sys.argv[1]), "settings": None}), *sys.argv[2:]
site.directory, site.certificates = Path(site.directory), Path(site.certificates)
tables = {"logbook": {"directory": books, "refuse": [".bak"]}}
plugins = make_plugins(tables, PluginContext(STATION, *SERVICE))
with running_office(site, database, plugins) as office:
    try:
        office.start("daq", PRINCIPAL, "example", source, {"logbookPage": "seven"})
    except InvalidArgument as error:
        print(error.message)
    daq = office.start("daq", PRINCIPAL, "example", source, {"processExistingFiles": True, "logbookPage": 7})
    until(lambda: office.info("daq", daq["id"])["nProcessedFiles"] == 4)
    office.stop("daq", daq["id"], abort=False)
    record = finish(office, "daq", daq["id"])
    rows = office.store.page(daq["id"], 0, 100)
    told = {row["path"]: [row["slot"].rpartition(":")[2], row["lastError"]] for row in rows}
    print(json.dumps([record["status"], told]))
for client in site.clients:
    client.close()
"""


@pytest.fixture(scope="module")
def python(run_directory: Path) -> Path:
    """The interpreter of a fresh environment into which pip has installed the example, and only that."""
    home = run_directory / "plugin-venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    # DM and what it needs come from the environment of the tests: nothing is fetched
    [packages] = home.glob("lib/python*/site-packages")
    ours = sysconfig.get_path("purelib")
    (packages / "tests.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    package = run_directory / "dm-plugin-example"  # building writes beside the sources
    shutil.copytree(EXAMPLE, package, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run([*pip, *options, str(package)], capture_output=True, text=True, check=False, env=clean())
    assert done.returncode == 0, done.stderr
    return python


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}


def test_a_daq_runs_with_it(python: Path, site: Site, new_mongo_database: Callable[[], str], tmp_path: Path) -> None:
    source, books = tmp_path / "source", tmp_path / "books"
    books.mkdir()
    (source / "sub").mkdir(parents=True)
    for name in (b"a.h5", "sub/üñï.h5".encode(), b"b\xff.h5", b"old.bak"):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(name)
    site.experiment("example")
    told = json.dumps({"directory": str(site.directory), "certificates": str(site.certificates), "port": site.port})
    program = subprocess.run(
        [python, "-W", "error", "-c", PROGRAM, told, new_mongo_database(), str(source), str(books)],
        capture_output=True,
        text=True,
        cwd=EXAMPLE.parents[1],
        env=clean(),
        timeout=100,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    refused, outcome = program.stdout.splitlines()
    assert refused == "logbookPage = 'seven' is not a number."
    status, rows = json.loads(outcome)
    assert status == "failed"  # a required plugin refused a file
    assert {path: state for path, (state, _error) in rows.items()} == {
        "a.h5": "done",
        "sub/üñï.h5": "done",
        "b\\xff.h5": "done",
        "old.bak": "failed",
    }
    assert rows["old.bak"][1] == "Plugin logbook: File 'old.bak' must not be here; correct the detector's settings."
    lines = [json.loads(line) for line in (books / "example.jsonl").read_text().splitlines()]
    assert {os.fsencode(line["path"]) for line in lines} == {b"a.h5", "sub/üñï.h5".encode(), b"b\xff.h5"}
    assert {line["station"] for line in lines} == {"25IDC"}


def test_its_own_test_passes(python: Path) -> None:
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests")],
        capture_output=True,
        text=True,
        check=False,
        env=clean(),
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
