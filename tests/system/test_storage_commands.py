"""The storage commands as managers, administrators and users call them, on a whole running suite."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import pty
import re
import select
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dm.common.client import RestClient
from dm.common.environment import URL_VARIABLES, write_login_file
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceLimit,
    TransferError,
)
from dm.deploy import components
from dm.deploy.install import ADMINISTRATOR, Plan, install
from dm.site.storage.api import FileDsApi
from tests.live import PROGRAMS, STATION, Suite

USAGE = 2
PASSWORD = "pass-word-1"
CONTENTS = {
    "a.dat": b"alpha" * 1000,
    "run1/b.dat": b"beta",
    "run1/deep er/c.h5": b"",
    "run2/b.dat": os.urandom(300_000),
}

_numbers = itertools.count(1)


def registered_commands() -> list[str]:
    """Return the names of the registered storage commands."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    scripts = project["project"]["scripts"]
    return [name for name, target in scripts.items() if target.startswith("dm.site.storage.commands.")]


def one(text: str) -> dict[str, Any]:
    """Read what ``--display-format dict`` printed for one record."""
    (line,) = text.splitlines()
    return dict(ast.literal_eval(line))


def keys_of(line: str) -> list[str]:
    """Return the keys of a ``key=value `` line whose values hold no blank."""
    assert line.endswith(" \n") and not line.endswith("  \n")
    return re.findall(r"(?:^| )(\w+)=", line)


@pytest.fixture
def experiment(suite: Suite) -> str:
    name = f"storage-{next(_numbers)}"
    suite.dm("dm-add-experiment", "--experiment", name, "--type=TEST", "--description", "of a test")
    return name


@pytest.fixture
def user(suite: Suite) -> Iterator[str]:
    """A new user without roles, with a login file."""
    name = f"d{500_000 + next(_numbers)}"
    words = ["dm-add-user", "--username", name, "--password-file=-"]
    suite.dm(*words, user=ADMINISTRATOR, stdin=f"{PASSWORD}\n")
    write_login_file(suite.installed.layout.login_file(name), name, PASSWORD)
    yield name
    suite.installed.layout.login_file(name).unlink()


@pytest.fixture(scope="module")
def uploaded(suite: Suite, run_directory: Path) -> Iterator[str]:
    """An experiment with the files of :data:`CONTENTS`, and one below analysis."""
    name = f"storage-files-{next(_numbers)}"
    suite.dm("dm-create-experiment", "--experiment", name, "--type=TEST")
    source = run_directory / name
    for directory, contents, words in (
        (source / "data", CONTENTS, []),
        (source / "analysis", {"result.txt": b"r" * 10}, ["--use-analysis-directory-as-root"]),
    ):
        for path, content in contents.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        suite.dm("dm-upload", "--experiment", name, f"--data-directory={directory}", "--wait", *words)
    yield name
    shutil.rmtree(source)


