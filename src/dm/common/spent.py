"""CPU seconds by part of the work, over all threads of this process: what a file costs, and where to save.

``with part("digest"): ...`` counts the CPU time of the calling thread, system time included, waiting not. Parts within
parts count once, for the inner one. Shown in ``/metrics`` as ``dm_cpu_seconds_total``.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_seconds: defaultdict[str, float] = defaultdict(float)
_lock = threading.Lock()
_local = threading.local()


class part:  # noqa: N801 - used like open()
    """Count what a block costs.

    :param name: of the part, one of few: it becomes a label of the metrics.
    """

    __slots__ = ("_above", "_begun", "_name", "_within")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._above: part | None = getattr(_local, "part", None)
        _local.part = self
        self._within = 0.0
        self._begun = time.thread_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = time.thread_time() - self._begun
        _local.part = self._above
        if self._above is not None:
            self._above._within += whole
        with _lock:
            _seconds[self._name] += whole - self._within


class Parts(Collector):
    """Shows the parts to Prometheus."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the one metric there is."""
        with _lock:
            found = dict(_seconds)
        family = CounterMetricFamily("dm_cpu_seconds", "CPU seconds by part of the work.", labels=["part"])
        for name, seconds in sorted(found.items()):
            family.add_metric([name], seconds)
        yield family
