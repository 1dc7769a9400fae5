"""The rule of writers that rename: a file has its final name only when it is whole."""

from __future__ import annotations

import fnmatch
import re
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from dm.common.paths import decode
from dm.station.acquisition.rules.base import CompletionRule, Judgement, RuleContext, RuleSettings, Seen
from dm.station.acquisition.rules.settle import Closed, ClosedSettings


class RenamedSettings(RuleSettings):
    """Settings of :class:`Renamed`: shell wildcards, several separated by ``;``, matched with the file name, or with
    the path below the data directory when they contain ``/``.

    :param final: names of whole files; empty: all that are not temporary.
    :param temporary: names to ignore for ever.
    """

    final: str = Field(default="")
    temporary: str = Field(default="")

    @field_validator("final", "temporary", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return ";".join(str(item) for item in value) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _some(self) -> RenamedSettings:
        if not self.final and not self.temporary:
            raise ValueError("give final or temporary, e.g. final:*_master.h5 or temporary:*.tmp;*.part")
        return self


class Renamed(CompletionRule):
    """Its name is a final one. Temporary names are ignored for ever, not even reported at the end."""

    name = "renamed"
    summary = "its name matches the final pattern; temporary names are ignored"
    settings_model: ClassVar[type[RuleSettings]] = RenamedSettings

    def __init__(self, settings: RuleSettings, context: RuleContext) -> None:
        super().__init__(settings, context)
        self._final = _patterns(self.settings.final)
        self._temporary = _patterns(self.settings.temporary)
        # A final name is final even if it ends like a temporary one.
        self._closed = Closed(ClosedSettings(temporary_seconds=context.times.closed), context)

    def wants(self, path: bytes) -> bool:
        """See :class:`CompletionRule`."""
        return not _any(self._temporary, path) and (not self._final or _any(self._final, path))

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        answer = self._closed.judge(seen, now)
        return Judgement(self.name) if answer.fired else answer

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        return self._closed.explain(seen, now)

    def came_back(self, path: bytes) -> None:
        """See :class:`CompletionRule`."""
        self._closed.came_back(path)


def _patterns(text: str) -> list[tuple[re.Pattern[str], bool]]:
    words = [word.strip() for word in text.split(";") if word.strip()]
    return [(re.compile(fnmatch.translate(word), re.DOTALL), "/" in word) for word in words]


def _any(patterns: list[tuple[re.Pattern[str], bool]], path: bytes) -> bool:
    text = decode(path)
    name = text.rpartition("/")[2]
    return any(pattern.match(text if whole else name) for pattern, whole in patterns)
