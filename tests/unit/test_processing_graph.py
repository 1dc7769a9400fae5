"""The order of stages: published without dependsOn, a graph with it."""

from __future__ import annotations

from dm.station.processing import graph


def stages(**wanted: list[str] | None) -> dict[str, dict[str, object]]:
    return {
        name: {"command": "true", **({} if given is None else {"dependsOn": given})} for name, given in wanted.items()
    }


def test_without_the_key_one_stage_follows_the_other_by_name() -> None:
    assert graph.dependencies(stages(c=None, a=None, b=None)) == {"a": [], "b": ["a"], "c": ["b"]}


def test_with_the_key_a_stage_waits_for_what_it_names() -> None:
    given = stages(a=None, b=["a"], c=["a", "a"], d=["c", "b"], e=[], f=None)
    assert graph.dependencies(given) == {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": [], "f": ["e"]}


def test_cleanup_stages_are_a_graph_of_their_own() -> None:
    given = stages(a=None, b=None, c=None, d=None, e=["b"])
    given["b"]["cleanup"] = given["d"]["cleanup"] = given["e"]["cleanup"] = True
    given["a"]["cleanup"] = False
    assert graph.dependencies(given) == {"a": [], "c": ["a"]}
    assert graph.dependencies(given, cleanup=True) == {"b": [], "d": ["b"], "e": ["b"]}
    assert graph.dependencies({}) == {}


def test_a_circle_is_told_in_order() -> None:
    assert graph.cycle(graph.dependencies(stages(a=["c"], b=["a"], c=["b"]))) == ["a", "c", "b", "a"]
    assert graph.cycle(graph.dependencies(stages(a=["a"]))) == ["a", "a"]
    assert graph.cycle(graph.dependencies(stages(a=[], b=["c"], c=None))) == ["b", "c", "b"]
    assert graph.cycle(graph.dependencies(stages(a=None, b=["a"], c=["a"], d=["b", "c"]))) is None


def test_long_rows_and_dense_graphs_take_no_time() -> None:
    row = {f"{number:05d}": {"command": "true"} for number in range(5_000)}
    assert graph.cycle(graph.dependencies(row)) is None
    names = list(row)[:300]
    dense = {name: {"dependsOn": names[:number]} for number, name in enumerate(names)}
    assert graph.cycle(graph.dependencies(dense)) is None
    assert len(graph.following(graph.dependencies(row), "00001")) == 4_999


def test_what_follows_a_stage_is_what_waits_for_it() -> None:
    found = graph.dependencies(stages(a=None, b=["a"], c=["a"], d=["b"], e=[]))
    assert graph.following(found, "b") == ["b", "d"]
    assert graph.following(found, "a") == ["a", "b", "c", "d"]
    assert graph.following(found, "e") == ["e"]
