"""dm-quickstart as a user runs it: green, on the default files and on a folder; red when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

QUICKSTART = Path(sys.executable).parent / "dm-quickstart"


def quickstart(*words, **extra):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DM_")}
    return subprocess.run(
        [QUICKSTART, *map(str, words)],
        capture_output=True,
        check=False,
        text=True,
        env={**environment, "COLUMNS": "200"},
        **extra,
    )


def test_green_on_a_folder_and_stopped_again(tmp_path, open_directory):
    data = tmp_path / "data"
    (data / "a b" / "ü").mkdir(parents=True)
    with h5py.File(data / "a b" / "ü" / "x; $y.h5", "w") as file:
        file["entry/data"] = np.arange(400.0).reshape(20, 20)
        file["entry"].attrs["NX_class"] = "NXentry"
        file["entry/title"] = "a title"
        file["entry/definition"] = "NXraw"
    (data / "README.md").write_text("# text\n")
    root = open_directory / "dm"
    done = quickstart("--data", data, "--root", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything is as claimed" in done.stdout
    assert "WRONG" not in done.stdout
    (picture,) = root.glob("storage/**/pictures/**/*.png")
    assert picture.name == "x; $y.h5.png"
    status = subprocess.run(
        [root / "bin" / "dm-control", "all", "status", "--config", root / "etc" / "dm.toml"], check=False
    )
    assert status.returncode == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--data", "/no/such/folder"], "is not a directory"), (["--root", "/a b"], "cannot hold an installation")],
)
def test_bad_input_is_red(words, message):
    done = quickstart(*words)
    assert done.returncode == 1
    assert message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_an_empty_folder_is_red(tmp_path, open_directory):
    done = quickstart("--data", tmp_path, "--root", open_directory / "dm")
    assert done.returncode == 1
    assert "holds no files" in done.stdout
