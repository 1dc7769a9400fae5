"""Rules together: all of them, or any."""

from __future__ import annotations

from collections.abc import Sequence

from dm.station.acquisition.rules.base import CompletionRule, Judgement, RuleContext, RuleSettings, Seen


class _Several(CompletionRule):
    def __init__(self, parts: Sequence[CompletionRule], context: RuleContext) -> None:
        super().__init__(RuleSettings(), context)
        self.parts = list(parts)

    def wants(self, path: bytes) -> bool:
        """See :class:`CompletionRule`; a name that one of them ignores, such as a marker's, is ignored."""
        return all(part.wants(path) for part in self.parts)

    def wakes(self, path: bytes) -> Sequence[bytes]:
        """See :class:`CompletionRule`."""
        return [woken for part in self.parts for woken in part.wakes(path)]

    def came_back(self, path: bytes) -> None:
        """See :class:`CompletionRule`."""
        for part in self.parts:
            part.came_back(path)

    def close(self) -> None:
        """See :class:`CompletionRule`."""
        for part in self.parts:
            part.close()


class AllOf(_Several):
    """Every one of its rules says that the file is whole; written ``a+b``."""

    name = "all of"
    trusts_writer = False  # a message is one part of the evidence, where ``message`` is among the rules

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`; they are asked in their order, the next one when those before it agree."""
        fired = []
        for index, part in enumerate(self.parts):
            answer = part.judge(seen, now)
            if not answer.fired:
                seen.stage = index
                return answer
            fired.append(answer.fired)
        return Judgement("+".join(fired))

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        return self.parts[min(seen.stage, len(self.parts) - 1)].explain(seen, now)


class AnyOf(_Several):
    """One of its rules says that the file is whole; written ``a,b``."""

    name = "any of"

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        soonest = float("inf")
        for part in self.parts:
            fired, seconds = part.judge(seen, now)
            if fired:
                return Judgement(fired)
            soonest = min(soonest, seconds)
        return Judgement("", soonest)

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        return " or ".join(part.explain(seen, now) for part in self.parts)
