"""What the demo did and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dm.deploy.demo_checks import Check


@dataclass
class Step:
    """One step of the demo: what it was, how long it took (seconds), what came of it."""

    name: str
    seconds: float
    outcome: str


@dataclass
class Progress:
    """How far the files are: events written by the detector, files whole, files done by the DAQ, jobs finished."""

    total: int = 0
    written: int = 0
    stored: int = 0
    processed: int = 0


@dataclass
class Outcome:
    """What the demo did and found."""

    steps: list[Step] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    jobs: Mapping[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything claimed is so."""
        return bool(self.checks) and all(check.ok for check in self.checks)
