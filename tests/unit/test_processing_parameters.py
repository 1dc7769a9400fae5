"""Arguments that a workflow declares: what a job may give, what is filled in, and the words of a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from dm.station.processing import parameters, specs


def workflow(**arguments: Any) -> dict[str, Any]:
    return specs.checked(
        {"name": "w", "owner": "d123456", "stages": {"1": {"command": "true"}}, "arguments": arguments}
    )


XPCS = {
    "filePath": {"required": True, "description": "Raw file."},
    "qmap": {"required": True},
    "type": {"type": "multiple_choice", "choices": ["Multitau", "Twotime", "Both"], "default": "Multitau"},
    "gpuID": {"type": "int", "default": -1},
    "deltaQ": {"type": "float"},
    "saveG2": {"type": "bool"},
    "demand": {"type": "some_widget", "choices": [1, 2.0, True]},
    "outputDir": {"type": "path"},
    "extra": {"type": "some other widget"},
}


def test_defaults_are_filled_in_and_given_values_stay_as_they_are() -> None:
    given = {"filePath": "a.h5", "qmap": "q.h5", "deltaQ": "0.5", "saveG2": "True", "free": [1], "extra": {"a": 1}}
    assert parameters.apply(workflow(**XPCS), given) == {**given, "type": "Multitau", "gpuID": -1}
    assert parameters.apply(workflow(**XPCS), {**given, "type": "Both", "gpuID": "3", "demand": "2"})["gpuID"] == "3"
    assert parameters.apply(workflow(**XPCS), {**given, "type": ["Both", "Twotime"], "demand": "true"})
    assert parameters.apply(workflow(**XPCS), {**given, "type": None})["type"] == "Multitau"


def test_a_workflow_that_declares_nothing_takes_everything() -> None:
    given = {"a": 1, "b": None}
    assert parameters.apply({"name": "w", "stages": {}}, given) == given


def test_another_way_of_naming_the_input_stands_for_file_path() -> None:
    for key in ("filePathList", "filePathPattern", "dataDir", "fileQuery", "datasetName"):
        assert parameters.apply(workflow(**XPCS), {key: "x", "qmap": "q"})["qmap"] == "q"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"filePath": "a"}, "Argument 'qmap' of workflow 'w' is required and was not given"),
        ({"filePath": "a", "qmap": ""}, "'qmap'"),
        ({"qmap": "q"}, r"'filePath' of workflow 'w' is required \(Raw file\.\)"),
        ({"filePath": "a", "qmpa": "q"}, "'qmap' of workflow 'w' is missing; 'qmpa' was given instead"),
        ({"filePath": "a", "qmap": "q", "type": "Both "}, "'type' has value 'Both ', which is not among its choices"),
        ({"filePath": "a", "qmap": "q", "type": ["Both", "x"]}, "give 'Multitau', 'Twotime', 'Both'"),
        ({"filePath": "a", "qmap": "q", "gpuID": "1.5"}, "'gpuID' has value '1.5', which is not a whole number"),
        ({"filePath": "a", "qmap": "q", "gpuID": True}, "'gpuID' has value True"),
        ({"filePath": "a", "qmap": "q", "deltaQ": "nan"}, "'deltaQ' has value 'nan', which is not a number"),
        ({"filePath": "a", "qmap": "q", "saveG2": "perhaps"}, "is not true or false"),
        ({"filePath": "a", "qmap": "q", "demand": 3}, "is not among its choices; give 1, 2.0, True"),
        ({"filePath": "a", "qmap": "q", "outputDir": 5}, "is not a path"),
        ({"filePath": "a", "qmap": "q", "gpuID": "9" * 100_000}, "is not a whole number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason) as refused:
        parameters.apply(workflow(**XPCS), given)
    assert len(refused.value.message) < 400


def test_lists_and_objects_may_come_as_texts() -> None:
    declared = workflow(names={"type": "list"}, properties={"type": "json"})
    parameters.apply(declared, {"names": "a,b", "properties": '{"a": 1}'})
    parameters.apply(declared, {"names": ["a"], "properties": {"a": 1}})
    for bad in ({"names": 5}, {"properties": "x"}, {"properties": "[1]"}):
        with pytest.raises(InvalidArgument):
            parameters.apply(declared, bad)
