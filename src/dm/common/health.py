"""Health: one model behind ``/status`` (for people and Nagios) and ``/metrics`` (for Prometheus)."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from dm.common import interface, spent
from dm.common.logs import scrub

Level = Literal["ok", "warning", "critical"]
Check = Callable[[], tuple[Level, str]]
LEVELS: tuple[Level, ...] = ("ok", "warning", "critical")
FRESH_SECONDS = 2.0
PATIENCE_SECONDS = 2.0
PROMPT_SECONDS = 0.1
RECENT_SECONDS = 10.0
LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_log = logging.getLogger("dm.health")
_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


@dataclass
class Latch:
    """An alarm with two thresholds: raised at the one, kept until the other, so that it does not come and go."""

    raised: bool = False

    def update(self, bad: bool, good: bool) -> bool:
        """Return whether the alarm is raised now. :param bad: raises it. :param good: clears it, unless ``bad``."""
        self.raised = bad or (self.raised and not good)
        return self.raised


@dataclass
class _State:
    name: str
    check: Check
    level: Level = "warning"
    message: str = "not checked yet"
    finished: float | None = None
    started: float | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Health:
    """What a service says about itself.

    :param service: its name, e.g. ``storage``.
    :param station: the station it belongs to, where it does.
    """

    def __init__(self, service: str, station: str | None = None) -> None:
        self.service = service
        self.station = station
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self.registry.register(spent.Parts())
        self._began = time.monotonic()
        self._version = interface.release()
        self._lock = threading.Lock()
        self._checks: dict[str, _State] = {}
        self._problems: dict[str, tuple[Level, str]] = {}
        self._metrics: dict[str, MetricWrapperBase] = {}
        self.gauge("info", "Version of the service; the value is always 1.", ("service", "version")).labels(
            service, self._version
        ).set(1)

    def check(self, name: str, check: Check) -> None:
        """Add a check, or replace the one of that name.

        :param check: returns a level and one sentence without secrets; an exception counts as critical. It runs when
            ``/status`` is asked and the last result is older than 2 s, never twice at a time, in a thread of its own
            so that a hanging dependency does not hang ``/status``. One that takes longer than a moment is answered
            for by its last result of at most 10 s ago: a dependency that is busy is neither waited for nor an alarm.
        """
        with self._lock:
            self._checks[name] = _State(name, check)

    def problem(self, name: str, message: str, level: Level = "warning") -> None:
        """Report something that went wrong; it stays in the status until :meth:`resolve` or :meth:`clear`."""
        with self._lock:
            self._problems[name] = (level, message)

    def resolve(self, name: str) -> None:
        """Take a problem back; an unknown one is fine."""
        with self._lock:
            self._problems.pop(name, None)

    def clear(self) -> None:
        """Forget problems and results: the next status starts afresh."""
        with self._lock:
            self._problems.clear()
            for state in self._checks.values():
                state.finished = None

    def status(self) -> dict[str, Any]:
        """Return ``{service, station, status, version, interface, uptime, checks: [{name, status, message}]}``.

        ``status`` is the worst of the checks; ``uptime`` is in seconds.
        """
        checks = [
            {"name": name, "status": level, "message": _public(message)} for name, level, message in self._results()
        ]
        worst = max((LEVELS.index(check["status"]) for check in checks), default=0)
        status: dict[str, Any] = {"service": self.service}
        if self.station is not None:
            status["station"] = self.station
        return status | {
            "status": LEVELS[worst],
            "version": self._version,
            "interface": interface.INTERFACE,
            "uptime": round(time.monotonic() - self._began, 3),
            "checks": checks,
        }

    def counter(self, name: str, help: str = "", labels: Sequence[str] = ()) -> Counter:
        """Return the counter ``dm_<name>``, made at the first call."""
        return self._metric(Counter, name, help, labels)

    def gauge(self, name: str, help: str = "", labels: Sequence[str] = ()) -> Gauge:
        """Return the gauge ``dm_<name>``, made at the first call."""
        return self._metric(Gauge, name, help, labels)

    def histogram(
        self, name: str, help: str = "", labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> Histogram:
        """Return the histogram ``dm_<name>`` (of seconds, by its default buckets), made at the first call."""
        return self._metric(Histogram, name, help, labels, buckets=tuple(buckets))

    def metrics(self) -> bytes:
        """Return all metrics in the Prometheus text format, the results of the checks among them.

        Checks that are due run first, so that what they measure is as fresh here as in the status.
        """
        results = self._results()
        levels = self.gauge("check_level", "Results of the checks: 0 ok, 1 warning, 2 critical.", ("check",))
        levels.clear()
        worst = 0
        for name, level, _ in results:
            if name in self._checks:
                levels.labels(name).set(LEVELS.index(level))
            else:  # names of problems are many, and not for everybody's series
                worst = max(worst, LEVELS.index(level))
        levels.labels("problems").set(worst)
        return generate_latest(self.registry)

    def _metric(self, kind: type[_Metric], name: str, help: str, labels: Sequence[str], **options: Any) -> _Metric:
        full = f"dm_{name}"
        with self._lock:
            metric = self._metrics.get(full)
            if metric is None:
                metric = self._metrics[full] = kind(
                    full, help or name.replace("_", " "), tuple(labels), registry=self.registry, **options
                )
        if not isinstance(metric, kind):
            raise TypeError(f"Metric {full} is a {type(metric).__name__}, not a {kind.__name__}.")
        return metric

    def _results(self) -> list[tuple[str, Level, str]]:
        with self._lock:
            states = list(self._checks.values())
        for state in states:
            self._start(state)
        begun = time.monotonic()
        results: list[tuple[str, Level, str]] = []
        for state in states:
            recent = state.finished is not None and begun - state.finished < RECENT_SECONDS
            if state.finished is None or state.started is not None:
                patience = PROMPT_SECONDS if recent else PATIENCE_SECONDS
                state.done.wait(max(0.0, begun + patience - time.monotonic()))
            started = state.started
            if started is not None and time.monotonic() - started >= PATIENCE_SECONDS and not recent:
                results.append((state.name, "critical", f"no answer for {time.monotonic() - started:.0f} s"))
            else:
                results.append((state.name, state.level, state.message))
        with self._lock:
            results += [(name, level, message) for name, (level, message) in self._problems.items()]
        return results

    def _start(self, state: _State) -> None:
        now = time.monotonic()
        with self._lock:
            fresh = state.finished is not None and now - state.finished < FRESH_SECONDS
            if fresh or state.started is not None:
                return
            state.started = now
            state.done.clear()
        threading.Thread(target=self._run, args=(state,), name=f"health {state.name}", daemon=True).start()

    @staticmethod
    def _run(state: _State) -> None:
        try:
            level, message = state.check()
            if level not in LEVELS:
                level, message = "critical", f"check answered with the unknown level {level!r}"
        except Exception as error:  # whatever a dependency throws is a finding, not a failure of the status page
            _log.warning("check %s failed: %r", state.name, error)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error  # no path of a file
            level, message = "critical", f"{type(error).__name__}: {reason}"
        state.level, state.message = level, message
        state.finished = time.monotonic()
        state.started = None
        state.done.set()


def _public(message: str) -> str:
    """Shorten a message to one line without anything that looks like a credential."""
    line = re.sub(r"\s+", " ", scrub(message)).strip()
    return line if len(line) <= 300 else f"{line[:297]}..."
