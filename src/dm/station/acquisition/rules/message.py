"""The rule of writers that speak: only their message makes a file whole."""

from __future__ import annotations

from dm.station.acquisition.rules.base import CompletionRule, Judgement, Rule, Seen, wait


class Message(CompletionRule):
    """Its writer said so, by REST or with ``dm-complete-daq-files``; nothing else counts."""

    name = "message"
    summary = "its writer said so (dm-complete-daq-files, or POST .../completeFiles)"

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        return Judgement(Rule.MESSAGE) if seen.told else wait(float("inf"))

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        return "it waits for a message of its writer (dm-complete-daq-files)"
