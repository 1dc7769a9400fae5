"""Values are data, wherever they come from: arguments, file names, output of stages, structured output, paths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing

EXPERIMENT = "hostile"
MEBIBYTE = 1 << 20
VALUES = [
    "; touch {canary}",
    "$(touch {canary})",
    "`touch {canary}`",
    "a\ntouch {canary}\n",
    "--flag",
    "-rf",
    "'; touch {canary}; '",
    '"; touch {canary}; "',
    "| touch {canary}",
    "&& touch {canary} &",
    "> {canary}",
    "<(touch {canary})",
    "${IFS}touch${IFS}{canary}",
    "$other ${other} $filePath $id $$ $1 $@",
    "a[$(touch {canary})]",
    '\\"; touch {canary}; \\"',
    "\"a\" 'b' \\\\ \\",
    "%s%n{0}{x.__class__}",
    "EOF\ntouch {canary}\nEOF",
    "\u202e\u2028\x1b[2J\r",
    "a\udcff",
    "*",
    "~root",
]
JSON = [
    b'{"errorCode": 5}',
    b'{"id": "0"}',
    b'{"workflow": {"name": "x"}}',
    b'{"a": NaN}',
    b'{"a": 1e999}',
    b'{"a": 1, "a": 2}',
    b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"a":' * 100_000,
    json.dumps({f"k{number}": number for number in range(100_000)}).encode(),
    b'{"a": "x\\u0000y"}',
    b'{"a": "\\ud800"}',
    b"[1]",
    b"\xff\xfe",
    b"result = 5",
    b'{"a": ' + b"9" * 10_000 + b"}",
]


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[storage.Site]:
    with storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        running.experiments(storage.MANAGER).addExperiment(EXPERIMENT, storage.STATION, storage.STATION)
        yield running


@pytest.fixture(scope="module")
def service(
    site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with running_processing(
        site, mongo_url, certificates, tmp_path_factory.mktemp("processing"), parallel_files=4
    ) as running:
        yield running


@pytest.fixture
def canary(open_directory: Path) -> Iterator[Path]:
    """A file that nothing may make, in a directory where every account could."""
    open_directory.chmod(0o777)
    path = open_directory / "canary"
    yield path
    assert not path.exists()
    assert [other.name for other in open_directory.iterdir() if not other.name.startswith("out")] == []


def hostile(canary: Path) -> list[str]:
    return [value.replace("{canary}", str(canary)) for value in VALUES]


def escaped(value: str) -> str:
    return value.replace("\udcff", "\\xff")


def printed(job: Any, stage: str) -> list[str]:
    children = job.getWorkflowStage(stage)["childProcesses"].values()
    return [child["stdOut"] for child in children]


def test_values_of_arguments_and_files_are_words(service: Running, canary: Path) -> None:
    values = hostile(canary)
    service.workflow(
        {
            "1": {
                "command": "printf '<%s>' \"$x\" '$x' \"a${x}b\" $filePath; printf '<%s>' \"`printf %s $filePath`\"",
                "runIf": '"$x" != "" and "$filePath" == "$x" and not "$x" == "other"',
                "parallelExec": True,
            },
            "2": {"command": 'for word in $x; do echo "$word"; done; : $x "$(echo $x)" `echo "$x"`'},
            "3": {"command": "cat <<EOF\n[$x]\nEOF"},
        },
        "words",
    )
    jobs = [(value, service.start("words", x=value, filePath=value, other="OTHER")) for value in values]
    for value, job in jobs:
        ended = service.finished(job)
        assert ended["status"] == "done", (value, ended)
        shown = escaped(value)
        inner = shown.rstrip("\n")  # a shell takes newlines from the end of what a command prints
        assert printed(ended, "1") == [f"<{shown}><{shown}><a{shown}b><{shown}><{inner}>"]
        assert printed(ended, "3") == [f"[{shown}]\n"]
        assert ended["x"] == value and ended["filePath"] == value


def test_hostile_files_of_one_job(service: Running, canary: Path) -> None:
    values = hostile(canary)
    service.workflow({"1": {"command": "printf '%s' $filePath", "parallelExec": True}}, "files")
    job = service.finished(service.start("files", filePath="", filePathList=values))
    assert (job["status"], job["countFiles"]) == ("done", len(values))
    assert sorted(printed(job, "1")) == sorted(map(escaped, values))


def test_output_of_a_stage_is_data_for_the_next(service: Running, canary: Path) -> None:
    values = hostile(canary)
    service.workflow(
        {
            "1": {"command": "printf 'V: %s:END' \"$x\"", "outputVariableRegexList": ["(?s)V: (?P<y>.*):END"]},
            "2": {
                "command": "printf '<%s>' \"$y\" '$y'; : $y",
                "runIf": '"$y" == "$x" and ("$y" not in ["a", "b"])',
                "outputVariableRegexList": ["(?s)<(?P<z>.*)><"],
            },
            "3": {"command": 'printf %s "$z"'},
        },
        "captured",
    )
    jobs = [(value, service.start("captured", x=value, other="OTHER")) for value in values]
    for value, job in jobs:
        ended = service.finished(job)
        assert ended["status"] == "done", (value, ended)
        assert printed(ended, "2") == [f"<{escaped(value)}>" * 2]
        assert ended["y"] == ended["z"] == value and printed(ended, "3") == [escaped(value)]


def test_a_second_shell_gets_no_hostile_value(service: Running, canary: Path) -> None:
    for command in (
        "sh -c 'echo $x'",
        'bash -c "echo $x"',
        'eval "echo $x"',
        'echo "$x" | sh',
        "awk 'BEGIN { print \"$x\" }'",
        "sh <<EOF\necho $x\nEOF",
    ):
        service.workflow({"1": {"command": command}}, "second")
        for value in (
            f"; touch {canary}",
            f"$(touch {canary})",
            f'\\"; touch {canary}; \\"',
            f'" system("touch {canary}")',
        ):
            ended = service.finished(service.start("second", x=value))
            assert ended["status"] == "failed" and "'x'" in ended["errorMessage"], (command, ended)
        assert service.finished(service.start("second", x="true"))["status"] == "done"


def test_long_values_and_slow_regexes(service: Running) -> None:
    service.workflow(
        {
            "1": {
                "command": 'printf %s "$x" | wc -c; printf "V: %s" "$x"',
                "outputVariableRegexList": ["V: (?P<y>.*)"],
            },
            "2": {
                "command": 'printf %s "$y" | wc -c; head -c 1048576 /dev/zero | tr "\\0" a',
                "outputVariableRegexList": [
                    "(?P<a>(a+)+)$",
                    "(?P<b>(.*)*)z",
                    "(?P<c>(a|a)*)b",
                    "(?P<d>a{0,300}a{300})c",
                ],
                "runIf": '"$x" != "$other"',
            },
        },
        "long",
    )
    job = service.finished(service.start("long", x="a'\"$(" * (MEBIBYTE // 5)))
    assert job["status"] == "done", job.get("errorMessage")
    size = MEBIBYTE // 5 * 5
    assert printed(job, "1")[0].startswith(f"{size}\n")
    assert not {"b", "c", "d"} & set(job.data)


def test_hostile_structured_output_is_refused(service: Running, canary: Path, open_directory: Path) -> None:
    service.workflow({"1": {"command": 'cat "$filePath" > "$DM_OUTPUT_FILE"'}}, "structured")
    jobs = []
    for number, data in enumerate(JSON):
        file = open_directory / f"out-{number}.json"
        file.write_bytes(data)
        jobs.append((data[:40], service.start("structured", filePath=str(file))))
    for data, job in jobs:
        ended = service.finished(job)
        assert ended["status"] == "failed", data
        assert "structured output" in ended["errorMessage"].lower(), (data, ended["errorMessage"])
        assert len(ended["errorMessage"]) < 500 and "workflow" in ended and ended["id"] == job["id"]
    assert len(service.api().listProcessingJobs(OWNER, keyList="ALL")) >= len(jobs), "records stay readable"


def test_members_of_structured_output_are_values_of_no_other_meaning(
    service: Running, canary: Path, open_directory: Path
) -> None:
    members = {
        "PATH": "/evil",
        "LD_PRELOAD": f"{canary}.so",
        "IFS": "x",
        "ENV": f"$(touch {canary})",
        "a b": "blank",
        "$y": "dollar",
        "status": "done by me",
        "y": f"$(touch {canary}); `touch {canary}`",
        "list": ["; touch x", {"$where": "1"}],
        "a.b": {"$gt": ""},
        "__class__": "x",
        "owner_": None,
    }
    (open_directory / "out.json").write_text(json.dumps(members))
    stages = {
        "1": {"command": 'cat "$filePath" > "$DM_OUTPUT_FILE"'},
        "2": {
            "command": 'printf "<%s>" "$y" "$PATH" \'$list\' "$status" "${owner_:-unset}"; env | grep -c evil; :',
            "runIf": '"$y" != "a" and "$PATH" == "/evil"',
        },
    }
    job = service.run(stages, filePath=str(open_directory / "out.json"))
    assert job["status"] == "done", job.get("errorMessage")
    assert printed(job, "2")[0].startswith(
        f"<{members['y']}></evil><{json.dumps(members['list'])}><done by me><unset>0\n"
    )
    assert job["PATH"] == "/evil" and job["a b"] == "blank" and job["a.b"] == '{"$gt": ""}'
    assert "owner_" not in job


@pytest.mark.parametrize(
    "place", ["; touch {canary}", "$(touch {canary})", "`touch {canary}`", "-P; touch {canary}", "$y"]
)
def test_a_working_directory_is_a_path(service: Running, canary: Path, place: str) -> None:
    place = place.replace("{canary}", str(canary))
    job = service.run({"1": {"command": "echo reached", "workingDir": place}}, y=f"/tmp'; touch {canary}; '")
    [child] = job.getWorkflowStage("1")["childProcesses"].values()
    assert (job["status"], child["exitStatus"], child["stdOut"]) == ("failed", 126, "")


@pytest.mark.parametrize("account", ["-u root", "root; touch x", "../root", "#0", "$(id)", "a\nb", ""])
def test_an_account_is_a_name(service: Running, account: str) -> None:
    workflow = {"name": "account", "owner": OWNER, "userAccount": account, "stages": {"1": {"command": "id -un"}}}
    if account:
        with pytest.raises(InvalidArgument, match="invalid owner name"):
            service.api().upsertWorkflow(workflow)
    else:
        assert service.api().upsertWorkflow(workflow)["userAccount"] == OWNER


@pytest.mark.parametrize("account", ["root", "daemon"])
def test_an_account_that_is_not_listed_runs_nothing(service: Running, account: str) -> None:
    service.workflow({"1": {"command": "id -un"}}, "account", userAccount=account)
    job = service.finished(service.start("account"))
    assert job["status"] == "failed" and "not listed" in job["errorMessage"]


@pytest.mark.parametrize(
    "pattern", ["../../*", "/etc/passwd", "$(touch {canary})", "`touch {canary}`; touch {canary}", "*" * 50]
)
def test_artefacts_are_patterns(service: Running, canary: Path, pattern: str) -> None:
    pattern = pattern.replace("{canary}", str(canary))
    stages = {"1": {"command": "echo made", "artefacts": [pattern, "$y"]}}
    job = service.run(stages, experimentName=EXPERIMENT, y=f"; touch {canary}")
    assert job["status"] == "failed" and printed(job, "1") == ["made\n"], job


def test_names_of_arguments_mean_nothing(service: Running, canary: Path) -> None:
    names = [
        "PATH",
        "LD_PRELOAD",
        "IFS",
        "BASH_ENV",
        "a b",
        "a;touch x",
        "$(id)",
        "_dm_x",
        "__proto__",
        "a.b",
        "$where",
    ]
    arguments = dict.fromkeys(names, f"$(touch {canary})")
    job = service.run({"1": {"command": 'printf "<%s>" "$x"; env | sort'}}, x="1", **arguments)
    assert job["status"] == "done"
    [text] = printed(job, "1")
    assert text.startswith("<1>") and str(canary) not in text
    for name in ("status", "workflow", "errorCode", "id_" * 100, "a\nb"):
        with pytest.raises(InvalidArgument):
            service.start(name="w", **{name: "x"})
