"""Rules of time: the file was closed, or stayed the same for long enough."""

from __future__ import annotations

import os
from math import inf
from typing import Any, ClassVar

from pydantic import Field

from dm.station.acquisition.rules.base import (
    TEMPORARY,
    CompletionRule,
    Judgement,
    Rule,
    RuleContext,
    RuleSettings,
    Seen,
    wait,
)
from dm.station.acquisition.writers import unwritten

_LESSON = 3  # files closed again after they were taken teach that their kind has writers that come back
_KINDS = 1000  # kinds of names learned at most
_GRAIN = 1e-6  # seconds that do not count, so that rounding makes nobody wait twice


class ClosedSettings(RuleSettings):
    """Settings of :class:`Closed`; the service's settle times where not given."""

    closed_seconds: float | None = Field(default=None, ge=0)
    scanned_seconds: float | None = Field(default=None, ge=0)
    temporary_seconds: float | None = Field(default=None, ge=0)


class Closed(CompletionRule):
    """Its writer closed it or moved it in, and it stayed the same for a moment; without events, for some seconds.

    Next to no time is needed when the kernel confirms that nobody has it open for writing, and little for a file that
    is found by looking on a local file system. A file that is closed again
    after it was taken has a writer that comes back: for it, and after three of its kind for all names with the same
    ending, the confirmation shortens nothing. What is still open for writing, and what has a temporary name such as
    ``x.tmp``, waits much longer: its rename or close normally comes first.
    """

    name = "closed"
    summary = "closed by its writer, or unchanged for some seconds where that cannot be seen"
    settings_model: ClassVar[type[RuleSettings]] = ClosedSettings

    def __init__(self, settings: RuleSettings, context: RuleContext) -> None:
        super().__init__(settings, context)
        given: Any = settings
        times = context.times
        self.closed_seconds = _or(getattr(given, "closed_seconds", None), times.closed)
        self.scanned_seconds = _or(getattr(given, "scanned_seconds", None), times.scanned)
        self.temporary_seconds = _or(getattr(given, "temporary_seconds", None), times.temporary)
        self._reopened: dict[bytes, set[bytes]] = {}  # kind of name -> some that were closed again once taken

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        usual = self._usual(seen)
        soon = min(usual, self._proven(seen)) if self._trusted(seen) else usual
        if (left := seen.since + soon - now) > _GRAIN:
            return wait(left)
        found = self._unwritten(seen)
        evidence = Rule.CLOSED if seen.closed else Rule.SETTLED
        if found is True:
            return Judgement(evidence)
        if (left := seen.since + usual - now) > _GRAIN:
            return wait(left)
        if found is None:
            return Judgement(evidence)
        # Somebody has it open for writing, so the close was not the last one.
        need = self.scanned_seconds if self.context.ending else max(self.scanned_seconds, self.temporary_seconds)
        left = seen.since + need - now
        return wait(min(left, max(self.scanned_seconds, 0.05))) if left > _GRAIN else Judgement(Rule.SETTLED)

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        age, usual = now - seen.since, self._usual(seen)
        if age >= usual:
            return f"a program has it open for writing; last changed {age:.1f} s ago"
        what = "closed" if seen.closed else "changed"
        return f"it was {what} {age:.1f} s ago and counts as whole when unchanged for {usual:g} s"

    def came_back(self, path: bytes) -> None:
        """See :class:`CompletionRule`."""
        kind = _kind(path)
        if kind in self._reopened or len(self._reopened) < _KINDS:
            known = self._reopened.setdefault(kind, set())
            if len(known) < _LESSON:
                known.add(path)

    def _usual(self, seen: Seen) -> float:
        if _temporary(seen.path) and not self.context.ending:
            return self.temporary_seconds
        return self.closed_seconds if seen.closed else self.scanned_seconds

    def _proven(self, seen: Seen) -> float:
        """Return the seconds after which a file counts that nobody has open for writing."""
        if seen.closed:
            return self.context.times.proven
        # Found by looking: a close that was not heard, if nobody can write to it but through this kernel.
        return self.closed_seconds if self.context.local else inf

    def _trusted(self, seen: Seen) -> bool:
        if seen.again or (_temporary(seen.path) and not self.context.ending):
            return False
        return len(self._reopened.get(_kind(seen.path), ())) < _LESSON

    def _unwritten(self, seen: Seen) -> bool | None:
        if self.context.root is None or seen.stamp is None:
            return None
        found = unwritten(self.absolute(seen.path), seen.stamp)
        if found is False and self.context.ending and not seen.closed:
            return None  # what is kept open for ever is taken as it is at the end
        return found


class StableSettings(RuleSettings):
    """Settings of :class:`Stable`."""

    seconds: float | None = Field(default=None, ge=0)


class Stable(CompletionRule):
    """Size and modification time stayed the same for so many seconds; closing it says nothing.

    For writers that open, append and close again and again.
    """

    name = "stable"
    summary = "size and modification time unchanged for some seconds, whoever closed it"
    settings_model: ClassVar[type[RuleSettings]] = StableSettings

    def _need(self, seen: Seen) -> float:
        need = _or(self.settings.seconds, self.context.times.scanned)
        patient = _temporary(seen.path) and not self.context.ending
        return max(need, self.context.times.temporary) if patient else need

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        left = self._need(seen) - (now - seen.since)
        return wait(left) if left > _GRAIN else Judgement(self.name)

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        age = now - seen.since
        return f"it changed {age:.1f} s ago and counts as whole when unchanged for {self._need(seen):g} s"


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _temporary(path: bytes) -> bool:
    return path.lower().endswith(TEMPORARY)


def _kind(path: bytes) -> bytes:
    return os.path.splitext(path)[1].lower()