def below(directory: Path) -> dict[str, bytes]:
    """Return path -> bytes of everything below a directory."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def on_terminal(environment: dict[str, str], *words: object, typed: dict[str, str]) -> tuple[int, str, str]:
    """Run a command on a pseudo terminal.

    :param typed: prompt -> what is typed when it shows. :returns: status, output, and what the terminal showed.
    """
    answers = dict(typed)
    shown = ""
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [str(PROGRAMS / str(words[0])), *map(str, words[1:])],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=environment | {"TERM": "xterm"},
        start_new_session=True,
    ) as process:
        try:
            os.close(terminal)
            while select.select([controller], [], [], 60)[0]:
                try:
                    shown += os.fsdecode(os.read(controller, 65536))
                except OSError:  # how a pseudo terminal ends
                    break
                for prompt in [prompt for prompt in answers if prompt in shown]:
                    os.write(controller, f"{answers.pop(prompt)}\n".encode())
            assert process.stdout is not None
            output = process.stdout.read()
            status = process.wait(60)
        finally:
            process.kill()
            os.close(controller)
    assert not answers, f"never asked for {list(answers)}: {shown}"
    return status, os.fsdecode(output), shown


@pytest.mark.parametrize("name", registered_commands())
def test_every_command_explains_itself(name: str) -> None:
    done = subprocess.run([str(PROGRAMS / name), "--help"], capture_output=True, text=True, check=True, env={})
    said = "dm-add-experiment" if name == "dm-create-experiment" else name  # an alias
    assert done.stdout.startswith(f"Usage: {said} ") and "--display-keys" in done.stdout


# --- experiments -----------------------------------------------------------------------------------------------


def test_lines_of_experiments(suite: Suite) -> None:
    name = f"lines-{next(_numbers)}"
    line = suite.dm(
        "dm-add-experiment", "--experiment", name, "--type", "TEST", "--root-path=2026-1", "--start-date", "05-Mar-26",
        "--end-date=2026-03-07", "--display-keys", "id,name,startDate,endDate,rootPath",
    )  # fmt: skip
    number = re.match(r"id=(\d+) ", line)[1]  # type: ignore[index]
    assert line.startswith(f"id={number} name={name} startDate=2026-03-05 ") and "rootPath=2026-1 \n" in line
    line = suite.dm("dm-get-experiment", "--experiment", name)
    assert keys_of(line) == ["id", "name", "experimentTypeId", "experimentStationId", "startDate", "endDate"]
    assert suite.dm("dm-get-experiment", f"--id={number}") == line
    # scripts cut the value out from column 18 on and drop the last character
    line = suite.dm("dm-get-experiment", "--experiment", name, "--display-keys", "storageDirectory").rstrip("\n")
    assert line[:17] == "storageDirectory=" and line[-1] == " "
    assert line[17:-1].endswith(f"/{STATION}/2026-1/{name}") and Path(line[17:-1], "data").is_dir()
    everything = one(suite.dm("dm-get-experiment", "--experiment", name, "-a", "--display-format=dict"))
    assert everything["dataDirectory"] == f"{line[17:-1]}/data" and everything["experimentUsernameList"] == []
    pretty = suite.dm("dm-get-experiment", "--experiment", name, "-a", "-pp")
    assert ast.literal_eval(pretty) == everything and "'name': '" in pretty and pretty.count("\n") > 5
    assert json.loads(suite.dm("dm-get-experiment", "--id", number, "-a", "--display-format", "json")) == everything
    listed = suite.dm("dm-list-experiments")
    assert [row.split()[1] for row in listed.splitlines()][-1] == f"name={name}"
    assert suite.dm("dm-list-experiments", "--station", STATION) == listed


def test_refusals_of_experiments(suite: Suite, experiment: str) -> None:
    error = suite.dm("dm-add-experiment", "--experiment", experiment, "--type=TEST", status=ObjectAlreadyExists.code)
    assert error == f"Error: Experiment '{experiment}' at station '{STATION}' already exists.\n"
    error = suite.dm("dm-add-experiment", "--experiment=a/b", "--type=TEST", status=InvalidArgument.code)
    assert "'a/b'" in error
    error = suite.dm("dm-add-experiment", "--experiment=x", "--type=NONE", status=ObjectNotFound.code)
    assert "NONE" in error and "does not exist" in error
    error = suite.dm("dm-add-experiment", "--experiment=x", "--start-date=someday", status=InvalidArgument.code)
    assert "someday" in error
    assert "--experiment" in suite.dm("dm-add-experiment", status=USAGE)
    assert "--experiment or --id" in suite.dm("dm-get-experiment", status=USAGE)
    assert "--experiment or --id" in suite.dm("dm-get-experiment", "--experiment=x", "--id=1", status=USAGE)
    assert "does not exist" in suite.dm("dm-list-experiments", "--station=NONE", status=ObjectNotFound.code)
    assert "Nothing to change" in suite.dm("dm-update-experiment", "--experiment", experiment, status=USAGE)


@pytest.mark.parametrize(
    "words",
    [
        ["dm-get-experiment"],
        ["dm-update-experiment", "--users", "d1"],
        ["dm-delete-experiment", "--force"],
        ["dm-start-experiment"],
        ["dm-stop-experiment"],
        ["dm-stat-file", "--file=a"],
        ["dm-download"],
        ["dm-download", "--file=a"],
        ["dm-restore-permissions"],
        ["dm-inspect-experiment"],
        ["dm-explain-access"],
        ["dm-add-user-experiment-role", "--username=d1"],
        ["dm-delete-user-experiment-role", "--username=d1"],
    ],
    ids=lambda words: "-".join(words).replace("--", ""),
)
def test_an_unknown_experiment(suite: Suite, words: list[str], open_directory: Path) -> None:
    if words[0] == "dm-download":
        words = [*words, f"--destination-directory={open_directory}"]
    error = suite.dm(*words, "--experiment", "nothing", status=ObjectNotFound.code)
    assert error.startswith("Error: Experiment 'nothing' at station") and error.endswith(" does not exist.\n")


def test_updates_of_experiments(suite: Suite, experiment: str) -> None:
    words = ["--display-format=dict", "-a"]
    before = one(suite.dm("dm-get-experiment", "--experiment", experiment, *words))
    record = one(
        suite.dm(
            "dm-update-experiment", "--id", before["id"], "--description=another", "--type", STATION, "--data-frozen",
            "--new-name", f"{experiment}-b", "proposal:GUP-1:2", *words,
        )
    )  # fmt: skip
    assert record["name"] == f"{experiment}-b" and record["description"] == "another"
    assert record["experimentType"]["name"] == STATION and record["proposal"] == "GUP-1:2"
    assert (record["dataDirectoryFrozen"], record["analysisDirectoryFrozen"]) == (True, False)
    assert record["storageDirectory"] == before["storageDirectory"] + "-b"
    words = ["--experiment", record["name"], *words]
    record = one(suite.dm("dm-update-experiment", "--data-not-frozen", *words))
    assert not record["dataDirectoryFrozen"] and record["description"] == "another"
    error = suite.dm("dm-update-experiment", *words, "name:x", status=InvalidArgument.code)
    assert "'name'" in error


def test_start_and_stop(suite: Suite, experiment: str) -> None:
    words = ["--experiment", experiment, "--display-format=dict"]

    def dates(text: str) -> list[datetime]:
        return [datetime.fromisoformat(one(text)[key]) for key in ("startDate", "endDate")]

    now = datetime.now().astimezone() - timedelta(seconds=2)
    start, end = dates(suite.dm("dm-start-experiment", *words))
    assert now <= start <= end
    later, stopped = dates(suite.dm("dm-stop-experiment", *words))
    assert later == start and start <= stopped
    suite.dm("dm-update-experiment", *words, "--end-date=2031-01-01")
    start, end = dates(suite.dm("dm-start-experiment", *words))
    assert end.year == 2031 and start > later


def test_members(suite: Suite, experiment: str, user: str) -> None:
    words = ["--experiment", experiment, "--username", user]
    manager = suite.manager[0]

    def members(text: str) -> dict[str, list[str]]:
        return {member["username"]: member["roles"] for member in one(text)["experimentUsers"]}

    # without a role the experiment is not there
    assert "does not exist" in suite.dm(
        "dm-get-experiment", "--experiment", experiment, user=user, status=ObjectNotFound.code
    )
    assert experiment not in suite.dm("dm-list-experiments", user=user)
    line = suite.dm("dm-add-user-experiment-role", *words, "--role", "User")
    assert line == f"username={user} roleName=User experimentName={experiment} stationName={STATION} \n"
    error = suite.dm("dm-add-user-experiment-role", *words, status=ObjectAlreadyExists.code)
    assert error == f"Error: User '{user}' already has role 'User' in experiment '{experiment}'.\n"
    assert f"name={experiment} " in suite.dm("dm-get-experiment", "--experiment", experiment, user=user)
    assert f"name={experiment} " in suite.dm("dm-list-experiments", user=user)
    for command in ("dm-stop-experiment", "dm-delete-experiment"):
        suite.dm(command, "--experiment", experiment, user=user, stdin="yes\n", status=AuthorizationError.code)
    suite.dm("dm-add-user-experiment-role", *words, "--role=PI")
    assert "Chief" in suite.dm("dm-add-user-experiment-role", *words, "--role=Chief", status=InvalidArgument.code)

    update = ["dm-update-experiment", "--experiment", experiment, "--display-format=dict", "-a"]
    error = suite.dm(*update, "--users", "d999999", status=ObjectNotFound.code)
    assert error == "Error: User 'd999999' does not exist.\n"  # and nobody was removed:
    record = suite.dm(*update, f"--users={user}, {manager},{user}")
    assert members(record) == {user: ["User", "PI"], manager: ["User"]} or members(record)[user] == ["PI", "User"]
    assert members(suite.dm(*update, "--users", manager)) == {manager: ["User"]}
    assert members(suite.dm(*update, "--users", "")) == {}
    error = suite.dm("dm-delete-user-experiment-role", *words, status=ObjectNotFound.code)
    assert user in error and "does not exist" in error
    suite.dm("dm-add-user-experiment-role", *words)
    assert f"username={user} roleName=User " in suite.dm("dm-delete-user-experiment-role", *words)
    suite.dm("dm-get-experiment", "--experiment", experiment, user=user, status=ObjectNotFound.code)

    name = f"{experiment}-members"
    suite.dm("dm-add-experiment", "--experiment", name, "--type=TEST", "--users", f"{user},{manager}")
    assert f"name={name} " in suite.dm("dm-get-experiment", "--experiment", name, user=user)


# --- deletion --------------------------------------------------------------------------------------------------


def test_delete_asks_first(suite: Suite, experiment: str, open_directory: Path) -> None:
    for name in ("a", "b", "c"):
        (open_directory / name).write_bytes(b"12345")
    suite.dm("dm-upload", "--experiment", experiment, "--data-directory", open_directory, "--wait")
    words = ["--experiment", experiment]
    directory = Path(one(suite.dm("dm-get-experiment", *words, "-a", "--display-format=dict"))["storageDirectory"])
    for answer in ("", "\n", "no\n", "perhaps\n"):
        said = suite.dm("dm-delete-experiment", *words, stdin=answer, status=1)
        assert f"Experiment {experiment} of {STATION} has 3 files (15 bytes)" in said
        assert f"Everything in {directory} will be deleted." in said and "Nothing was deleted." in said
    assert (directory / "data" / "a").is_file()
    line = suite.dm("dm-delete-experiment", *words, stdin="yes\n")
    assert keys_of(line) == ["id", "name", "experimentName", "status"]
    assert f" name=deleteExperiment experimentName={experiment} status=" in line
    operation = line.split()[0].removeprefix("id=")
    assert (
        one(suite.dm("dm-get-operation", "--id", operation, "-a", "--display-format=dict"))["owner"]
        == (suite.manager[0])
    )


def test_delete_and_wait(suite: Suite, experiment: str) -> None:
    words = ["--experiment", experiment]
    directory = Path(one(suite.dm("dm-get-experiment", *words, "-a", "--display-format=dict"))["storageDirectory"])
    line = suite.dm("dm-delete-experiment", *words, "--yes", "--wait")
    assert "status=done " in line and not directory.exists()
    operation = line.split()[0].removeprefix("id=")
    assert suite.dm("dm-get-operation", f"--id={operation}") == line
    suite.dm("dm-get-experiment", *words, status=ObjectNotFound.code)
    assert experiment not in suite.dm("dm-list-experiments")
    suite.dm("dm-add-experiment", *words, "--type=TEST")  # the name is free again
    error = suite.dm("dm-get-operation", "--id=00000000-0000-0000-0000-000000000000", status=ObjectNotFound.code)
    assert "does not exist" in error


def test_delete_while_a_daq_runs(suite: Suite, experiment: str, open_directory: Path) -> None:
    daq = ["--experiment", experiment, "--data-directory", open_directory]
    suite.dm("dm-start-daq", *daq)
    error = suite.dm("dm-delete-experiment", "--experiment", experiment, "--yes", status=InvalidObjectState.code)
    assert f"Experiment '{experiment}' has 1 running" in error
    suite.dm("dm-stop-daq", *daq, "--wait")
    suite.dm("dm-start-daq", *daq)
    assert "status=done " in suite.dm("dm-delete-experiment", "--experiment", experiment, "--force", "--wait")


# --- files -----------------------------------------------------------------------------------------------------


def test_stat_file(suite: Suite, uploaded: str) -> None:
    words = ["dm-stat-file", "--experiment", uploaded]
    line = suite.dm(*words, "--file-path", "run1/b.dat")
    assert keys_of(line) == ["id", "fileName", "experimentFilePath", "fileSize", "md5Sum"]
    assert " fileName=b.dat experimentFilePath=run1/b.dat fileSize=4 " in line
    md5 = hashlib.md5(CONTENTS["run1/b.dat"]).hexdigest()
    record = one(suite.dm(*words, "--file=run1/b.dat", "--md5-sum", "-a", "--display-format=dict"))
    assert record["md5Sum"] == md5 and record["readyForProcessing"] is True and record["root"] == "data"
    assert one(suite.dm(*words, "--file=result.txt", "-a", "--display-format=dict"))["root"] == "analysis"
    error = suite.dm(*words, "--file=result.txt", "--root=data", status=ObjectNotFound.code)
    assert error == f"Error: File 'result.txt' does not exist in experiment '{uploaded}'.\n"
    assert "'a.dat.gz'" in suite.dm(*words, "--file=a.dat", "--compression=gz", status=ObjectNotFound.code)
    suite.dm(*words, "--file=../system", status=InvalidArgument.code)


def test_download_of_files(suite: Suite, uploaded: str, open_directory: Path) -> None:
    target = open_directory / "new" / "directory"
    words = ["dm-download", "--experiment", uploaded, f"--destination-directory={target}"]
    line = suite.dm(*words, "--file", "run1/deep er/c.h5", "--display-keys=localFilePath,fileSize")
    assert line == f"localFilePath={target}/c.h5 fileSize=0 \n"
    assert len(suite.dm(*words, "--file=run2/b.dat", "--file=result.txt").splitlines()) == 2
    assert below(target) == {"c.h5": b"", "b.dat": CONTENTS["run2/b.dat"], "result.txt": b"r" * 10}
    error = suite.dm(*words, "--file=run1/b.dat", "--file=run2/b.dat", status=USAGE)
    assert "same name" in error and (target / "b.dat").read_bytes() == CONTENTS["run2/b.dat"]
    assert "does not exist" in suite.dm(*words, "--file=run1/none", status=ObjectNotFound.code)
    assert "root" in suite.dm(*words, "--file=a.dat", "--root=system", status=USAGE)


def test_download_of_an_experiment(suite: Suite, uploaded: str, open_directory: Path) -> None:
    words = ["dm-download", "--experiment", uploaded, "--destination-directory", open_directory]
    expected = {f"data/{path}": content for path, content in CONTENTS.items()} | {"analysis/result.txt": b"r" * 10}
    printed = suite.dm(*words)
    assert len(printed.splitlines()) == len(expected) and below(open_directory) == expected
    # again: what is there stays, what is missing, short or damaged is fetched
    kept = (open_directory / "data/a.dat").stat()
    (open_directory / "data/run1/b.dat").write_bytes(b"BETA")
    (open_directory / "data/run2/b.dat").write_bytes(CONTENTS["run2/b.dat"][:1000])
    (open_directory / "analysis/result.txt").unlink()
    assert suite.dm(*words) == printed and below(open_directory) == expected
    assert (open_directory / "data/a.dat").stat().st_ino == kept.st_ino
    only = open_directory / "only"
    suite.dm("dm-download", "--experiment", uploaded, "--destination-directory", only, "--root=analysis")
    assert below(only) == {"analysis/result.txt": b"r" * 10}


def test_download_goes_on_where_it_stopped(
    suite: Suite, uploaded: str, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in suite.environment.items():
        if name.startswith("DM_"):
            monkeypatch.setenv(name, value)

    class BrokenError(Exception):
        pass

    def broken(done: int, total: int) -> None:
        if 0 < done < total:
            raise BrokenError

    api = FileDsApi(*suite.manager)
    try:
        with pytest.raises(BrokenError):
            api.downloadFile("run2/b.dat", uploaded, open_directory, progress=broken)
    finally:
        api.close()
    (part,) = open_directory.glob(".*.dmpart")
    inode = part.stat().st_ino
    suite.dm("dm-download", "--experiment", uploaded, f"--destination-directory={open_directory}", "--file=run2/b.dat")
    assert (open_directory / "b.dat").stat().st_ino == inode
    assert below(open_directory) == {"b.dat": CONTENTS["run2/b.dat"]}


def test_download_with_a_file_gone(suite: Suite, experiment: str, open_directory: Path) -> None:
    source, target = open_directory / "source", open_directory / "target"
    source.mkdir()
    for name in ("a", "b", "c"):
        (source / name).write_text(name)
    suite.dm("dm-upload", "--experiment", experiment, "--data-directory", source, "--wait")
    record = one(suite.dm("dm-get-experiment", "--experiment", experiment, "-a", "--display-format=dict"))
    Path(record["dataDirectory"], "b").unlink()
    error = suite.dm(
        "dm-download", "--experiment", experiment, "--destination-directory", target, status=TransferError.code
    )
    failure, summary = error.splitlines()
    assert failure.startswith("Not downloaded: ") and "data/b: File 'b' does not exist" in failure
    assert summary.startswith("Error: 1 files could not be downloaded, among them: data/b: ")
    assert below(target) == {"data/a": b"a", "data/c": b"c"}


def test_names_that_are_no_text(suite: Suite, experiment: str, open_directory: Path) -> None:
    source, target = open_directory / "source", open_directory / "target"
    source.mkdir()
    name = os.fsdecode(b"b\xff d.dat")
    (source / name).write_bytes(b"odd")
    suite.dm("dm-upload", "--experiment", experiment, "--data-directory", source, "--wait")
    words = ["--experiment", experiment, "--display-keys", "fileSize"]
    assert suite.dm("dm-stat-file", *words, "--file", name) == "fileSize=3 \n"
    assert suite.dm("dm-download", *words, "--destination-directory", target) == "fileSize=3 \n"
    assert suite.dm("dm-download", *words, "--destination-directory", target, "--file", name) == "fileSize=3 \n"
    assert below(target) == {f"data/{name}": b"odd", name: b"odd"}


def test_download_on_a_terminal(suite: Suite, uploaded: str, open_directory: Path) -> None:
    words = ["dm-download", "--experiment", uploaded, "--destination-directory", open_directory]
    status, output, shown = on_terminal(suite.environment, *words, typed={})
    assert status == 0 and len(output.splitlines()) == len(CONTENTS) + 1
    assert "Downloading" in shown and below(open_directory / "data") == CONTENTS


def test_members_download(suite: Suite, uploaded: str, user: str, open_directory: Path) -> None:
    words = ["dm-download", "--experiment", uploaded, "--file=a.dat", f"--destination-directory={open_directory}"]
    error = suite.dm(*words, user=user, status=ObjectNotFound.code)
    assert "does not exist" in error and below(open_directory) == {}
    suite.dm("dm-add-user-experiment-role", "--experiment", uploaded, "--username", user, "--role=User")
    suite.dm(*words, user=user)
    assert below(open_directory) == {"a.dat": CONTENTS["a.dat"]}
    suite.dm("dm-restore-permissions", "--experiment", uploaded, user=user, status=AuthorizationError.code)


def test_restore_permissions(suite: Suite, uploaded: str) -> None:
    record = one(suite.dm("dm-get-experiment", "--experiment", uploaded, "-a", "--display-format=dict"))
    directory = Path(record["dataDirectory"])
    good = {path: path.stat().st_mode for path in directory.rglob("*")}
    (directory / "run1/b.dat").chmod(0o666)
    (directory / "a.dat").chmod(0o666)
    words = ["dm-restore-permissions", "--experiment", uploaded]
    line = suite.dm(*words, "--relative-path", "data/run1")
    assert "countDirectories=2 countFiles=2 " in line
    assert (directory / "run1/b.dat").stat().st_mode == good[directory / "run1/b.dat"]
    assert (directory / "a.dat").stat().st_mode != good[directory / "a.dat"]
    suite.dm(*words)
    assert {path: path.stat().st_mode for path in directory.rglob("*")} == good
    assert "does not exist" in suite.dm(*words, "--relative-path=data/none", status=ObjectNotFound.code)
    suite.dm(*words, "--relative-path=../x", status=InvalidArgument.code)
    (directory / "a.dat").chmod(0o666)
    lines = suite.dm("dm-restore-permissions", "--all-experiments", "--station", STATION).splitlines()
    assert f"experimentName={uploaded} " in " ".join(lines)
    assert (directory / "a.dat").stat().st_mode == good[directory / "a.dat"]
    suite.dm("dm-restore-permissions", status=USAGE)
    suite.dm(*words, "--all-experiments", status=USAGE)


def test_inspections(suite: Suite, uploaded: str) -> None:
    record = one(suite.dm("dm-get-experiment", "--experiment", uploaded, "-a", "--display-format=dict"))
    directory = Path(record["dataDirectory"])
    words = ["dm-inspect-experiment", "--experiment", uploaded]
    assert len(suite.dm(*words, "--read-again").splitlines()) == 1
    (directory / "a.dat").chmod(0o666)
    (directory / "by hand.txt").write_bytes(b"")
    (directory / "by hand.txt").chmod(0o640)
    first, *found = suite.dm(*words).splitlines()
    assert " status=done " in first and " countExtra=1 " in first and " countPermissions=1 " in first
    assert any(line.startswith("kind=extra path=data/by hand.txt ") for line in found)
    assert any(line.startswith("kind=permissions path=data/a.dat ") for line in found) and len(found) == 2
    (directory / "by hand.txt").unlink()
    first, *found = suite.dm(*words, "--repair").splitlines()
    assert " countRepaired=1 " in first and all(" repaired=True " in line for line in found)
    assert suite.dm(*words, "--last").splitlines() == [first, *found]
    assert suite.dm(*words, "--no-wait").startswith(f"experimentName={uploaded} ")
    assert f"experimentName={uploaded} " in suite.dm("dm-list-inspections", "--station", STATION)
    suite.dm(*words, "--last", "--repair", status=USAGE)


def test_explained_access(suite: Suite, uploaded: str, user: str) -> None:
    words = ["dm-explain-access", "--experiment", uploaded]
    line = suite.dm(*words, "--user", user, "--path=data/a.dat")
    assert " httpsAllowed=False " in line and f"httpsRule={user} has no role in experiment {uploaded}" in line
    assert " diskAllowed=False diskRule=the storage host knows no account " in line
    suite.dm(*words, user=user, status=ObjectNotFound.code)
    suite.dm("dm-add-user-experiment-role", "--experiment", uploaded, "--username", user, "--role=PI")
    first, *ways = suite.dm(*words, "--components", user=user).splitlines()
    assert f" httpsAllowed=True httpsRule={user} has role PI in experiment {uploaded} " in first
    assert ways[0].startswith("path=/ ") and "mode=drwxr-s---" in ways[-1]
    suite.dm(*words, "--username", suite.manager[0], user=user, status=ObjectNotFound.code)
    suite.dm(*words, "--path=data/none", status=ObjectNotFound.code)


# --- users -----------------------------------------------------------------------------------------------------


def test_users(suite: Suite, open_directory: Path) -> None:
    name = f"d{600_000 + next(_numbers)}"
    words = ["dm-add-user", "--username", name]
    line = suite.dm(*words, "--first-name=Ada", "--last-name", "Byron", "--password-file=-", user=ADMINISTRATOR,
                    stdin=f"{PASSWORD}\n")  # fmt: skip
    assert re.fullmatch(rf"id=\d+ username={name} firstName=Ada lastName=Byron \n", line)
    assert PASSWORD not in line
    error = suite.dm(*words, "--no-password", user=ADMINISTRATOR, status=ObjectAlreadyExists.code)
    assert error == f"Error: User '{name}' already exists.\n"
    assert suite.dm("dm-list-users").splitlines(keepends=True)[-1] == line
    assert suite.dm("dm-get-user", "--username", name, user=ADMINISTRATOR) == line
    record = one(suite.dm("dm-get-user", f"--username={name}", "-a", "--display-format=dict", user=ADMINISTRATOR))
    assert record["stationRoles"] == {} and record["systemRoles"] == [] and record["badge"] == int(name[1:])
    changed = suite.dm("dm-update-user", "--username", name, "--email=a@example.org", "-a", user=ADMINISTRATOR)
    assert "email=a@example.org " in changed and "firstName=Ada " in changed
    assert "username=" + suite.manager[0] in suite.dm("dm-get-user")

    # refusals
    assert "Nothing to change" in suite.dm("dm-update-user", f"--username={name}", user=ADMINISTRATOR, status=USAGE)
    error = suite.dm("dm-get-user", "--username=d999999", user=ADMINISTRATOR, status=ObjectNotFound.code)
    assert error == "Error: User 'd999999' does not exist.\n"
    suite.dm("dm-update-user", "--username=d999999", "--email=x", user=ADMINISTRATOR, status=ObjectNotFound.code)
    new = ["dm-add-user", "--username", "d600999"]
    assert "--password-file" in suite.dm(*new, user=ADMINISTRATOR, status=USAGE)  # no terminal to ask on
    file = open_directory / "short"
    file.write_text("short")
    suite.dm(*new, "--password-file", file, user=ADMINISTRATOR, status=InvalidArgument.code)
    suite.dm(*new, "--password-file", file, "--no-password", user=ADMINISTRATOR, status=USAGE)
    suite.dm(*new, "--password-file", file / "none", user=ADMINISTRATOR, status=USAGE)
    suite.dm("dm-add-user", "--username=no name", "--no-password", user=ADMINISTRATOR, status=InvalidArgument.code)
    suite.dm(*new, "--no-password", status=AuthorizationError.code)  # a manager is no administrator


def test_passwords_are_asked_for_on_a_terminal(suite: Suite) -> None:
    name = f"d{600_000 + next(_numbers)}"
    administrator = {"DM_LOGIN_FILE": str(suite.installed.layout.login_file(ADMINISTRATOR))}
    status, output, shown = on_terminal(
        suite.environment | administrator, "dm-add-user", "--username", name,
        typed={f"New password of {name}: ": PASSWORD, "Repeat for confirmation: ": PASSWORD},
    )  # fmt: skip
    assert status == 0 and f"username={name} " in output and PASSWORD not in shown
    login = suite.installed.layout.login_file(name)
    write_login_file(login, name, PASSWORD)
    assert f"username={name} " in suite.dm("dm-get-user", user=name)
    # their own again, with no login file to take the current one from
    login.unlink()
    environment = suite.environment
    environment.pop("DM_LOGIN_FILE")
    second = "other-word-2"
    status, _, shown = on_terminal(
        environment | {"DM_USERNAME": name}, "dm-update-user-password",
        typed={"Current password": PASSWORD, "New password": second, "Repeat for confirmation: ": second},
    )  # fmt: skip
    assert status == 0 and second not in shown and "holds the old password" not in shown
    write_login_file(login, name, second)
    assert f"username={name} " in suite.dm("dm-get-user", user=name)
    login.unlink()


def test_changes_of_passwords(suite: Suite, user: str, open_directory: Path) -> None:
    login = suite.installed.layout.login_file(user)
    suite.dm("dm-get-user", user=user)
    file = open_directory / "new"
    file.write_text("second-word-2\nnot this\n")
    words = ["dm-update-user-password", "--password-file", file]
    suite.dm(*words, user=user)
    error = suite.dm("dm-get-user", user=user, status=AuthenticationError.code)  # sessions have ended, too
    assert error.startswith("Error: Incorrect username or password")
    error = suite.dm(*words, user=user, status=AuthenticationError.code)
    assert "Incorrect username or password" in error
    write_login_file(login, user, "second-word-2")
    suite.dm("dm-get-user", user=user)
    # by an administrator; nobody else
    file.write_text("third-word-33")
    suite.dm(*words, "--username", user, status=AuthorizationError.code)
    assert f"username={user} " in suite.dm(*words, "--username", user, user=ADMINISTRATOR)
    suite.dm("dm-get-user", user=user, status=AuthenticationError.code)
    write_login_file(login, user, "third-word-33")
    suite.dm("dm-get-user", user=user)


def test_a_wrong_password(suite: Suite, user: str) -> None:
    write_login_file(suite.installed.layout.login_file(user), user, "wrong-password")
    error = suite.dm("dm-list-experiments", user=user, status=AuthenticationError.code)
    assert error.startswith("Error: Incorrect username or password") and "wrong-password" not in error


def test_roles_at_the_station(suite: Suite, user: str) -> None:
    words = ["--username", user, "--role=manager"]
    suite.dm("dm-list-users", user=user, status=AuthorizationError.code)
    line = suite.dm("dm-add-user-station-role", *words, user=ADMINISTRATOR)
    assert line == f"username={user} roleName=manager stationName={STATION} \n"
    suite.dm("dm-add-user-station-role", *words, user=ADMINISTRATOR, status=ObjectAlreadyExists.code)
    assert line in suite.dm("dm-list-user-station-roles").splitlines(keepends=True)
    suite.dm("dm-list-users", user=user)
    suite.dm("dm-add-user-station-role", *words, user=user, status=AuthorizationError.code)
    assert suite.dm("dm-delete-user-station-role", *words, "--station", STATION, user=ADMINISTRATOR) == line
    suite.dm("dm-delete-user-station-role", *words, user=ADMINISTRATOR, status=ObjectNotFound.code)
    suite.dm("dm-list-users", user=user, status=AuthorizationError.code)
    error = suite.dm("dm-list-user-station-roles", "--station=NONE", user=ADMINISTRATOR, status=ObjectNotFound.code)
    assert "NONE" in error and "does not exist" in error


def test_administrators(suite: Suite, user: str) -> None:
    words = ["--username", user]
    suite.dm("dm-add-user-system-role", *words, status=AuthorizationError.code)
    line = suite.dm("dm-add-user-system-role", *words, user=ADMINISTRATOR)
    assert line == f"username={user} roleName=administrator \n"
    suite.dm("dm-add-user-system-role", *words, user=user, status=ObjectAlreadyExists.code)  # is one now
    assert suite.dm("dm-delete-user-system-role", *words, user=ADMINISTRATOR) == line
    error = suite.dm("dm-delete-user-system-role", "--username", ADMINISTRATOR, user=ADMINISTRATOR,
                     status=InvalidObjectState.code)  # fmt: skip
    assert "last administrator" in error


def test_a_locked_account_is_shown_and_unlocked(suite: Suite, user: str) -> None:
    right = suite.installed.layout.login_file(user)
    write_login_file(right, user, "not the password")
    with RestClient(
        suite.environment[URL_VARIABLES["storage"]], user, "wrong", ca_file=suite.environment["DM_CA_FILE"]
    ) as guess:
        for _ in range(10):
            with pytest.raises(AuthenticationError, match="Incorrect"):
                guess.login()
    error = suite.dm("dm-get-user", user=user, status=ServiceLimit.code)
    assert "Too many failed logins" in error
    write_login_file(right, user, PASSWORD)
    suite.dm("dm-list-login-locks", status=AuthorizationError.code)
    line = next(line for line in suite.dm("dm-list-login-locks", user=ADMINISTRATOR).splitlines() if user in line)
    assert line.startswith(f"username={user} remote=127.0.0.1 retryAfter=")
    suite.dm("dm-unlock-user", "--username", user, status=AuthorizationError.code)
    assert suite.dm("dm-unlock-user", "--username", user, user=ADMINISTRATOR).startswith(f"username={user} ")
    assert user not in suite.dm("dm-list-login-locks", user=ADMINISTRATOR)
    suite.dm("dm-get-user", user=user)


# --- stations, storages, types ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(run_directory: Path) -> Iterator[Suite]:
    """A site of its own, without station services: where there are two storages, others must name theirs."""
    plan = Plan(run_directory / "site", STATION, host="localhost", listen="127.0.0.1", free_ports=True)
    alone = Suite(install(plan))
    parts = components.chosen("site", alone.installed.layout.settings)
    components.start(parts)
    yield alone
    components.stop(parts)


@pytest.mark.parametrize(
    ("what", "option"), [("station", "--station"), ("storage", "--storage"), ("experiment-type", "--type")]
)
def test_registry(site: Suite, open_directory: Path, what: str, option: str) -> None:
    name = f"NEW{next(_numbers)}"
    extra = ["--host=localhost", "--directory", str(open_directory)] if what == "storage" else []
    words = [f"dm-add-{what}", option, name, *extra]
    listing = f"dm-list-{what.removesuffix('y')}s"
    before = site.dm(listing)
    assert keys_of(before.splitlines(keepends=True)[0])[:2] == ["id", "name"]
    site.dm(*words, status=AuthorizationError.code)
    line = site.dm(*words, user=ADMINISTRATOR)
    assert f" name={name} " in line
    assert site.dm(listing) == before + line
    error = site.dm(*words, user=ADMINISTRATOR, status=ObjectAlreadyExists.code)
    assert f"'{name}'" in error and "already exists" in error
    bad = [f"dm-add-{what}", option, "a b", *extra]
    assert "'a b'" in site.dm(*bad, user=ADMINISTRATOR, status=InvalidArgument.code)
