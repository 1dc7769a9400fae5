"""A workflow at a glance: its stages as they will run, and what jobs are to bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dm.station.processing import graph, regexes, templates

OURS = frozenset({"id", "owner", "stage", "filePath"})
OF_CLEANUP = frozenset({"jobStatus", "failedStage", "errorMessage"})


def stages(workflow: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of a checked workflow in the order of their names, cleanup stages last.

    :returns: of each ``stage`` (its name), ``waitsFor`` (names), ``sets`` (variables its output regexes capture) and
        ``uses`` (arguments its command, conditions and paths speak of: names that no earlier stage sets).
    """
    definitions: Mapping[str, Mapping[str, Any]] = workflow["stages"]
    order = {**graph.dependencies(definitions), **graph.dependencies(definitions, cleanup=True)}
    sets = {
        name: [
            group
            for pattern in definitions[name].get("outputVariableRegexList") or ()
            for group in regexes.groups(pattern)
        ]
        for name in order
    }
    found = []
    for name, waits in order.items():
        stage = definitions[name]
        known = OURS | set().union(*(sets[other] for other in _before(order, name, definitions)))
        if stage.get("cleanup"):
            known |= OF_CLEANUP
        if stage.get("repeatUntil"):
            known |= set(sets[name])
        found.append({"stage": name, "waitsFor": waits, "sets": sets[name], "uses": sorted(_used(stage) - known)})
    return found


def _before(order: graph.Graph, name: str, definitions: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the stages that have ended when one begins."""
    found, left = set(), [name]
    while left:
        for other in order[left.pop()]:
            if other not in found:
                found.add(other)
                left.append(other)
    if definitions[name].get("cleanup"):
        found |= {other for other in order if not definitions[other].get("cleanup")}
    return found


def _used(stage: Mapping[str, Any]) -> set[str]:
    texts = [stage.get(key) or "" for key in ("command", "workingDir", "runIf", "repeatUntil")]
    for key in ("dataDir", "artefacts"):
        value = stage.get(key) or []
        texts += [value] if isinstance(value, str) else value
    return set().union(*(templates.names(text) for text in texts))
