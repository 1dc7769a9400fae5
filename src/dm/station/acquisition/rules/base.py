"""What a completion rule is: it says of one file whether it is whole, or when to ask again.

A rule never looks at a clock of the file system and never reads the ledger: it gets what has been seen of a file
(:class:`Seen`) and answers. That the file did not change while it was being judged, and again while it is copied, is
seen to by others. Rules are found by the entry point group ``dm.completion``, or named as ``module:Class`` in the
settings; a DAQ chooses among them by ``completionRule``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from dm.station.acquisition.transports.base import FileStamp

TEMPORARY = (b".tmp", b".temp", b".part", b".partial", b".crdownload", b".swp", b"~")


class Rule(str):
    """The evidence that made a file count as whole, as the ledger keeps it: the name of a rule, or of what it saw."""

    __slots__ = ()
    CLOSED: ClassVar[Rule]
    SETTLED: ClassVar[Rule]
    MESSAGE: ClassVar[Rule]

    @property
    def value(self) -> str:
        """The name as plain text."""
        return str(self)


Rule.CLOSED = Rule("closed")  # its writer closed it, or moved it in, and it stayed the same for a short time
Rule.SETTLED = Rule("settled")  # it was found by looking, and stayed the same for a long time
Rule.MESSAGE = Rule("message")  # its writer said so


@dataclass(frozen=True)
class SettleTimes:
    """Seconds a file must stay the same.

    :param closed: after its writer closed it. :param scanned: when only looking has found it.
    :param temporary: when its name says that it is to be renamed, or somebody has it open for writing.
    :param proven: after its writer closed it, when nobody has it open for writing; covers what writers do right after
        closing: renaming, setting times.
    """

    closed: float = 0.3
    scanned: float = 3.0
    temporary: float = 60.0
    proven: float = 0.05


class RuleSettings(BaseModel):
    """Base of a rule's settings: given in the settings file by their names, and per DAQ in camelCase."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


@dataclass
class RuleContext:
    """What every rule of a DAQ or upload is given.

    :param root: the local data directory, or ``None`` when it is on another host.
    :param local: whatever writes into it does so through this machine's kernel.
    :param times: the settle times that apply. :param poke: asks for a file to be judged again soon; any thread.
    :param ending: the DAQ or upload is over and waits for its last files.
    """

    root: bytes | None
    times: SettleTimes = field(default_factory=SettleTimes)
    poke: Callable[[bytes], None] = lambda _path: None
    ending: bool = False
    local: bool = False


@dataclass(slots=True)
class Seen:
    """What has been seen of a file that may be whole soon.

    :param path: relative to the data directory. :param stamp: its shape when last looked at, if it was.
    :param since: monotonic seconds since when that shape is known; a close starts anew.
    :param closed: its writer closed it, or moved it in, since its shape changed.
    :param again: it was taken before and came back: its writer is one that comes back.
    :param told: its writer said that it is whole in this shape.
    :param unannounced: only a walk over the whole directory has found it.
    :param first: epoch seconds when it was first seen. :param due: when it is judged next (monotonic).
    :param stage: which of several rules it waits for.
    """

    path: bytes
    stamp: FileStamp | None
    since: float
    closed: bool = False
    again: bool = False
    told: bool = False
    unannounced: bool = False
    first: float = 0.0
    due: float = inf
    stage: int = 0


class Judgement(NamedTuple):
    """A rule's answer: ``fired`` is the evidence when the file is whole, else empty; ``wait`` is after how many seconds
    to ask again, infinite when something else has to happen first (a marker, a message, an answer)."""

    fired: str
    wait: float = 0.0


def wait(seconds: float) -> Judgement:
    """Return the answer "not yet"."""
    return Judgement("", seconds)


class CompletionRule(ABC):
    """Base of all rules. One instance per DAQ or upload, used by its thread alone.

    :param settings: an instance of :attr:`settings_model`. :param context: see there.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    settings_model: ClassVar[type[RuleSettings]] = RuleSettings
    #: whether it needs files that this machine can open
    local_only: ClassVar[bool] = False
    #: whether a message of the writer makes a file whole, whatever the rule says otherwise
    trusts_writer: bool = True

    def __init__(self, settings: RuleSettings, context: RuleContext) -> None:
        self.settings: Any = settings
        self.context = context

    def wants(self, path: bytes) -> bool:
        """Whether a name is one of a file to take; others are ignored for ever."""
        return True

    @abstractmethod
    def judge(self, seen: Seen, now: float) -> Judgement:
        """Say whether a file is whole; quickly, as the watching thread waits."""

    @abstractmethod
    def explain(self, seen: Seen, now: float) -> str:
        """Say in a few words what a file that is not whole waits for, e.g. ``it waits for its marker 'a.done'``."""

    def wakes(self, path: bytes) -> Sequence[bytes]:
        """Return what is to be looked at because this file has appeared: other files, or directories as ``name/``."""
        return ()

    def came_back(self, path: bytes) -> None:  # noqa: B027 - most rules learn nothing
        """Learn that a file changed after it had been taken."""

    def close(self) -> None:  # noqa: B027 - most rules hold nothing
        """Release what the rule holds."""

    def absolute(self, path: bytes) -> bytes:
        """Return the full path of a file of a local data directory."""
        assert self.context.root is not None
        return os.path.join(self.context.root, path)
