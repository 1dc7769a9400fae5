"""CPU seconds by part of the work."""

from __future__ import annotations

import threading
import time

from dm.common.spent import Parts, part


def seconds(name: str) -> float:
    [family] = Parts().collect()
    return sum(sample.value for sample in family.samples if sample.labels == {"part": name})


def burn(cpu: float) -> None:
    end = time.thread_time() + cpu
    while time.thread_time() < end:
        pass


def test_a_part_within_a_part_counts_once_and_waiting_does_not() -> None:
    outer, inner = seconds("outer"), seconds("inner")
    with part("outer"):
        burn(0.02)
        with part("inner"):
            burn(0.05)
        time.sleep(0.05)
    assert seconds("inner") - inner >= 0.05
    assert 0.02 <= seconds("outer") - outer < 0.05


def test_threads_add_up_also_when_their_work_fails() -> None:
    before = seconds("shared")

    def work() -> None:
        try:
            with part("shared"):
                burn(0.02)
                raise ValueError
        except ValueError:
            pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seconds("shared") - before >= 0.06
