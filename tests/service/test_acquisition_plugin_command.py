"""The command plugin runs real programs."""

from __future__ import annotations

import json
import os
import pwd
import threading
import time
from pathlib import Path

import psutil
import pytest

from dm.common.errors import ConfigurationError
from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.plugins.command import Command
from tests.service.plugin_fixtures import NAMES, context, errors, plugin, stored

ACCOUNT = {"account": "nobody"} if os.geteuid() == 0 else {}


@pytest.fixture
def script(open_directory: Path) -> Path:
    """Where tests put their program; anybody may run it, and write beside it."""
    open_directory.chmod(0o777)
    return open_directory / "program"


def program(script: Path, text: str) -> str:
    script.write_text("#!/bin/sh\n" + text)
    script.chmod(0o755)
    return str(script)


def gone(pid: int) -> None:
    """Wait until a process that was killed has left."""

    def there() -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + 20
    while there():
        assert time.monotonic() < deadline, f"process {pid} was not ended"
        time.sleep(0.02)


def test_names_are_data_and_the_program_is_told_everything(script: Path, open_directory: Path) -> None:
    run = program(
        script,
        f'umask 0; mkdir "{open_directory}/out.$$"; cd "{open_directory}/out.$$"; cat >told\n'
        'printf %s "$1" >storage; printf %s "$DM_STORAGE_PATH" >variable; printf %s "$2" >both; id -u >uid\n'
        'printf "%s\\n" $# >count\n',
    )
    command = plugin("command", arguments=[run, "{storagePath}", "{experimentName}/{{x}}={size}"], **ACCOUNT)
    batch = stored(open_directory, {name: name * 3 for name in NAMES})
    command.process(batch)
    assert errors(batch) == {}
    seen = set()
    for place in open_directory.glob("out.*"):
        path = (place / "storage").read_bytes()
        told = json.loads((place / "told").read_text())
        [file] = told["files"]
        assert path == (place / "variable").read_bytes() == os.fsencode(file["storagePath"])
        assert (place / "both").read_text() == f"exp1/{{x}}={file['size']}"
        assert (place / "count").read_text() == "2\n"
        assert (told["schema"], told["station"], told["daqId"], told["root"]) == ("dm.files/1", "25IDC", "d1", "data")
        assert (file["version"], file["metadata"]) == (1, {"sample": "gold"})
        uid = int((place / "uid").read_text())
        assert uid == (pwd.getpwnam("nobody").pw_uid if ACCOUNT else os.getuid())
        seen.add(os.fsencode(file["path"]))
    assert seen == set(NAMES)
    assert not list(open_directory.rglob("pwned"))


def test_exit_status_says_what_to_do(script: Path, open_directory: Path) -> None:
    run = program(
        script,
        'case "$1" in *ok) echo fine;; *later) echo busy; exit 75;; *bad) echo no such sample >&2; exit 3;; '
        "*killed) kill -9 $$;; *loud) head -c 300000 /dev/zero | tr '\\0' 'x'; echo the end; exit 1;; esac",
    )
    command = plugin("command", arguments=[run, "{storagePath}"], note_output=True, parallel=3, **ACCOUNT)
    batch = stored(open_directory, dict.fromkeys((b"ok", b"later", b"bad", b"killed", b"loud"), b"1"))
    command.process(batch)
    found = errors(batch)
    assert set(found) == {b"later", b"bad", b"killed", b"loud"}
    assert found[b"later"][1] and not any(found[name][1] for name in (b"bad", b"killed", b"loud"))
    assert "status 3: no such sample" in found[b"bad"][0]
    assert "signal 9" in found[b"killed"][0]
    assert found[b"loud"][0].endswith("the end") and len(found[b"loud"][0]) < 800
    assert batch.files[0].notes == ["command: fine"]


def test_one_run_for_a_batch(script: Path, open_directory: Path) -> None:
    run = program(script, f"umask 0; cat >>{open_directory}/told; test $# = 1")
    command = plugin("command", arguments=[run, "{daqId}"], per="batch", **ACCOUNT)
    batch = stored(open_directory, {b"a": b"1", b"b/c": b"2"})
    command.process(batch)
    assert errors(batch) == {}
    told = json.loads((open_directory / "told").read_text())
    assert [file["path"] for file in told["files"]] == ["a", "b/c"]


def test_a_time_limit_ends_all_it_started(script: Path, open_directory: Path) -> None:
    run = program(
        script, f"umask 0; trap '' TERM; sleep 987.5 & echo $! >{open_directory}/child; echo begun; wait; wait"
    )
    command = plugin("command", arguments=[run], seconds=0.7, **ACCOUNT)
    batch = stored(open_directory, {b"a": b"1"})
    command.process(batch)
    [(error, transient)] = errors(batch).values()
    assert "did not end in 0.7 s" in error and error.endswith("begun") and not transient
    gone(int((open_directory / "child").read_text()))


def test_a_program_that_reads_nothing_and_leaves_something_behind(script: Path, open_directory: Path) -> None:
    run = program(script, f"umask 0; sleep 986.5 & echo $! >{open_directory}/child; exit 0")
    command = plugin("command", arguments=[run], per="batch", **ACCOUNT)
    batch = stored(open_directory, {b"f%d" % number: b"1" for number in range(1000)})  # more than a pipe holds
    begun = time.monotonic()
    command.process(batch)
    assert errors(batch) == {} and time.monotonic() - begun < 60
    gone(int((open_directory / "child").read_text()))


def test_a_stop_of_the_service_ends_it(script: Path, open_directory: Path) -> None:
    run = program(script, f"umask 0; echo $$ >{open_directory}/begun; exec sleep 985.5")
    stop = threading.Event()
    [command] = make_plugins({"command": {"arguments": [run], **ACCOUNT}}, context(stop=stop))
    batch = stored(open_directory, {b"a": b"1", b"b": b"1"})
    thread = threading.Thread(target=command.process, args=(batch,))
    thread.start()
    while not (open_directory / "begun").exists():
        time.sleep(0.02)
    stop.set()
    thread.join(20)
    assert all(transient and "service stops" in error for error, transient in errors(batch).values())
    assert len(errors(batch)) == 2


def test_a_value_that_would_be_an_option_is_refused(script: Path, open_directory: Path) -> None:
    run = program(script, f"touch {open_directory}/run")
    command = plugin("command", arguments=[run, "{experimentFilePath}"], **ACCOUNT)
    batch = stored(open_directory, {b"-rf": b"1"})
    command.process(batch)
    [(error, transient)] = errors(batch).values()
    assert "would be an option" in error and not transient
    assert not (open_directory / "run").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"arguments": []}, "arguments"),
        ({"arguments": ["true"]}, "absolute path"),
        ({"arguments": ["/no/such/program"], **ACCOUNT}, "missing or not executable"),
        ({"arguments": ["/bin/true", "{nothing}"]}, "placeholder"),
        ({"arguments": ["/bin/true", "{storagePath.x}"]}, "placeholder"),
        ({"arguments": ["/bin/true", "{storagePath}"], "per": "batch"}, "placeholder"),
        ({"arguments": ["/bin/true"], "account": "root"}, "root"),
        ({"arguments": ["/bin/true"], "account": "no-such-account"}, "does not exist"),
    ],
)
def test_settings_that_cannot_be(table: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make_plugins({"command": table}, context())


def test_never_as_root() -> None:
    if os.geteuid() == 0:
        with pytest.raises(ConfigurationError, match="never run as root"):
            plugin("command", arguments=["/bin/true"])
    else:
        assert isinstance(plugin("command", arguments=["/bin/true"]), Command)
