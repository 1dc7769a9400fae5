"""The command base as a process: interruption, closed pipes, odd bytes, completion; and the setup file."""

import os
import pty
import select
import signal
import subprocess
import sys

import pytest

from dm.common import setupfile
from dm.common.errors import ConfigurationError

PROGRAM = """#!{python}
import sys, time
from dm.common.command import command, option, progress

class Api:
    def __init__(self, username, **options):
        self.username, self.credentials = username, options["credentials"]
    def close(self):
        pass

@command("dm-list-things", api="__main__:Api")
@option("--owner", help="Owner.")
@option("--count", type=int, default=1)
def main(api, owner, count):
    '''List.'''
    if owner == "ask":
        return "|".join(api.credentials() + api.credentials())
    if owner == "progress":
        with progress("Moving things", 7) as update:
            for number in range(8):
                update(number)
    if owner == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    return ({{"id": number, "name": "\\udcff"}} for number in range(count))

main()
"""


@pytest.fixture(scope="module")
def bin_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bin")
    program = directory / "dm-list-things"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return directory


@pytest.fixture
def program(bin_directory):
    return str(bin_directory / "dm-list-things")


def test_interruption_is_quiet(program):
    with subprocess.Popen([program, "--owner=wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == b""


def test_a_reader_that_goes_away_is_no_error(program):
    with subprocess.Popen(
        [program, "--count=200000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout.read(5) == b"id=0 "
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("environment", [{}, {"LANG": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "C.UTF-8"}])
def test_undecodable_names_come_out_as_their_bytes(program, environment):
    variables = {"PATH": os.environ["PATH"], "DM_HOME": os.environ.get("DM_HOME", "")} | environment
    done = subprocess.run([program], env=variables, capture_output=True, check=True)
    assert done.stdout == b"id=0 name=\xff \n"


def on_terminal(program, *arguments, typed=b"", **variables):
    """Run on a pseudo terminal, typing at the first prompt; return status, output and what the terminal showed."""
    controller, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DM_")} | variables
    shown = b""
    with subprocess.Popen(
        [program, *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=environment,
        start_new_session=True,  # passwords are read from a controlling terminal where there is one
    ) as process:
        try:
            os.close(terminal)
            while select.select([controller], [], [], 30)[0]:
                try:
                    shown += os.read(controller, 65536)
                except OSError:  # how a pseudo terminal ends
                    break
                if typed and b": " in shown:
                    os.write(controller, typed)
                    typed = b""
            output = process.stdout.read() if process.wait(30) is not None else b""
        finally:
            process.kill()
            os.close(controller)
    return process.returncode, os.fsdecode(output), os.fsdecode(shown)


def test_the_password_is_asked_for_once_and_not_shown(program):
    status, output, shown = on_terminal(program, "--owner=ask", typed=b"s3cret\n", DM_USERNAME="d123456")
    assert (status, output) == (0, "d123456|s3cret|d123456|s3cret\n")
    assert shown.count("Password of d123456:") == 1


def test_without_a_terminal_no_password_is_asked_for(program):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DM_")}
    done = subprocess.run(
        [program, "--owner=ask"], env=environment | {"DM_USERNAME": "d123456"}, capture_output=True, check=False,
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert done.returncode == 6
    assert "DM_LOGIN_FILE" in done.stderr


def test_progress_is_shown_on_a_terminal_only(program):
    status, output, shown = on_terminal(program, "--owner=progress", TERM="xterm")
    assert status == 0
    assert output == "id=0 name=\udcff \n"
    assert "Moving things" in shown


def bash(script, **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_click_s_own_completion_works(program):
    done = subprocess.run(
        [program], env=os.environ | {"_DM_LIST_THINGS_COMPLETE": "bash_source"}, capture_output=True, check=True
    )
    assert b"complete -o nosort -F" in done.stdout


def test_the_common_completion_file(bin_directory, tmp_path):
    setup = tmp_path / "dm.setup.sh"
    setupfile.write_setup(setup, {"DM_STATION_NAME": "25IDC"}, [bin_directory], ["dm-list-things"])
    script = f"""
        . {setup}
        COMP_WORDS=(dm-list-things --o); COMP_CWORD=1
        _dm_complete dm-list-things --o dm-list-things
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert bash(script) == ["--owner"]
    with pytest.raises(ConfigurationError):
        setupfile.completion_script(["dm-x; rm"])


# --- setup file ----------------------------------------------------------------------------------------------


def as_text_readers_do(text):
    """Read like the published clients: export lines only, the last blank-separated token, split at '='."""
    found = {}
    for line in text.splitlines():
        if line.startswith("export "):
            name, value = line.strip().split()[-1].split("=")
            found[name] = value
    return found


VARIABLES = {
    "DM_STATION_NAME": "25IDC",
    "DM_DS_WEB_SERVICE_URL": "https://localhost:22236",
    "DM_ALLOWED_EXPERIMENT_TYPES": "2BM,TEST",
    "DM_LOGIN_FILE": "/home/dm/etc/.s25idcuser.system.login",
    "DM_CA_FILE": None,
}


def test_shells_and_text_readers_see_the_same(tmp_path):
    text = setupfile.setup_text(VARIABLES, ["/opt/dm/bin", "/opt/dm/sbin"])
    expected = {name: value for name, value in VARIABLES.items() if value}
    assert as_text_readers_do(text) == expected
    path = tmp_path / "dm.setup.sh"
    path.write_text(text)
    assert setupfile.read_setup(path) == expected
    for shell in ("sh", "bash"):
        command = [shell, "-eu", "-c", f". {path}; . {path}; env"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
        assert done.stderr == ""
        seen = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        assert expected.items() <= seen.items()
        assert seen["PATH"] == "/opt/dm/bin:/opt/dm/sbin:/usr/bin:/bin", "once, however often it is sourced"


@pytest.mark.parametrize("value", ["a b", "a=b", "", "$HOME", "'x'", '"x"', "a;b", "~/x", "a#b", "a\nb", "`x`", "*"])
def test_values_the_format_cannot_carry_are_refused(value):
    with pytest.raises(ConfigurationError, match="DM_ROOT_DIR"):
        setupfile.setup_text(VARIABLES | {"DM_ROOT_DIR": value})


def test_names_and_the_station_are_checked():
    with pytest.raises(ConfigurationError, match="DM_STATION_NAME"):
        setupfile.setup_text({"DM_ROOT_DIR": "/x"})
    for name in ("PATH", "dm-x", "A B"):
        with pytest.raises(ConfigurationError, match=name):
            setupfile.setup_text(VARIABLES | {name: "/x"})
    with pytest.raises(ConfigurationError, match="PATH"):
        setupfile.setup_text(VARIABLES, ["/opt/my dm/bin"])


def test_an_unreadable_setup_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="missing"):
        setupfile.read_setup(tmp_path / "missing")
