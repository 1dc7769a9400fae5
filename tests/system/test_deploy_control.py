"""dm-control and the sbin scripts: LSB exit statuses, seen on the embedded databases."""

import os
import re
import signal
import socket
import subprocess
import time
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


def test_services_come_up_answer_are_found_again_and_stop(config):
    started = control("all", "start", config)
    assert started.returncode == 0, started.stderr
    assert len(started.stdout.splitlines()) == 7
    again = control("all", "start", config)
    assert (again.returncode, again.stdout) == (0, started.stdout)
    status = control("station", "status", config, "dm-station")
    assert status.returncode == 0
    for name in ("catalog", "processing", "acquisition"):
        assert re.search(rf"^{name} is running \(pid \d+\), ok$", status.stdout, re.MULTILINE), status.stdout
    pids = dict(re.findall(r"^(\S+) is running \(pid (\d+)\)", started.stdout, re.MULTILINE))
    os.kill(int(pids["catalog"]), signal.SIGKILL)
    while PidFile(config.parents[1] / "var" / "run" / "catalog.pid").alive() is not None:
        pass
    assert control("catalog", "status", config).returncode == 1
    assert control("station", "status", config).returncode == 1
    with subprocess.Popen(["sleep", "1"]) as dying:  # what was killed is seen a moment longer
        PidFile(config.parents[1] / "var" / "run" / "catalog.pid").write(dying.pid)
        assert control("station", "start", config).returncode == 0
    restarted = control("storage", "restart", config, "dm-storage")
    assert restarted.returncode == 0, restarted.stderr
    assert f"(pid {pids['storage']})" not in restarted.stdout
    begun = time.monotonic()
    assert control("all", "stop", config).returncode == 0
    assert time.monotonic() - begun < 60
    assert control("all", "stop", config).returncode == 0
    assert control("site", "status", config, "dm-site").returncode == 3


def test_a_port_that_is_taken_is_said_with_the_services_own_words(config):
    assert control("site-database", "start", config).returncode == 0
    try:
        with socket.socket() as other:
            port = int(re.search(r"\[storage\].*?port = (\d+)", config.read_text(), re.DOTALL)[1])
            other.bind(("127.0.0.1", port))
            other.listen()
            done = control("storage", "start", config)
        assert done.returncode == 1
        assert re.search(rf"storage ended while starting: .*{port}", done.stderr), done.stderr
        assert control("storage", "status", config).returncode == 3
    finally:
        control("site-database", "stop", config)


def test_settings_that_cannot_be_used_are_said_when_starting(config, tmp_path):
    spoiled = tmp_path / "dm.toml"
    spoiled.write_text(config.read_text().replace("[catalog]\n", "[catalog]\nthreds = 7\n"))
    done = control("catalog", "start", spoiled)
    assert done.returncode == 1
    assert "did you mean threads?" in done.stderr
    assert done.stderr.count("\n") == 1


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
