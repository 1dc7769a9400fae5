"""The installer: everything is there, modes fit, a second run changes nothing, other accounts can run the commands."""

import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dm.common.environment import read_login_file
from dm.common.errors import DmException
from dm.common.setupfile import read_setup
from dm.deploy import runtime
from dm.deploy.install import Plan, install
from dm.deploy.layout import Layout


@pytest.fixture(scope="module")
def installed(run_directory):
    root = run_directory / "installed"
    result = install(Plan(root, "25IDC", host="localhost", listen="127.0.0.1", free_ports=True))
    return result


def snapshot(root):
    found = {}
    for path in sorted(root.rglob("*")):
        if "postgres" in path.parts or path.is_symlink():
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and status.st_size < 1 << 16 else status.st_size
        found[str(path)] = (stat.filemode(status.st_mode), status.st_uid, content)
    return found


def test_a_second_run_finds_everything_there(installed):
    before = snapshot(installed.layout.root)
    assert installed.done
    again = install(installed.plan)
    assert again.done == []
    assert snapshot(installed.layout.root) == before
    assert not list(installed.layout.site_database.glob("postgres.pid"))


def test_secrets_are_private_and_random(installed):
    layout = installed.layout
    passwords = set()
    for file in layout.etc.glob(".*.system.login"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        username, password = read_login_file(file)
        assert file.name == f".{username}.system.login"
        assert len(password) >= 24
        passwords.add(password)
    assert len(passwords) == 3
    for key in layout.certificates.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    text = layout.settings.read_text() + layout.setup.read_text()
    assert not any(password in text for password in passwords)


def test_settings_fit_the_models(installed):
    done = subprocess.run(
        [installed.layout.bin / "dm-config", "check", "--config", installed.layout.settings],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_setup_file_is_what_its_three_text_readers_expect(installed):
    layout = installed.layout
    lines = [line for line in layout.setup.read_text().splitlines() if line.startswith("export ")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"export [A-Z_]+=[^\s'\"$=]+", line), line
    variables = read_setup(layout.setup)
    ports = {
        name: section["port"]
        for name, section in tomllib.loads(layout.settings.read_text()).items()
        if "port" in section
    }
    assert variables["DM_STATION_NAME"] == "25IDC"
    assert variables["DM_DS_WEB_SERVICE_URL"] == f"https://localhost:{ports['storage']}"
    assert variables["DM_DAQ_WEB_SERVICE_URL"] == f"https://localhost:{ports['acquisition']}"
    assert read_login_file(variables["DM_LOGIN_FILE"])[0] == "user25idc"
    shown = subprocess.run(
        ["sh", "-c", f". {layout.setup}; command -v dm-control; echo $DM_STATION_NAME; cat $DM_CA_FILE | head -1"],
        capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=True,
    ).stdout.split("\n")  # fmt: skip
    assert shown[:3] == [str(layout.bin / "dm-control"), "25IDC", "-----BEGIN CERTIFICATE-----"]


def test_every_command_has_a_wrapper_and_the_stage_account_can_run_it(installed):
    layout = installed.layout
    assert {path.name for path in layout.bin.iterdir()} == set(runtime.commands())
    as_stage = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [layout.bin / "dm-demo-process", "--help"], capture_output=True, check=False, text=True, cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        **as_stage,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "picture" in done.stdout


def test_the_private_interpreter_copies_packages_its_account_cannot_reach(installed, open_directory, monkeypatch):
    if os.geteuid() != 0:
        assert not (installed.layout.root / "python").exists()
        return
    user = runtime.account("nobody")
    monkeypatch.setattr(runtime, "reachable", lambda *_arguments: False)
    packages = open_directory / "packages"
    packages.mkdir(mode=0o700)
    (packages / "private.py").write_text("x = 1\n")
    (packages / "private.py").chmod(0o600)
    monkeypatch.setattr(runtime, "_site_packages", lambda: packages)
    assert runtime.prepare(open_directory / "python", user) is True
    assert runtime.prepare(open_directory / "python", user) is False
    python = runtime._python(open_directory / "python")
    done = subprocess.run(
        [python, "-P", "-c", "import dm.common.errors, private; print(dm.__file__)"],
        capture_output=True, check=False, text=True, cwd="/",
        env={"LD_LIBRARY_PATH": str(open_directory / "python" / "lib")},
        user="nobody", group="nogroup", extra_groups=[],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(open_directory) in done.stdout
    assert stat.S_IMODE((packages / "private.py").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/no blanks/here", "--station", "25IDC"], "cannot hold an installation"),
        (["--root", "ROOT", "--station", "25IDC", "--stage-account", "no-such-account"], "does not exist"),
        (["--root", "ROOT", "--station", "25IDC", "--stage-account", "root"], "never run as root"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, message):
    if "--stage-account" in arguments and os.geteuid() != 0:
        arguments = [*arguments[:4], "--root", "/a b"]
        message = "cannot hold an installation"
    given = [str(tmp_path / "new") if word == "ROOT" else word for word in arguments]
    done = subprocess.run(
        [Path(sys.executable).parent / "dm-install", *given],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_layout_refuses_what_a_setup_file_cannot_carry():
    assert Layout.at("/opt/dm").settings.name == "dm.toml"


def test_a_bad_station_name_makes_nothing(run_directory):
    root = run_directory / "never"
    with pytest.raises(DmException, match="Station name"):
        install(Plan(root, "25 IDC;", free_ports=True))
    assert not root.exists()


def test_an_installation_of_before_gets_the_facility_service(installed):
    layout, text = installed.layout, installed.layout.settings.read_text()
    setup = layout.setup.read_text()
    before = tomllib.loads(text)
    start, end = text.index("[facility]"), text.index("[station]")
    try:
        layout.settings.write_text(text[:start] + text[end:])
        again = install(installed.plan)
        assert f"section [facility] in {layout.settings}" in again.done
        found = tomllib.loads(layout.settings.read_text())
        port = found["facility"].pop("port")
        assert port != before["facility"].pop("port") and found == before
        assert read_setup(layout.setup)["DM_APS_DB_WEB_SERVICE_URL"] == f"https://localhost:{port}"
    finally:
        layout.settings.write_text(text)
        layout.setup.write_text(setup)


def test_adapters_are_checked_with_the_settings(installed, tmp_path):
    text = installed.layout.settings.read_text()
    bad = tmp_path / "dm.toml"
    bad.write_text(text.replace('adapter = "csv"', 'adapter = "cvs"'))
    done = subprocess.run(
        [installed.layout.bin / "dm-config", "check", "--config", bad], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "Did you mean 'csv'?" in done.stderr
