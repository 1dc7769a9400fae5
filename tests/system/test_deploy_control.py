"""dm-control and the sbin scripts: LSB exit statuses, seen on the embedded databases."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from dm.common.pidfile import PidFile
from dm.deploy.install import Plan, install

SBIN = Path(__file__).parents[2] / "sbin"


@pytest.fixture(scope="module")
def config(run_directory):
    result = install(Plan(run_directory / "controlled", "8IDI", host="localhost", listen="127.0.0.1", free_ports=True))
    yield result.layout.settings
    control("all", "stop", result.layout.settings)


def control(component, action, config, script="dm-control"):
    words = [SBIN / script, *([component] if script == "dm-control" else []), action, "--config", config]
    return subprocess.run([str(word) for word in words], capture_output=True, check=False, text=True)


@pytest.mark.parametrize("database", ["site-database", "station-database"])
def test_start_status_kill_stop(config, database):
    assert control(database, "status", config).returncode == 3
    assert control(database, "stop", config).returncode == 0
    started = control(database, "start", config, f"dm-{database}")
    assert (started.returncode, started.stderr) == (0, "")
    assert f"{database} is running (pid " in started.stdout
    assert control(database, "start", config).stdout == started.stdout
    running = control(database, "status", config)
    assert (running.returncode, running.stdout) == (0, started.stdout)
    pid = int(started.stdout.split("(pid ")[1].split(")")[0])
    os.kill(pid, signal.SIGKILL)
    dead = control(database, "status", config)
    while dead.returncode == 0:  # the kernel takes a moment
        dead = control(database, "status", config)
    assert dead.returncode == 1
    assert "is dead; its pid file" in dead.stdout
    again = control(database, "restart", config)
    assert again.returncode == 0, again.stderr
    assert f"(pid {pid})" not in again.stdout
    assert control(database, "stop", config).stdout == f"{database} is stopped\n"
    assert control(database, "status", config).returncode == 3


def test_a_pid_taken_over_by_another_process_is_not_ours(config):
    from dm.deploy.components import chosen

    (part,) = chosen("station-database", config)
    part.pid_file.path.parent.mkdir(parents=True, exist_ok=True)
    part.pid_file.path.write_text(f"{os.getpid()}\nother-boot:1\n")
    assert control("station-database", "status", config).returncode == 1
    assert control("station-database", "stop", config).returncode == 0
    assert PidFile(part.pid_file.path).recorded() is None


@pytest.mark.parametrize(
    ("component", "action", "status", "message"),
    [
        ("nonsense", "start", 6, "No component 'nonsense'"),
        ("nonsense", "status", 4, "choose one of"),
        ("storage", "reload", 2, "'reload' is not one of"),
    ],
)
def test_bad_words(config, component, action, status, message):
    done = control(component, action, config)
    assert done.returncode == status
    assert message in done.stderr


def test_bad_settings(tmp_path):
    missing = control("all", "start", tmp_path / "none.toml")
    assert (missing.returncode, missing.stderr.count("\n")) == (6, 1)
    empty = tmp_path / "dm.toml"
    empty.write_text("")
    assert "declares no service" in control("all", "status", empty).stderr
    empty.write_text("[sit]\n")
    assert "did you mean site?" in control("site", "start", empty).stderr
