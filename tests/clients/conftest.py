"""One suite for the published clients, and their own interpreter."""

import json
import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def client_python():
    """The interpreter of the environment that ``make clients`` builds: dmax and apstools from PyPI beside DM."""
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
