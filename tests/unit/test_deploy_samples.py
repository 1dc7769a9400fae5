"""What an administrator copies from etc/ and sbin/ fits what is installed."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from dm.deploy import components
from dm.deploy.config import main as config

TOP = Path(__file__).parents[2]


def test_the_sample_settings_are_those_of_the_models():
    made = CliRunner().invoke(config, ["sample"])
    assert made.exit_code == 0, made.output
    assert (TOP / "etc" / "dm.sample.toml").read_text() == made.output, "run make docs"


def test_there_is_a_control_script_for_every_component_and_side():
    names = {path.name for path in (TOP / "sbin").iterdir()}
    known = [*components.GROUPS["all"], "site", "station"]
    assert names >= {f"dm-{name}" for name in known}
    for name in known:
        text = (TOP / "sbin" / f"dm-{name}").read_text()
        assert f'dm-control" {name} "$@"' in text


@pytest.mark.parametrize(
    "script", sorted([*TOP.glob("sbin/*"), *TOP.glob("etc/*/check_dm"), *TOP.glob("etc/spec/dm-spec")])
)
def test_shell_scripts_parse_and_are_executable(script):
    assert script.stat().st_mode & 0o111
    checked = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_units_and_checks_name_what_exists():
    for unit in TOP.glob("etc/systemd/*.service"):
        for side in re.findall(r"dm-control (\S+) (?:start|stop)", unit.read_text()):
            assert side in components.GROUPS
    ports = re.findall(r"check_dm!(\d+)", (TOP / "etc/nagios/dm.cfg").read_text())
    assert sorted(ports) == ["11236", "22236", "33336", "44436", "55536"]
