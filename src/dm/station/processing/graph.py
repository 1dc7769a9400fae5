"""Which stage waits for which: the order of a workflow's stages as a graph.

A stage names in ``dependsOn`` the stages it waits for; one without the key waits for the one before it in the sorted
order of names, so that a workflow without the key runs one stage after the other, as published. Cleanup stages are a
graph of their own, which begins when all other stages have ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Graph = dict[str, list[str]]


def dependencies(stages: Mapping[str, Mapping[str, Any]], cleanup: bool = False) -> Graph:
    """Return what each stage waits for.

    :param stages: stage name -> stage; see :func:`dm.station.processing.specs.checked`.
    :param cleanup: of the cleanup stages instead of all others.
    :returns: of these stages, in sorted order, name -> names it waits for directly, sorted, each once. Stages of the
        other kind occur nowhere: all cleanup stages come after everything.
    """
    names = sorted(name for name, stage in stages.items() if bool(stage.get("cleanup")) is cleanup)
    known = set(names)
    graph: Graph = {}
    for name, before in zip(names, [None, *names], strict=False):
        wanted = stages[name].get("dependsOn")
        if wanted is None:
            wanted = [] if before is None else [before]
        graph[name] = sorted(known.intersection(wanted))
    return graph


def cycle(graph: Mapping[str, Iterable[str]]) -> list[str] | None:
    """Return stages that wait for each other in a circle, or ``None``.

    :param graph: see :func:`dependencies`.
    :returns: names such that each waits for the next and the last is the first again.
    """
    done: set[str] = set()
    for start in graph:
        if start in done:
            continue
        path, on_path = [start], {start}
        walks = [iter(graph[start])]
        while walks:  # a walk of its own, as a thousand stages in a row are too deep for recursion
            following = next(walks[-1], None)
            if following is None:
                walks.pop()
                done.add(path[-1])
                on_path.discard(path.pop())
            elif following in on_path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                on_path.add(following)
                walks.append(iter(graph[following]))
    return None


def following(graph: Mapping[str, Iterable[str]], first: str) -> list[str]:
    """Return a stage and all that wait for it, directly or not: what is to run anew when it does.

    :param graph: see :func:`dependencies`. :param first: one of its stages.
    :returns: names in the order of the graph.
    """
    waiting: dict[str, list[str]] = {}
    for name, wanted in graph.items():
        for other in wanted:
            waiting.setdefault(other, []).append(name)
    found, left = {first}, [first]
    while left:
        for name in waiting.get(left.pop(), []):
            if name not in found:
                found.add(name)
                left.append(name)
    return [name for name in graph if name in found]
