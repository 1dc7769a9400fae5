"""The rule for HDF5 files: whole when the HDF5 library can open them and no writer holds them."""

from __future__ import annotations

import threading
from typing import ClassVar, NamedTuple

from pydantic import Field, field_validator

from dm.common.paths import decode
from dm.station.acquisition.rules.base import CompletionRule, Judgement, RuleContext, RuleSettings, Seen, wait
from dm.station.acquisition.rules.hdf5_probe import Probe
from dm.station.acquisition.rules.settle import Closed, ClosedSettings
from dm.station.acquisition.transports.base import FileStamp

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_REMEMBERED = 100_000


class Hdf5Settings(RuleSettings):
    """Settings of :class:`Hdf5`.

    :param extensions: of the files to open, separated by ``;``; others count as whole when closed.
    :param requires: HDF5 paths that must be there, separated by ``;``, such as ``/entry/data``.
    :param seconds: time limit for opening one file.
    """

    extensions: str = "h5;hdf5;hdf;nxs;nx5;cxi;h5oina"
    requires: str = ""
    seconds: float = Field(default=10.0, gt=0, le=3600)

    @field_validator("extensions", "requires", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return ";".join(str(item) for item in value) if isinstance(value, list | tuple) else value


class _Refusal(NamedTuple):
    """How often a file in this shape was no whole HDF5 file, when last (monotonic), and why."""

    stamp: FileStamp
    tries: int
    last: float
    reason: str


class Hdf5(CompletionRule):
    """It was closed or stayed the same, and then it opens cleanly, in a process that may crash or hang."""

    name = "hdf5"
    summary = "it opens cleanly as HDF5 and no writer holds it"
    settings_model: ClassVar[type[RuleSettings]] = Hdf5Settings
    local_only = True

    def __init__(self, settings: RuleSettings, context: RuleContext) -> None:
        super().__init__(settings, context)
        endings = [word.strip().lstrip("*").lstrip(".").lower() for word in self.settings.extensions.split(";")]
        self._endings = tuple(b"." + word.encode() for word in endings if word)
        self._requires = [word.strip() for word in self.settings.requires.split(";") if word.strip()]
        self._closed = Closed(ClosedSettings(), context)
        self._probe: Probe | None = None
        self._lock = threading.Lock()  # the probe's thread writes answers
        self._asked: set[bytes] = set()
        self._answers: dict[bytes, tuple[FileStamp, str]] = {}  # "" is a clean file
        self._refused: dict[bytes, _Refusal] = {}

    def judge(self, seen: Seen, now: float) -> Judgement:
        """See :class:`CompletionRule`."""
        answer = self._closed.judge(seen, now)
        if not answer.fired or not seen.path.lower().endswith(self._endings) or seen.stamp is None:
            return answer
        with self._lock:
            return self._answer(seen.path, seen.stamp, now)

    def _answer(self, path: bytes, stamp: FileStamp, now: float) -> Judgement:
        refused = self._refused.get(path)
        if refused is not None and refused.stamp != stamp:  # it has changed, which may have been for the better
            del self._refused[path]
            refused = None
        known, reason = self._answers.pop(path, (None, ""))
        if known == stamp:
            if not reason:
                self._refused.pop(path, None)
                return Judgement(self.name)
            count = refused.tries + 1 if refused is not None else 1
            refused = _Refusal(stamp, count, now, reason)
            if path in self._refused or len(self._refused) < _REMEMBERED:
                self._refused[path] = refused
        if refused is not None and (left := refused.last + self._pause(refused.tries) - now) > 0:
            return wait(left)
        if path not in self._asked:
            self._asked.add(path)
            self._ask(path, stamp)
        return wait(float("inf"))

    def _pause(self, count: int) -> float:
        longest = _FIRST_PAUSE if self.context.ending else _LONGEST_PAUSE
        return float(min(longest, _FIRST_PAUSE * 2 ** min(count - 1, 10)))

    def _ask(self, path: bytes, stamp: FileStamp) -> None:
        if self._probe is None:
            self._probe = Probe.acquire()

        def answered(reason: str) -> None:
            with self._lock:
                self._asked.discard(path)
                self._answers[path] = (stamp, reason)
            self.context.poke(path)

        self._probe.check(decode(self.absolute(path)), self._requires, self.settings.seconds, answered)

    def explain(self, seen: Seen, now: float) -> str:
        """See :class:`CompletionRule`."""
        with self._lock:
            refused = self._refused.get(seen.path)
            asked = seen.path in self._asked
        if refused is not None:
            return f"it does not open as HDF5 yet: {refused.reason}"
        return "it is being opened as HDF5" if asked else self._closed.explain(seen, now)

    def came_back(self, path: bytes) -> None:
        """See :class:`CompletionRule`."""
        self._closed.came_back(path)

    def close(self) -> None:
        """See :class:`CompletionRule`."""
        if self._probe is not None:
            self._probe.release()
            self._probe = None
