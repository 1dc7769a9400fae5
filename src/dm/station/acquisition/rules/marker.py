"""The rule of writers that leave a marker: ``frame.h5`` is whole when ``frame.h5.done`` exists."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, field_validator

from dm.common.paths import display, encode
from dm.station.acquisition.rules.base import CompletionRule, Judgement, RuleContext, RuleSettings, Seen, wait
from dm.station.acquisition.rules.settle import Closed, ClosedSettings

_WORD = re.compile(r"\{(\w*)\}")
_WORDS = frozenset({"name", "stem", "directory"})
_MOST_WORDS = 3  # each more makes a long name cost two hundred times as much to compare
_REMEMBERED = 200_000  # markers of another host


class MarkerSettings(RuleSettings):
    """Settings of :class:`Marker`.

    :param marker: path of the marker, relative to the file's directory. ``{name}`` stands for the file's name,
        ``{stem}`` for it without its last extension, ``{directory}`` for the name of its directory. Without any of
        them one marker stands for all files of the directory.
    :param take_markers: whether markers are data, too.
    """

    marker: str = "{name}.done"
    take_markers: bool = Field(default=False)

    @field_validator("marker")
    @classmethod
    def _usable(cls, value: str) -> str:
        parts = value.split("/")
        words = _WORD.findall(value)
        unknown = set(words) - _WORDS
        if unknown or "{" in _WORD.sub("", value) or "}" in _WORD.sub("", value):
            raise ValueError("only {name}, {stem} and {directory} are known in braces")
        if len(words) > _MOST_WORDS or any(len(_WORD.findall(part)) > _MOST_WORDS - 1 for part in parts):
            raise ValueError("at most three of {name}, {stem} and {directory} may stand in it, two between slashes")
        if value.startswith("/") or "\0" in value or parts[-1] in ("", ".", "..") or value == "{name}":
            raise ValueError("give the name of another file, relative to the file's directory, such as {name}.done")
        if ".." in parts[sum(part == ".." for part in parts) :]:
            raise ValueError("'..' may stand at the beginning only")
        return value


class Marker(CompletionRule):
    """A marker file exists. The marker must be made after its file has been written and closed."""

    name = "marker"
    summary = "a marker file such as {name}.done exists"
    settings_model: ClassVar[type[RuleSettings]] = MarkerSettings

    def __init__(self, settings: RuleSettings, context: RuleContext) -> None:
        super().__init__(settings, context)
        parts = self.settings.marker.split("/")
        self._up = sum(part == ".." for part in parts)
        below = [part for part in parts if part not in ("..", ".")]
        self._depth = len(below)
        self._by_name = self._up == 0 and self.settings.marker.count("{name}") == 1 and "{stem}" not in below[-1]
        expression = "/".join(_expression(part) for part in below)
        self._pattern = re.compile(b"(?:.*/)?" + encode(expression), re.DOTALL)
        self._closed = Closed(ClosedSettings(), context)
        self._noticed: dict[bytes, None] = {}

    def marker_of(self, path: bytes) -> bytes | None:
        """Return the marker of a file; ``None`` when it would lie outside the data directory."""
        directory, name = os.path.split(path)
        place = os.path.basename(directory) or os.path.basename((self.context.root or b"").rstrip(b"/"))
        values = {"name": name, "stem": os.path.splitext(name)[0], "directory": place}
        text = _fill(self.settings.marker, values)
        found = os.path.normpath(os.path.join(directory, text))
        return None if found == b".." or found.startswith(b"../") else found

    def is_marker(self, path: bytes) -> bool:
        """Whether a name is one of a marker."""
        return self._pattern.fullmatch(path) is not None

    def wants(self, path: bytes) -> bool:
        """See :class:`CompletionRule`."""
        return bool(self.settings.take_markers) or not self.is_marker(path)

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        if self.is_marker(seen.path):
            return self._closed.judge(seen, now)
        # A marker may be left over from an earlier file of that name: what just changed waits a moment.
        left = self.context.times.closed - (now - seen.since)
        if left > 1e-6:
            return wait(left)
        marker = self.marker_of(seen.path)
        return Judgement(self.name) if marker is not None and self._exists(marker) else wait(float("inf"))

    def _exists(self, marker: bytes) -> bool:
        if self.context.root is None:
            return marker in self._noticed
        return os.path.lexists(self.absolute(marker))

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        if self.is_marker(seen.path):
            return self._closed.explain(seen, now)
        marker = self.marker_of(seen.path)
        if marker is None:
            return "its marker would lie outside the data directory"
        return f"it waits for its marker {display(marker)!r}"

    def wakes(self, path: bytes) -> Sequence[bytes]:
        """See :class:`CompletionRule`."""
        match = self._pattern.fullmatch(path)
        if match is None:
            return ()
        if self.context.root is None and len(self._noticed) < _REMEMBERED:
            self._noticed[path] = None
        directory = path
        for _ in range(self._depth):
            directory = os.path.dirname(directory)
        if self._by_name:
            return (os.path.join(directory, match["name"]),)
        return (directory + b"/",)


def _expression(part: str) -> str:
    """Return a regular expression for one component of a marker."""
    made = ""
    for index, piece in enumerate(_WORD.split(part)):
        if index % 2 == 0:
            made += re.escape(piece)
        else:
            made += "(?P<name>[^/]+)" if piece == "name" and "(?P<name>" not in made else "[^/]+"
    return made


def _fill(template: str, values: dict[str, bytes]) -> bytes:
    pieces = _WORD.split(template)
    return b"".join(values[piece] if index % 2 else encode(piece) for index, piece in enumerate(pieces))
