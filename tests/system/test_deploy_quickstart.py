"""dm-quickstart as a user runs it: green, on the default files and on a folder; red when something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

QUICKSTART = Path(sys.executable).parent / "dm-quickstart"
ETC = Path(__file__).parents[2] / "etc"
SERVE = QUICKSTART.with_name("dm-serve")


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


def running(root):
    found = []
    for process in psutil.process_iter():
        try:
            if str(root) in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_interrupted_it_stops_what_it_started(open_directory):
    root = open_directory / "dm"
    with subprocess.Popen(
        [QUICKSTART, "--root", root], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if "start services" in line:
                break
        assert len(running(root)) >= 6
        process.send_signal(signal.SIGTERM)
        output = process.stdout.read()
    assert process.returncode == 1, output
    assert "Interrupted." in output
    assert "Traceback" not in output
    assert running(root) == []


def sh(root, script):
    return subprocess.run(
        ["bash", "-ec", f". {root}/etc/dm.setup.sh\n{script}"], capture_output=True, text=True, check=False, cwd="/"
    )


def test_serve_stays_up_for_commands_curl_and_nagios_and_stops_on_interrupt(open_directory):
    root = open_directory / "dm"
    with subprocess.Popen(
        [SERVE, "--root", root], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said = ""
            for line in process.stdout:  # to its end, if it fails
                said += line
                if line.startswith("Ctrl-C"):
                    break
            urls = re.findall(r"https://localhost:\d+", said)
            assert len(urls) == 5, said
            for url in urls:
                checked = sh(root, f"{ETC}/nagios/check_dm {url} $DM_CA_FILE")
                assert (checked.returncode, checked.stdout) == (0, f"OK - {url}\n")
            watched = open_directory / "scan 1"
            watched.mkdir()
            added = sh(root, "dm-add-experiment --experiment exp1 --type TEST; dm-list-experiments")
            assert added.returncode == 0, added.stderr
            assert "name=exp1" in added.stdout
            started = sh(root, f"{ETC}/spec/dm-spec start-daq exp1 '{watched}'")
            assert started.returncode == 0, started.stderr
            stopped = sh(root, f"{ETC}/spec/dm-spec stop-daq exp1 '{watched}'")
            assert stopped.returncode == 0, stopped.stderr
            assert json.loads(stopped.stdout)["id"] == json.loads(started.stdout)["id"]
            refused = sh(root, f"{ETC}/spec/dm-spec start-daq nosuch '{watched}'")
            assert refused.returncode != 0
            assert "Experiment 'nosuch' at station '25IDC' does not exist." in refused.stderr
            assert sh(root, f"{ETC}/spec/dm-spec job nobody nothing /x").returncode != 0
        finally:
            process.send_signal(signal.SIGINT)
            process.stdout.read()
    assert process.returncode == 0
    assert running(root) == []
    down = sh(root, f"{ETC}/nagios/check_dm {urls[0]} $DM_CA_FILE")
    assert down.returncode == 2


def test_serve_stops_everything_when_its_terminal_is_closed(open_directory):
    root = open_directory / "dm"
    with subprocess.Popen(
        [SERVE, "--root", root], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
        assert len(running(root)) >= 6
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert running(root) == []


def test_names_no_terminal_could_show_are_shown_escaped(tmp_path, open_directory):
    data = tmp_path / "data"
    data.mkdir()
    (data / os.fsdecode(b"[bold]\xff\x1b.txt")).write_text("text")
    done = quickstart("--data", data, "--root", open_directory / "dm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert r"[bold]\udcff\x1b.txt" in done.stdout
