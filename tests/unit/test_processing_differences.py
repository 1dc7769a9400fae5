"""What differs between two definitions, and a workflow at a glance."""

from __future__ import annotations

from typing import Any

from dm.station.processing import differences, overview, specs


def workflow(stages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return specs.checked({"name": "w", "owner": "d123456", "stages": stages, **keys})


def test_equal_definitions_have_no_difference() -> None:
    one = workflow({"1": {"command": "true", "timeout": 5}})
    found = differences.difference({**one, "revision": 1, "id": "a" * 24}, {**one, "revision": 2})
    assert found == {
        "changedKeys": [],
        "addedStages": [],
        "removedStages": [],
        "changedStages": {},
        "same": True,
        "text": "",
    }


def test_differences_are_told_by_stage_and_key_and_as_text() -> None:
    old = workflow({"1": {"command": "a\nb\nc", "cleanup": True}, "2": {"command": "x"}, "4": {"command": "y"}})
    new = workflow(
        {"1": {"command": "a\nB\nc", "cleanup": False}, "3": {"command": "z"}, "4": {"command": "y"}},
        arguments={"q": {"choices": [1, True]}},
        description="new",
    )
    found = differences.difference(old, new, ("revision 1", "revision 2"))
    assert found["changedKeys"] == ["description", "arguments"]
    assert (found["addedStages"], found["removedStages"]) == (["3"], ["2"])
    assert found["changedStages"] == {"1": ["command", "cleanup"]} and not found["same"]
    assert found["text"].startswith("--- revision 1\n+++ revision 2\n@@ workflow @@\n")
    for part in (
        "@@ stage 1 @@\n-cleanup: true\n+cleanup: false\n command: |\n     a\n-    b\n+    B\n     c\n",
        "@@ stage 2 @@\n-command: x\n@@ stage 3 @@\n+command: z\n",
    ):
        assert part in found["text"]


def test_long_stages_are_not_compared_line_by_line() -> None:
    old, new = (workflow({"1": {"command": "x\n" * 100_000 + end}}) for end in "ab")
    found = differences.difference(old, new)
    assert found["changedStages"] == {"1": ["command"]} and "too many to show" in found["text"]


def test_a_glance_shows_order_and_what_a_job_is_to_bring() -> None:
    found = overview.stages(
        workflow(
            {
                "0-CLEAN": {"command": 'echo "$jobStatus $failedStage $late"', "cleanup": True},
                "1": {"command": "a $x '$y' ${z:-5} $1 $$", "outputVariableRegexList": ["(?P<q>.*) (?P<r>.)"]},
                "2": {"command": "b $q $filePath", "runIf": '"$mode" == "a"', "dataDir": "$where"},
                "3": {"command": "c $q", "dependsOn": [], "workingDir": "/d/$id"},
                "4": {"command": "d $q", "dependsOn": ["2"], "artefacts": ["$r/*"]},
                "5": {
                    "command": "e",
                    "dependsOn": [],
                    "outputVariableRegexList": ["(?P<late>.)"],
                    "repeatUntil": "$late == 1",
                    "repeatPeriod": 1,
                    "maxRepeats": 2,
                },
            }
        )
    )
    assert [(stage["stage"], stage["waitsFor"], stage["uses"]) for stage in found] == [
        ("1", [], ["x", "y", "z"]),
        ("2", ["1"], ["mode", "where"]),
        ("3", [], ["q"]),
        ("4", ["2"], []),
        ("5", [], []),
        ("0-CLEAN", [], []),
    ]
    assert found[0]["sets"] == ["q", "r"]
