"""Workflow specifications: what is read, what is refused and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument, ObjectNotFound
from dm.station.processing import literals, specs

PYTHON_SPEC = r"""
# A workflow as beamlines write them.
SCRIPTS = "/opt/scripts"
workflow = {
    'name': 'xpcs8-01',   # comment
    'owner': 's8idiuser',
    "stages": {
        '02-RUN': {'command': SCRIPTS + '/run.sh "$filePath" '
                              "--args=\"$args\" " \
                              + '| tee \$x',
                   'outputVariableRegexList': ['(?P<x>\d+)', "Queue: (?P<q>.*)"],
                   'parallelExec': True},
        '01-START': {'command': ("date "
                                 "+%Y")},
    },
    'version': 3,
}
"""


def spec(**changes: object) -> dict[str, object]:
    return {"name": "w", "owner": "d123456", "stages": {"1": {"command": "true"}}, **changes}


def stage(**keys: object) -> dict[str, object]:
    return spec(stages={"01": {"command": "true", **keys}})


def test_a_python_spec_is_read_with_comments_joins_continuations_and_names(tmp_path: Path) -> None:
    file = tmp_path / "spec.py"
    file.write_text(PYTHON_SPEC)
    workflow = specs.checked(specs.read(file))
    assert list(workflow["stages"]) == ["01-START", "02-RUN"]
    assert workflow["stages"]["02-RUN"]["command"] == '/opt/scripts/run.sh "$filePath" --args="$args" | tee \\$x'
    assert workflow["stages"]["01-START"]["command"] == "date +%Y"
    assert (workflow["description"], workflow["userAccount"], workflow["version"]) == ("", "s8idiuser", 3)


def test_a_bare_dictionary_and_a_json_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("# x\n" + repr(spec()))
    (tmp_path / "a.json").write_text(json.dumps(spec()))
    assert specs.read(tmp_path / "a.py") == specs.read(tmp_path / "a.json") == spec()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import os", "only a dictionary literal"),
        ("{'a': __import__('os').system('touch canary')}", "not a plain value"),
        ("x = open('canary', 'w')", "not a plain value"),
        ("{'a': f'{1}'}", "not a plain value"),
        ("{'a': [x for x in 'ab']}", "not a plain value"),
        ("{'a': b'bytes'}", "not a plain value"),
        ("{**{}}", "not a plain value"),
        ("{'a': 'x' * 999999999}", "not a plain value"),
        ("{1: 2}", "is not a text"),
        ("{'a': 1, 'a': 2}", "occurs twice"),
        ("{'a': 'x' + 1}", "joins texts only"),
        ("[1, 2]", "no dictionary"),
        ("{'a': ", "line 1"),
        ("{'a': '\0'}", "null bytes"),
        ("[" * 5000, "nest"),
        ("{'a': " + "-" * 100_000 + "1}", "nest"),
        ("{'a': " + "[" * 60 + "]" * 60 + "}", "nests deeper"),
        ('a = "' + "x" * 100 + '"\n' + "a = a + a\n" * 60, "longer than"),
        ("{" + "'a':1," * 200_000 + "}", "larger than"),
    ],
)
def test_what_is_not_a_plain_dictionary_is_refused_and_never_executed(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgument, match=reason):
        literals.read_python(text)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": 1, "a": 2}', "[]", '{"a": }', "[" * 100_000, '{"a":' + "[" * 60 + "]" * 60 + "}", "\xff"],
)
def test_json_is_strict(text: str) -> None:
    with pytest.raises(InvalidArgument):
        literals.read_json(text.encode("latin-1"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ObjectNotFound, match=r"nope\.py"):
        specs.read(tmp_path / "nope.py")


def test_unknown_keys_are_kept_and_execution_records_dropped() -> None:
    given = spec(arguments={"smooth": {"required": True}}, extra=[1])
    given["stages"] = {"1": {"command": "true", "dataDir": ["/a"], "note": 1, "childProcesses": {}, "status": "done"}}
    checked = specs.checked(given)
    assert checked["extra"] == [1] and checked["arguments"] == {"smooth": {"required": True}}
    assert checked["stages"]["1"] == {"command": "true", "dataDir": ["/a"], "note": 1}


@pytest.mark.parametrize(("given", "kept"), [("a" * 24, True), ("", False), (None, False)])
def test_an_empty_id_is_none(given: object, kept: bool) -> None:
    """dmax cannot leave the id out of a new workflow and sends an empty text."""
    assert ("id" in specs.checked(spec(id=given))) is kept


def test_the_example_is_a_workflow() -> None:
    assert list(specs.checked(specs.EXAMPLE)["stages"])[-1] == "06-DONE"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "is a dictionary"),
        (spec(name=""), "needs a name"),
        (spec(name="a\nb"), "control characters"),
        (spec(name="\ud800"), "control characters|JSON"),
        (spec(owner=""), "names no owner"),
        (spec(owner="a/b"), "invalid owner name"),
        (spec(userAccount="-u root"), "invalid owner name"),
        (spec(stages={}), "no stages"),
        (spec(stages=None), "no stages"),
        (spec(stages={"1": {}}), "'1' has no command"),
        (spec(stages={"1": {"command": " "}}), "'1' has no command"),
        (spec(stages={"": {"command": "x"}}), "Stage name"),
        (spec(stages={"1": "true"}), "not a dictionary"),
        (spec(id="zz"), "24 hexadecimal"),
        (spec(version=[1]), "version"),
        (spec(description=1), "description"),
        (spec(arguments={"workflow": {}}), "'workflow' is reserved"),
        (stage(command="a\0b"), "NUL"),
        (stage(outputVariableRegexList="x"), "not a list"),
        (stage(outputVariableRegexList=["(?P<x>"]), r"Stage '01': output regex '\(\?P<x>' does not compile"),
        (stage(outputVariableRegexList=[r"(?P<a>x)(?=y)"]), r"Stage '01'.*look-around"),
        (stage(outputVariableRegexList=[r"(a)\1"]), "does not compile"),
        (stage(outputVariableRegexList=["(?P<id>.*)"]), "reserved name 'id'"),
        (stage(outputVariableRegexList=["(?P<x>[ab]{0,999}a[ab]{999})c"]), "too complex"),
        (stage(outputVariableRegexList=[1]), "is not a text"),
        (stage(repeatPeriod=1), "but not repeatUntil, maxRepeats"),
        (stage(repeatPeriod=1, repeatUntil="True"), "but not maxRepeats"),
        (stage(repeatPeriod="x", repeatUntil="True", maxRepeats=1), "repeatPeriod 'x' is not a number between 0"),
        (stage(repeatPeriod=-1, repeatUntil="True", maxRepeats=1), "repeatPeriod -1"),
        (stage(repeatPeriod=1, repeatUntil="True", maxRepeats=0), "maxRepeats 0"),
        (stage(repeatPeriod=1, repeatUntil="os.system(1)", maxRepeats=1), "Stage '01': repeatUntil"),
        (stage(runIf="$a =="), "Stage '01': runIf"),
        (stage(runIf=5), "Stage '01': runIf"),
        (stage(workingDir=1), "workingDir"),
        (stage(parallelExec="perhaps"), "parallelExec"),
        (stage(timeout=0), "timeout 0 is not a number between 0"),
        (stage(timeout=True), "timeout True"),
        (stage(timeout=float("inf")), "timeout inf"),
        (stage(timeout=[10]), r"timeout \[10\]"),
        (stage(retry=3), r"Stage '01': retry 3 is not an object; write"),
        (stage(retry={"backoff": 1}), "Stage '01': retry has no count"),
        (stage(retry={"count": 1.5}), "retry.count 1.5 is not a whole number between 0 and 100"),
        (stage(retry={"count": 1, "backof": 5}), "Stage '01': key retry.backof is unknown; did you mean 'backoff'"),
        (stage(retry={"count": 1, "backoff": -1}), "retry.backoff -1"),
        (stage(onFailure="ignore"), "Stage '01': onFailure 'ignore' is neither 'fail' nor 'continue'"),
        (stage(onLost=5), "onLost 5 is neither 'fail' nor 'rerun'"),
        (stage(cleanup="perhaps"), "cleanup 'perhaps' is neither true nor false"),
        (stage(cleanup=True), "only cleanup stages"),
        (stage(dependsOn=5), "dependsOn 5 is not a list"),
        (stage(dependsOn=[""]), "dependsOn holds '', which is no stage name"),
        (stage(dependsOn=["02"]), "Stage '01': dependsOn names '02', which is no stage; there are '01'"),
        (stage(dependsOn=["01"]), "Stage '01': dependsOn names the stage itself"),
        (stage(executor="; rm"), "executor '; rm' is not the name of an executor"),
        (stage(artefacts={"a": 1}), "artefacts .* is not a list"),
        (stage(artefacts=["a\0b"]), "artefacts holds"),
        (stage(dataDir=5), "dataDir 5"),
        (stage(parallelexec=True), "Stage '01': key 'parallelexec' is unknown; did you mean 'parallelExec'"),
        (stage(dependOn=[]), "did you mean 'dependsOn'"),
        (stage(timeuot=5), "did you mean 'timeout'"),
        (stage(runlf="True"), "did you mean 'runIf'"),
        (spec(maxConcurentJobs=5), "Workflow 'w': key 'maxConcurentJobs' is unknown; did you mean 'maxConcurrentJobs'"),
        (spec(priority=101), "Workflow 'w': priority 101 is not a whole number between -100 and 100"),
        (spec(priority="high"), "priority 'high'"),
        (spec(maxConcurrentJobs=0), "maxConcurrentJobs 0"),
        (spec(onLost="retry"), "Workflow 'w': onLost 'retry' is neither 'fail' nor 'rerun'"),
        (spec(arguments=[1]), "arguments .* is not an object"),
        (spec(arguments={"a": 5}), "Argument 'a' is not a dictionary but 5"),
        (spec(arguments={"a": {"choices": "xy"}}), "Argument 'a': choices 'xy' is not a list"),
        (spec(arguments={"a": {"choices": [[]]}}), "Argument 'a': choices holds"),
        (spec(arguments={"a": {"required": "maybe"}}), "Argument 'a': required 'maybe'"),
        (spec(arguments={"a": {"type": "multiple_choice"}}), "Argument 'a' is of type 'multiple_choice' but has no"),
        (spec(arguments={"a": {"type": "flaot"}}), "did you mean 'float'"),
        (spec(arguments={"a": {"type": "int", "default": "x"}}), "Argument 'a': default 'x' is not a whole number"),
        (spec(arguments={"a": {"choices": [1, 2], "default": 3}}), "default 3 is not among its choices; give 1, 2"),
        (spec(arguments={"a": {"requierd": True}}), "Argument 'a': key 'requierd' is unknown"),
        (stage(extra=float("nan")), "not JSON"),
        (stage(extra="x" * (1 << 20)), "larger than"),
    ],
)
def test_a_bad_specification_is_refused_in_one_sentence(given: object, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as refused:
        specs.checked(given)
    assert len(refused.value.message) < 700 and "\n" not in refused.value.message


def graph(**wanted: list[str] | None) -> dict[str, object]:
    stages = {name: {"command": "true", **({} if on is None else {"dependsOn": on})} for name, on in wanted.items()}
    for name, stage_ in stages.items():
        if name.startswith("z"):
            stage_["cleanup"] = True
    return spec(stages=stages)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            graph(alpha=[], beta=["alpa"]),
            "Stage 'beta': dependsOn names 'alpa', which is no stage; did you mean 'alpha'",
        ),
        (graph(a=["c"], b=["a"], c=["b"]), "in a circle: 'a' -> 'c' -> 'b' -> 'a'; change"),
        (graph(a=[], b=["c"], c=None), r"circle: 'b' -> 'c' -> 'b' \(without dependsOn, 'c' waits for"),
        (graph(a=None, b=["z1"], z1=None), "Stage 'b': dependsOn names 'z1', a cleanup stage"),
        (graph(a=None, z1=["a"]), "Stage 'z1': dependsOn names 'a', which is not a cleanup stage"),
        (graph(a=None, z1=["z2"], z2=["z1"]), "circle: 'z1' -> 'z2' -> 'z1'"),
        (graph(**{f"s{n:03d}": [f"s{(n + 1) % 500:03d}"] for n in range(500)}), r"'s000' -> 's001' .* \.\.\. -> "),
    ],
)
def test_dependencies_that_cannot_be_are_refused_by_name(given: object, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as refused:
        specs.checked(given)
    assert len(refused.value.message) < 700


@pytest.mark.timeout(30)
def test_thousands_of_unknown_names_take_no_time() -> None:
    wanted = [f"stage-x{number:03d}" for number in range(50)]
    found = specs.problems(graph(**{f"stage-{number:03d}": wanted for number in range(1_000)}))
    assert 0 < len(found) < 10 and "did you mean 'stage-000'" in found[0]


def test_new_keys_come_in_normal_form_and_defaults_stay_away() -> None:
    given = graph(a=[], b=None, z1=None)
    given["stages"]["b"] |= {
        "timeout": "90",
        "retry": {"count": "2"},
        "onFailure": "continue",
        "onLost": "rerun",
        "executor": "dask",
        "artefacts": "results/*.h5",
        "dependsOn": "a",
        "dataDir": "/data",
        "cleanup": "no",
    }
    given |= {"priority": "5", "maxConcurrentJobs": 3, "onLost": "fail", "revision": 7, "revisionUser": "d123456"}
    given["arguments"] = {"q": "a description", "r": None, "s": {"required": "yes"}}
    checked = specs.checked(given)
    assert checked["stages"] == {
        "a": {"command": "true", "dependsOn": []},
        "b": {
            "command": "true",
            "timeout": 90.0,
            "retry": {"count": 2},
            "onFailure": "continue",
            "onLost": "rerun",
            "executor": "dask",
            "artefacts": ["results/*.h5"],
            "dependsOn": ["a"],
            "dataDir": "/data",
            "cleanup": False,
        },
        "z1": {"command": "true", "cleanup": True},
    }
    assert (checked["priority"], checked["maxConcurrentJobs"], checked["onLost"]) == (5, 3, "fail")
    assert checked["arguments"] == {"q": {"description": "a description"}, "r": {}, "s": {"required": True}}
    assert not {"revision", "revisionUser"} & checked.keys()
    assert specs.checked(checked) == checked
    assert specs.checked(spec()) == spec(description="", userAccount="d123456")


def test_unknown_keys_that_are_no_misspelt_ones_are_kept() -> None:
    given = stage(note=1, tag="x", args="-v") | {"ids": [1], "beamline": "8-ID", "game": 1}
    assert specs.problems(given) == []
    assert specs.checked(given)["stages"]["01"]["args"] == "-v"


def test_all_problems_are_told_at_once() -> None:
    given = spec(stages={"1": {"command": ""}, "2": {"command": "x", "timeout": -1, "dependon": []}}, priority=1000)
    found = specs.problems(given)
    for word in ("'1' has no command", "timeout -1", "'dependsOn'", "priority 1000"):
        assert sum(word in sentence for sentence in found) == 1
    assert len(found) == 4
    assert specs.problems([]) == ["A workflow is a dictionary, not list."]


def test_large_repeat_counts_and_texts_for_numbers_are_normal() -> None:
    checked = specs.checked(stage(repeatPeriod="10", repeatUntil='"$a" == "b"', maxRepeats=999999))
    assert checked["stages"]["01"]["maxRepeats"] == 999999
