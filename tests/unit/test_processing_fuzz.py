"""Anything at all as a definition, a condition, a command or a value: an answer or a refusal, never more."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dm.common.errors import InvalidArgument, ProcessingError
from dm.station.processing import expressions, inputs, parameters, specs, structured, substitution
from dm.station.processing.models import Argument, Stage, Workflow

CALM: Any = {"deadline": None, "suppress_health_check": list(HealthCheck)}
KEYS = [*Workflow.model_fields, *Stage.model_fields, *Argument.model_fields, "count", "backoff", "x", "__class__"]
KEYS += ["__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "model_fields", "model_config", "a.b", "$a", ""]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["true", "1", "fail", "$x == 1", "(?P<x>.*)", "10", "d123456", "01", "02", "a" * 24, 10**400]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), inner)
    ),
    max_leaves=8,
)
STAGE = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6).map(lambda keys: {"command": "true", **keys})
SPEC = st.fixed_dictionaries(
    {"name": st.just("w"), "stages": st.dictionaries(st.sampled_from(["01", "02", "03", "a b"]), STAGE, max_size=4)},
    optional={key: VALUES for key in Workflow.model_fields if key not in {"name", "stages"}},
)
WORDS = ["$a", '"$a"', "'$b'", "${c}", "$", '"', "'", "\\", "(", ")", "[", "]", ",", " and ", " or ", " not ", " in "]
WORDS += [
    "==",
    "<",
    "+",
    "*",
    "%",
    "/",
    "**",
    "-",
    "1",
    "0",
    "1e309",
    "'x'",
    "len",
    "int",
    ".lower()",
    "lambda",
    ":",
    "x",
]
EXPRESSION = st.lists(st.sampled_from(WORDS), max_size=14).map("".join)
TEXT = st.text(max_size=40) | st.text(alphabet="ab'\"\\$`;|&()<> \n{}", max_size=20)
PIECES = [
    "$x",
    "${x}",
    "'",
    '"',
    "`",
    "$(",
    ")",
    "\\",
    "<<E\n",
    "E\n",
    "#",
    "\n",
    ";",
    " ",
    "echo ",
    "a",
    "|",
    "&&",
    "{",
    "}",
]


@settings(max_examples=100, **CALM)
@given(SPEC | VALUES)
def test_a_definition_is_accepted_or_refused(spec: Any) -> None:
    found = specs.problems(spec, "d123456")
    assert all(problem.endswith((".", "?")) and "\n" not in problem and len(problem) < 900 for problem in found)
    try:
        workflow = specs.checked(spec, "d123456")
    except InvalidArgument as error:
        assert error.message == found[0]
        return
    assert found == [] and specs.checked(workflow) == workflow
    assert json.loads(json.dumps(workflow)) == workflow


@settings(max_examples=150, **CALM)
@given(EXPRESSION, st.dictionaries(st.sampled_from("abc"), st.one_of(TEXT, st.integers(), st.floats(), st.booleans())))
def test_a_condition_is_true_false_or_refused(text: str, variables: dict[str, Any]) -> None:
    try:
        expressions.check(text, "runIf")
    except InvalidArgument:
        return
    try:
        assert expressions.evaluate(text, variables, "runIf") in (True, False)
    except InvalidArgument as error:
        assert "runIf" in error.message


@settings(max_examples=80, **CALM)
@given(TEXT, TEXT)
def test_a_value_never_changes_what_a_condition_says(one: str, other: str) -> None:
    values = {"a": one, "b": other}
    for quote in "\"'":
        assert expressions.evaluate(f"{quote}$a{quote} == {quote}$b{quote}", values, "runIf") is (one == other)
        assert expressions.evaluate(f"{quote}<$a>{quote} != {quote}<${{b}}>{quote}", values, "runIf") is (one != other)
        assert expressions.evaluate(f"{quote}$a{quote} in [{quote}$b{quote}]", values, "runIf") is (one == other)


@settings(max_examples=40, **CALM)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join), st.sampled_from(["touch canary", "`touch canary`"]))
def test_no_command_makes_syntax_of_a_value(tmp_path: Path, command: str, attack: str) -> None:
    value = f"';\"{attack}\n{attack};$({attack})"
    try:
        text = substitution.script(command, {"x": value})
    except InvalidArgument:
        return
    subprocess.run(
        ["/bin/sh"],
        input=text,
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "E"])


@settings(max_examples=60, **CALM)
@given(st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")))
def test_structured_output_is_values_or_refused(data: bytes) -> None:
    try:
        found = structured.values(data)
    except ProcessingError as error:
        assert error.message.endswith(".") and "\n" not in error.message
        return
    assert all(isinstance(value, str | int | float | bool) for value in found.values())
    assert all(substitution.bad_value(name, str(value)) is None for name, value in found.items())


@settings(max_examples=40, **CALM)
@given(st.dictionaries(st.sampled_from([*inputs.KEYS, "experimentName", "dataset"]), VALUES, max_size=3))
def test_an_input_specification_is_files_or_refused(arguments: dict[str, Any]) -> None:
    try:
        found = inputs.files(arguments, 10, "/nonexistent", False)
    except InvalidArgument as error:
        assert error.message.startswith("Invalid input file specification. ")
        return
    assert found and all(isinstance(path, str) and path for path in found)


@settings(max_examples=40, **CALM)
@given(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), st.dictionaries(st.sampled_from("abc"), VALUES))
def test_arguments_fit_or_are_refused(declared: dict[str, Any], arguments: dict[str, Any]) -> None:
    spec = {"name": "w", "owner": "d123456", "stages": {"1": {"command": "true"}}, "arguments": declared}
    if specs.problems(spec):
        return
    try:
        found = parameters.apply(specs.checked(spec), arguments)
    except InvalidArgument as error:
        assert error.message.startswith("Argument ")
        return
    assert set(found) >= set(arguments)
