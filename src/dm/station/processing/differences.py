"""What differs between two workflow definitions: by stage and key, and as text."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

MAX_LINES = 4_000  # of one stage; comparing takes longer than its square
NOT_COMPARED = frozenset({"id", "revision"})


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, str] = ("old", "new")
) -> dict[str, Any]:
    """Compare two definitions.

    :param old: :param new: workflows in normal form. :param names: how the text calls them.
    :returns: ``addedStages`` and ``removedStages`` (names), ``changedStages`` (name -> keys that differ),
        ``changedKeys`` (of the workflow itself), ``same`` (whether there is no difference) and ``text``: a unified
        diff of both, part by part, empty when they are the same.
    """
    before, after = old.get("stages", {}), new.get("stages", {})
    changed = {name: _keys(before[name], after[name]) for name in before if name in after}
    result: dict[str, Any] = {
        "changedKeys": [key for key in _keys(old, new) if key != "stages"],
        "addedStages": [name for name in after if name not in before],
        "removedStages": [name for name in before if name not in after],
        "changedStages": {name: keys for name, keys in changed.items() if keys},
    }
    result["same"] = not any(result.values())
    result["text"] = "" if result["same"] else "\n".join(_text(old, new, result, names)) + "\n"
    return result


def _keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ; JSON's true is not its 1."""
    everything = dict.fromkeys([*old, *new])
    return [
        key
        for key in everything
        if key not in NOT_COMPARED
        and (key not in old or key not in new or _canonical(old[key]) != _canonical(new[key]))
    ]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _text(
    old: Mapping[str, Any], new: Mapping[str, Any], found: Mapping[str, Any], names: tuple[str, str]
) -> Iterator[str]:
    yield f"--- {names[0]}"
    yield f"+++ {names[1]}"
    keys = found["changedKeys"]
    yield from _part(
        "workflow", {key: old[key] for key in keys if key in old}, {key: new[key] for key in keys if key in new}
    )
    before, after = old.get("stages", {}), new.get("stages", {})
    for name in sorted({*found["addedStages"], *found["removedStages"], *found["changedStages"]}):
        yield from _part(f"stage {name}", before.get(name), after.get(name))


def _part(title: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    before, after = [list(_lines(part)) if part else [] for part in (old, new)]
    if len(before) > MAX_LINES or len(after) > MAX_LINES:
        yield f"@@ {title} @@"
        yield f" (differs; {len(before)} and {len(after)} lines are too many to show)"
        return
    for line in difflib.unified_diff(before, after, lineterm="", n=2):
        if not line.startswith(("---", "+++")):
            yield f"@@ {title} @@" if line.startswith("@@") else line


def _lines(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield keys and values, one line each; of texts with line breaks and of lists one line for each line or item."""
    for key in sorted(part):
        value = part[key]
        if isinstance(value, str) and "\n" in value:
            yield f"{key}: |"
            yield from (f"    {line}" for line in value.split("\n"))
        elif isinstance(value, list | dict) and value:
            yield f"{key}:"
            yield from (f"    {line}" for line in json.dumps(value, indent=2, ensure_ascii=False).split("\n"))
        else:
            yield f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
