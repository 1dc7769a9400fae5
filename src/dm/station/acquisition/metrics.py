"""What the service measures for Prometheus. Labels are few and fixed: kinds, states, and names from the settings -
never ids of DAQs, experiments or directories, which would be without end, and which strangers must not read here.

Counters, histograms and summaries belong to an office, whether or not somebody shows them; :func:`publish` shows them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram, Summary

from dm.common.health import Health
from dm.station.acquisition.rows import Item, State

if TYPE_CHECKING:
    from dm.station.acquisition.office import Office
    from dm.station.acquisition.task import Task

KINDS = ("daq", "upload")
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_LAG_BUCKETS = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_SETTLING = 120.0  # seconds that a file may need to count as whole; more, and its time of writing says nothing
_STATES = (State.READY, State.STORED, State.DONE, State.FAILED, State.SKIPPED, State.VANISHED)


class Meters:
    """Counters and histograms of one office; see the module."""

    def __init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dm_{name}", text, labels, registry=None)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _BUCKETS) -> Histogram:
            return Histogram(f"dm_{name}", text, labels, buckets=buckets, registry=None)

        self.finished = counter("files_finished", "Files finished since the start of the service.", "kind", "state")
        self.stored_bytes = counter("bytes_finished", "Bytes of finished files since the start.", "kind")
        self.retries = counter("retries", "Tries that failed and are repeated, of files and of batches.", "what")
        self.lag = histogram(
            "lag_seconds",
            "From the last write of a file (or, where only a look found it, from then on) to verified in storage.",
            "kind",
            buckets=_LAG_BUCKETS,
        )
        self.transport = histogram("transport_seconds", "Moving one batch into staging.", "transport")
        self.transport_bytes = counter("transport_bytes", "Bytes moved into staging.", "transport")
        self.storage = histogram("storage_seconds", "From a batch in staging to storage's verdict on it.")
        self.plugin = histogram("plugin_seconds", "One call of a plugin, for one batch.", "plugin")
        self.database = Summary("dm_database_seconds", "Calls of the database.", ("operation",), registry=None)
        self.watch_events = counter("watch_events", "Files that the kernel told of.")
        self.watch_overflows = counter("watch_overflows", "Times the kernel lost events; a walk makes up for them.")
        self.walks = counter("walks", "Complete walks through data directories.")

        for kind in KINDS:  # so that there is a zero to count from
            self.stored_bytes.labels(kind)
            self.lag.labels(kind)
            for state in ("done", "failed"):
                self.finished.labels(kind, state)
        for what in ("file", "batch"):
            self.retries.labels(what)

    def collectors(self) -> Iterable[Counter | Histogram | Summary]:
        """Return all of them."""
        return list(vars(self).values())

    def stored(self, kind: str, items: Iterable[Item]) -> None:
        """Measure how long files took until storage had verified them."""
        now, lag = time.time(), self.lag.labels(kind)
        for item in items:
            settling = item.ready - item.mtime_ns / 1e9
            lag.observe(max(0.0, now - item.ready) + (settling if 0 < settling < _SETTLING else 0.0))

    def moved(self, transport: str, seconds: float, size: int) -> None:
        """Measure a batch that was moved. :param size: bytes that arrived."""
        self.transport.labels(transport).observe(seconds)
        self.transport_bytes.labels(transport).inc(size)

    @contextmanager
    def plugin_call(self, name: str) -> Iterator[None]:
        """Measure a call of a plugin."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.plugin.labels(name).observe(time.monotonic() - began)

    def asked(self, operation: str, seconds: float) -> None:
        """Measure a call of the database."""
        self.database.labels(operation).observe(seconds)


UNSHOWN = Meters()
"""For tasks that belong to no office."""


def publish(office: Office, health: Health) -> None:
    """Show the meters of an office, and what there is at the moment of asking."""
    for collector in office.meters.collectors():
        health.registry.register(collector)

    def live(kind: str) -> list[Task]:
        return [task for task in list(office.live.values()) if task.kind == kind]

    def total(kind: str, value: Callable[[Task], float]) -> Callable[[], float]:
        return lambda: float(sum(value(task) for task in live(kind)))

    running = health.gauge("tasks", "DAQs and uploads that are not over.", ("kind",))
    files = health.gauge("files", "Files of running DAQs and uploads by state.", ("kind", "state"))
    sizes = health.gauge("file_bytes", "Bytes of running DAQs and uploads: known, and done of them.", ("kind", "state"))
    file_rate = health.gauge("file_rate", "Files finished per second of late.", ("kind",))
    byte_rate = health.gauge("byte_rate", "Bytes finished per second of late.", ("kind",))
    batches = health.gauge("batches", "Batches on their way, by phase.", ("kind", "phase"))
    oldest = health.gauge(
        "oldest_unfinished_seconds", "Age of the oldest file that is whole and not finished.", ("kind",)
    )
    for kind in KINDS:
        running.labels(kind).set_function(total(kind, lambda _task: 1))
        for state in _STATES:
            files.labels(kind, state.name.lower()).set_function(
                total(kind, lambda task, state=state: task.ledger.count(state))  # type: ignore[misc]
            )
        sizes.labels(kind, "known").set_function(total(kind, lambda task: task.ledger.bytes_total))
        sizes.labels(kind, "done").set_function(total(kind, lambda task: task.ledger.bytes_done))
        file_rate.labels(kind).set_function(total(kind, lambda task: task.rates()[0]))
        byte_rate.labels(kind).set_function(total(kind, lambda task: task.rates()[1]))
        for phase in ("move", "result", "plugins"):
            batches.labels(kind, phase).set_function(
                total(kind, lambda task, phase=phase: sum(b.phase == phase for b in list(task.batches.values())))  # type: ignore[misc]
            )
        oldest.labels(kind).set_function(lambda kind=kind: _oldest(office, live(kind)))  # type: ignore[misc]


def _oldest(office: Office, tasks: list[Task]) -> float:
    """Return the age in seconds of the oldest unfinished file that is in memory."""
    with office.pipeline.condition:
        moments = [moment for task in tasks if (moment := task.oldest()) is not None]
    return max(0.0, time.time() - min(moments)) if moments else 0.0
