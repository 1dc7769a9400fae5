"""What is wrong with a workflow definition, in sentences: values, misspelt keys, stages beside each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dm.station.processing import graph
from dm.station.processing.models import Argument, Retry, Stage, Workflow
from dm.station.processing.values import shown

REPEAT_KEYS = ("repeatPeriod", "repeatUntil", "maxRepeats")
MOST_UNKNOWN = 5
SHORTEST = 5  # of a known key that a misspelt one is compared with: shorter ones are near to too many words
_WORDS = ("has", "is", "holds", "names", "needs")


def sentences(error: ValidationError, workflow: str) -> list[str]:
    """Return what the models refuse, one sentence each, naming stage or argument, key and value."""
    return [_sentence(details, workflow) for details in error.errors(include_url=False)]


def misspelt(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each key that is one edit away from a key DM knows; other unknown keys are kept."""
    name = str(spec.get("name"))[:80]
    yield from _misspelt(spec, Workflow.model_fields, f"Workflow {name!r}")
    for place, kind, model in (("stages", "Stage", Stage), ("arguments", "Argument", Argument)):
        parts = spec.get(place)
        for part, keys in parts.items() if isinstance(parts, dict) else ():
            if isinstance(keys, dict):
                yield from _misspelt(keys, model.model_fields, f"{kind} {str(part)[:80]!r}")


def together(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is wrong between keys and between stages that are each right.

    :param stages: in normal form.
    """
    for name, stage in stages.items():
        where = f"Stage {name[:80]!r}"
        given = [key for key in REPEAT_KEYS if stage.get(key) is not None]
        if given and len(given) != len(REPEAT_KEYS):
            missing = ", ".join(key for key in REPEAT_KEYS if key not in given)
            yield f"{where} has {given[0]} but not {missing}; give all three."
    if all(stage.get("cleanup") for stage in stages.values()):
        yield "The workflow has only cleanup stages; give at least one stage without cleanup."
    unknown = list(_dependencies(stages))
    yield from unknown
    if not unknown:
        for cleanup in (False, True):
            if circle := graph.cycle(graph.dependencies(stages, cleanup)):
                yield _circle(circle, stages)


def _dependencies(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    unknown = 0
    for name, stage in stages.items():
        where = f"Stage {name[:80]!r}: dependsOn names"
        for other in stage.get("dependsOn") or ():
            if other not in stages:
                unknown += 1
                if unknown <= MOST_UNKNOWN:  # looking for the nearest of a thousand takes its time
                    yield f"{where} {shown(other)}, which is no stage;{nearest(other, stages)}"
            elif stages[other].get("cleanup") and not stage.get("cleanup"):
                yield f"{where} {shown(other)}, a cleanup stage; these run after all others, so leave it out."
            elif stage.get("cleanup") and not stages[other].get("cleanup"):
                yield (
                    f"{where} {shown(other)}, which is not a cleanup stage; cleanup stages run after all others "
                    "anyway and may depend on each other only, so leave it out."
                )


def _circle(names: list[str], stages: Mapping[str, Mapping[str, Any]]) -> str:
    if len(names) == 2:
        return f"Stage {names[0][:80]!r}: dependsOn names the stage itself; leave it out."
    chain = [repr(name[:60]) for name in names]
    if len(chain) > 8:
        chain = [*chain[:4], "...", *chain[-3:]]
    plain = next((name for name in names if stages[name].get("dependsOn") is None), None)
    note = "" if plain is None else f" (without dependsOn, {plain[:60]!r} waits for the stage before it by name)"
    return f"Stages wait for each other in a circle: {' -> '.join(chain)}{note}; change one's dependsOn."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: what was perhaps meant, or what there is."""
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f" did you mean {close[0]!r}?"
    some = ", ".join(repr(choice[:40]) for choice in choices[:8])
    return f" there are {some}{' ...' if len(choices) > 8 else ''}."


def _misspelt(keys: Mapping[str, Any], known: Iterable[str], where: str) -> Iterator[str]:
    known = list(known)
    for key in keys:
        if key in known or not isinstance(key, str):
            continue
        for right in known:
            if key.lower() == right.lower() or (len(right) >= SHORTEST and one_edit(key.lower(), right.lower())):
                yield f"{where}: key {key[:80]!r} is unknown; did you mean {right!r}?"
                break


def one_edit(one: str, other: str) -> bool:
    """Say whether texts differ by one character left out, added, replaced, or two neighbours swapped."""
    if len(one) > len(other):
        one, other = other, one
    if len(other) - len(one) > 1 or one == other:
        return False
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    rest, longer = one[start:], other[start:]
    if len(one) != len(other):
        return rest == longer[1:]
    return rest[1:] == longer[1:] or (rest[:2] == longer[:2][::-1] and rest[2:] == longer[2:])


def _sentence(details: ErrorDetails, workflow: str) -> str:
    where, keys = _place(details["loc"], workflow)
    kind = details["type"]
    if kind == "dm":
        text = details["msg"]
    elif kind in {"model_type", "model_attributes_type", "dict_type"}:
        text = f"is not a dictionary but {shown(details['input'])}"
    elif kind == "missing":
        text = f"{'.'.join(keys[:-1])} has no {keys[-1]}; give it"
        return f"{where}: {text}."
    elif kind == "extra_forbidden":
        return f"{where}: key {'.'.join(keys)} is unknown;{nearest(keys[-1], Retry.model_fields)}"
    else:
        text = f"{'.'.join(keys)} is not acceptable: {details['msg'].rstrip('.')}"
    if text[:1].isupper():
        return f"{text}."
    return f"{where} {text}." if text.partition(" ")[0] in _WORDS else f"{where}: {text}."


def _place(location: tuple[int | str, ...], workflow: str) -> tuple[str, list[str]]:
    keys = [str(key) for key in location]
    kinds = {"stages": "Stage", "arguments": "Argument"}
    if len(keys) > 1 and keys[0] in kinds:
        return f"{kinds[keys[0]]} {keys[1][:80]!r}", keys[2:]
    return f"Workflow {workflow[:80]!r}", keys
