"""What each completion rule wants, waits for and says. Time is handed in, so nothing waits."""

from __future__ import annotations

import os
from math import inf
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ConfigurationError, InvalidArgument
from dm.station.acquisition.completion import SettleTimes, Tracker, Verdict
from dm.station.acquisition.rules import choice
from dm.station.acquisition.rules.base import CompletionRule, Judgement, RuleContext, Seen

TIMES = SettleTimes(closed=1, scanned=10, temporary=100, proven=0.1)


def rule(text: str, root: Path | None, tables: dict[str, dict[str, Any]] | None = None, **arguments: Any) -> Any:
    context = RuleContext(None if root is None else os.fsencode(root), TIMES)
    return choice.build(text, arguments, tables or {}, context)


def tracker(root: Path, text: str, **arguments: Any) -> Tracker:
    return Tracker(os.fsencode(root), rule(text, root, **arguments))


def taken(waiting: Tracker, now: float) -> list[tuple[bytes, str]]:
    """Return path and evidence of what is whole by now."""
    return [(found.path, found.rule) for found in waiting.take(now) if found.verdict is Verdict.READY]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("frame.h5", "other.h5"):
        (tmp_path / name).write_bytes(b"1")
    return tmp_path


def test_the_choice_of_rules(root: Path) -> None:
    assert {"closed", "stable", "marker", "renamed", "hdf5", "message"} <= set(choice.known({}))
    assert rule("closed", root).name == "closed"
    combined = rule("marker+hdf5, message", root)
    assert [part.name for part in combined.parts] == ["all of", "message"]
    assert [part.name for part in combined.parts[0].parts] == ["marker", "hdf5"]


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("closd", {}, "'closd', which is no completion rule here (known: closed, hdf5"),
        ("builtins:print", {}, "no completion rule"),
        ("closed,", {}, "''"),
        ("+".join(["closed"] * 9), {}, "more than 8"),
        ("stable", {"second": 3}, "'second', which no rule chosen knows (known: stable: seconds)"),
        ("stable", {"marker.seconds": 3}, "'marker.seconds'"),
        ("stable", {"seconds": "soon"}, "seconds = 'soon'"),
        ("stable", {"seconds": -1}, "seconds = -1"),
        ("marker", {"marker": "/etc/passwd"}, "relative to the file's directory"),
        ("marker", {"marker": "{name}"}, "another file"),
        ("marker", {"marker": "a/../b"}, "'..' may stand at the beginning only"),
        ("marker", {"marker": "{name.__class__}"}, "only {name}"),
        ("marker", {"marker": "{0}"}, "only {name}"),
        ("marker", {"marker": "{stem}{name}/{stem}{stem}.done"}, "at most three"),
        ("marker", {"marker": "{stem}{stem}{stem}.done"}, "two between slashes"),
        ("renamed", {}, "give final or temporary"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(root: Path, text: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rule(text, root, **arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_host_cannot_be_opened() -> None:
    with pytest.raises(InvalidArgument, match="another host"):
        rule("hdf5", None)
    assert rule("marker", None).name == "marker"


def test_arguments_go_to_the_rules_they_are_for(root: Path) -> None:
    combined = rule("stable+hdf5", root, **{"stable.seconds": "2", "hdf5.seconds": 7, "requires": "/entry"})
    assert [part.settings.seconds for part in combined.parts] == [2, 7]
    assert [part.settings.seconds for part in rule("stable+hdf5", root, seconds=4).parts] == [4, 4]
    station = {"marker": {"marker": "{stem}.ok", "take_markers": True}}
    assert rule("marker", root, station).settings.marker == "{stem}.ok"
    changed = rule("marker", root, station, marker="DONE").settings
    assert (changed.marker, changed.take_markers) == ("DONE", True)


class ThirdParty(CompletionRule):
    """Every file is whole at once."""

    name = "thirdparty"

    def judge(self, seen: Seen, now: float) -> Judgement:
        return Judgement(self.name)

    def explain(self, seen: Seen, now: float) -> str:
        return ""


def test_a_rule_of_the_station(root: Path) -> None:
    tables = {"mine": {"class": f"{__name__}:ThirdParty"}}
    waiting = Tracker(os.fsencode(root), rule("mine", root, tables))
    waiting.offer(b"frame.h5", None, 100)
    assert taken(waiting, 100) == [(b"frame.h5", "thirdparty")]
    choice.check("mine", tables, "dm.toml")
    with pytest.raises(ConfigurationError, match=r"dm.toml.*'other'"):
        choice.check("other", {}, "dm.toml")
    with pytest.raises(ConfigurationError, match="name its module:Class"):
        choice.check("closed", {"other": {}}, "dm.toml")
    with pytest.raises(ConfigurationError, match="not a CompletionRule"):
        rule("mine", root, {"mine": {"class": "pathlib:Path"}})


def test_stable_does_not_care_who_closes(root: Path) -> None:
    waiting = tracker(root, "stable", seconds=5)
    waiting.offer(b"frame.h5", None, 100, closed=True)
    assert waiting.take(101) == []
    why = waiting.waiting_for(b"frame.h5")
    assert why is not None
    assert (why.state, why.rule, why.size) == ("settling", "stable", 1)
    assert "when unchanged for 5 s" in why.why
    with (root / "frame.h5").open("ab") as file:
        file.write(b"2")
    waiting.offer(b"frame.h5", None, 103, closed=True)
    assert waiting.take(107) == []
    assert taken(waiting, 108) == [(b"frame.h5", "stable")]


def test_a_marker_beside_each_file(root: Path) -> None:
    waiting = tracker(root, "marker")
    waiting.offer(b"frame.h5", None, 100, closed=True)
    waiting.offer(b"other.h5", None, 100, closed=True)
    assert waiting.take(101) == []
    assert waiting.next_due() is None  # nothing to do until something happens
    assert waiting.busy == 0
    why = waiting.waiting_for(b"frame.h5")
    assert why is not None
    assert (why.state, why.why) == ("seen", "it waits for its marker 'frame.h5.done'")
    (root / "frame.h5.done").touch()
    assert waiting.rule.wakes(b"frame.h5.done") == (b"frame.h5",)
    assert not waiting.rule.wants(b"frame.h5.done")
    waiting.offer(b"frame.h5", None, 200)
    assert taken(waiting, 200) == [(b"frame.h5", "marker")]
    assert list(waiting.paths()) == [b"other.h5"]


def test_a_marker_of_before_does_not_make_what_is_being_written_whole(root: Path) -> None:
    (root / "frame.h5.done").touch()
    waiting = tracker(root, "marker")
    waiting.offer(b"frame.h5", None, 100)
    with (root / "frame.h5").open("ab") as file:
        file.write(b"2")
    assert waiting.take(101) == []
    assert taken(waiting, 102) == [(b"frame.h5", "marker")]


@pytest.mark.parametrize(
    ("template", "path", "marker", "woken"),
    [
        ("{name}.done", b"s/a.h5", b"s/a.h5.done", b"s/a.h5"),
        ("{stem}.ok", b"s/a.h5", b"s/a.ok", b"s/"),
        (".complete", b"s/a.h5", b"s/.complete", b"s/"),
        ("DONE", b"a.h5", b"DONE", b"/"),
        ("done/{name}", b"s/a.h5", b"s/done/a.h5", b"s/a.h5"),
        ("../{directory}.done", b"t/s/a.h5", b"t/s.done", b"t/"),
        ("./{name}.x", b"a", b"a.x", b"a"),
        ("{name}.done", b"\xff\n", b"\xff\n.done", b"\xff\n"),
    ],
)
def test_where_markers_are(root: Path, template: str, path: bytes, marker: bytes, woken: bytes) -> None:
    made = rule("marker", root, marker=template)
    assert made.marker_of(path) == marker
    assert made.is_marker(marker)
    assert not made.wants(marker)
    assert made.wants(path)
    assert list(made.wakes(marker)) == [woken]
    assert list(made.wakes(path)) == []


def test_a_marker_outside_the_data_directory_is_never_there(root: Path) -> None:
    waiting = tracker(root, "marker", marker="../{directory}.done")
    assert waiting.rule.marker_of(b"a.h5") is None  # type: ignore[attr-defined]
    waiting.offer(b"frame.h5", None, 100)
    assert waiting.take(200) == []
    why = waiting.waiting_for(b"frame.h5")
    assert why is not None
    assert "outside" in why.why


def test_markers_may_be_data(root: Path) -> None:
    waiting = tracker(root, "marker", takeMarkers="true")
    assert waiting.rule.wants(b"frame.h5.done")
    (root / "frame.h5.done").touch()
    waiting.offer(b"frame.h5.done", None, 100, closed=True)
    assert taken(waiting, 101) == [(b"frame.h5.done", "closed")]


def test_markers_of_another_host_are_those_its_walk_lists() -> None:
    from dm.station.acquisition.transports.base import FileStamp

    waiting = Tracker(None, rule("marker", None))
    assert waiting.offer(b"a", FileStamp(1, 1), 100) is None
    assert waiting.offer(b"a", FileStamp(1, 1), 110) is None
    waiting.rule.wakes(b"a.done")
    decided = waiting.offer(b"a", FileStamp(1, 1), 120)
    assert decided is not None
    assert decided.rule == "marker"


def test_final_and_temporary_names(root: Path) -> None:
    final = rule("renamed", root, final="*_master.h5;sub/*.cbf")
    assert [final.wants(name) for name in (b"x_master.h5", b"d/x_master.h5", b"sub/1.cbf", b"1.cbf", b"x.h5")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    temporary = rule("renamed", root, temporary="*.tmp;.*")
    assert [temporary.wants(name) for name in (b"x.tmp", b"d/.x", b"x")] == [False, False, True]
    waiting = Tracker(os.fsencode(root), rule("renamed", root, final="*.h5;*.tmp"))
    (root / "a.tmp").write_bytes(b"1")
    waiting.offer(b"a.tmp", None, 100, closed=True)  # final, whatever it looks like
    assert taken(waiting, 101) == [(b"a.tmp", "renamed")]


def test_only_a_message_counts(root: Path) -> None:
    waiting = tracker(root, "message")
    waiting.offer(b"frame.h5", None, 100, closed=True)
    assert waiting.take(1000) == []
    why = waiting.waiting_for(b"frame.h5")
    assert why is not None
    assert (why.state, why.rule) == ("seen", "message")
    waiting.offer(b"frame.h5", None, 1001, told=True)
    assert taken(waiting, 1001) == [(b"frame.h5", "message")]


def test_a_message_about_a_file_that_is_written_on_counts_no_more(root: Path) -> None:
    waiting = tracker(root, "message")
    waiting.offer(b"frame.h5", None, 100, told=True)
    with (root / "frame.h5").open("ab") as file:
        file.write(b"2")
    assert waiting.take(100) == []
    assert waiting.take(1000) == []
    waiting.offer(b"frame.h5", None, 1001, told=True)
    assert taken(waiting, 1001) == [(b"frame.h5", "message")]


def test_a_message_counts_whatever_the_rule_waits_for(root: Path) -> None:
    for text in ("closed", "stable", "marker", "hdf5", "closed,marker"):
        waiting = tracker(root, text)
        waiting.offer(b"frame.h5", None, 100, told=True)
        assert taken(waiting, 100) == [(b"frame.h5", "message")], text
        waiting.rule.close()


def test_all_of_several(root: Path) -> None:
    waiting = tracker(root, "message+marker")
    waiting.offer(b"frame.h5", None, 100, closed=True)
    assert waiting.take(200) == []
    waiting.offer(b"frame.h5", None, 201, told=True)
    assert waiting.take(202) == []
    why = waiting.waiting_for(b"frame.h5")
    assert why is not None
    assert "marker" in why.why
    (root / "frame.h5.done").touch()
    waiting.offer(b"frame.h5", None, 300)
    assert taken(waiting, 300) == [(b"frame.h5", "message+marker")]


def test_any_of_several(root: Path) -> None:
    waiting = tracker(root, "marker,stable", seconds=50)
    waiting.offer(b"frame.h5", None, 100)
    waiting.offer(b"other.h5", None, 100)
    (root / "frame.h5.done").touch()
    assert taken(waiting, 101) == [(b"frame.h5", "marker")]
    assert taken(waiting, 150) == [(b"other.h5", "stable")]


def test_what_waits_for_ever_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dm.station.acquisition import completion

    monkeypatch.setattr(completion, "_PARKED", 3)
    names = [b"f%d" % number for number in range(5)]
    waiting = tracker(root, "message")
    for name in names:
        (root / os.fsdecode(name)).touch()
        waiting.offer(name, None, 100)
    assert list(waiting.paths()) == names[2:]  # walks offer them again
    waiting.hurry(200)
    for name in names:
        waiting.offer(name, None, 201)
    assert len(waiting) == 5  # at the end each is told of


def test_what_is_gone_or_no_file_any_more_waits_no_longer(root: Path) -> None:
    waiting = tracker(root, "message")
    waiting.offer(b"frame.h5", None, 100)
    waiting.offer(b"other.h5", None, 100)
    (root / "frame.h5").unlink()
    waiting.recheck(200)
    assert [(found.path, found.verdict) for found in waiting.take(200)] == [(b"frame.h5", Verdict.GONE)]
    assert waiting.waiting_for(b"frame.h5") is None
    [left] = waiting.waiting()
    assert left.path == b"other.h5"
    assert waiting.waiting(skip=1) == []


def test_an_open_file_that_only_a_walk_found_waits_long(root: Path) -> None:
    waiting = tracker(root, "closed")
    with (root / "frame.h5").open("ab"):
        waiting.offer(b"frame.h5", None, 100)
        assert waiting.take(110) == []
        assert waiting.take(190) == []
        why = waiting.waiting_for(b"frame.h5")
        assert why is not None
        assert "open for writing" in why.why
        assert taken(waiting, 200) == [(b"frame.h5", "settled")]
        waiting.offer(b"other.h5", None, 300)
        waiting.offer(b"frame.h5", None, 300)
        waiting.hurry(300)  # at the end, what there is counts
        assert {path for path, _evidence in taken(waiting, 310)} == {b"frame.h5", b"other.h5"}


def test_infinite_waits_are_no_dates(root: Path) -> None:
    assert rule("message", root).judge(Seen(b"a", None, 0.0), 5.0).wait == inf
