"""Rates, remaining time and standing still, on a clock of the test's own."""

from __future__ import annotations

import pytest

from dm.station.acquisition.pace import Pace, Progress, remaining


def test_a_steady_task() -> None:
    pace = Pace(100.0)
    for second in range(61):
        pace.note(100.0 + second, Progress(10 * second, 1000 * second, 600 - 10 * second))
    assert pace.rates(160.0, Progress(600, 60_000, 0)) == pytest.approx((10.0, 1000.0))
    assert pace.still_for(160.0) == 0


def test_rates_forget_what_is_long_ago() -> None:
    pace = Pace(0.0)
    for second in range(100):
        pace.note(float(second), Progress(min(second, 50), 0, 1))
    assert pace.rates(99.0, Progress(50))[0] < 0.5
    for second in range(100, 120):
        pace.note(float(second), Progress(50, 0, 1))
    assert pace.rates(119.0, Progress(50)) == (0.0, 0.0)
    assert pace.still_for(119.0) == pytest.approx(69.0)


def test_few_big_files_have_a_steady_rate() -> None:
    pace = Pace(0.0)
    rates = []
    for second in range(240):  # one of 10 GB every 12 seconds
        far = Progress(second // 12, second // 12 * 10**10, 100)
        pace.note(float(second), far)
        rates.append(pace.rates(float(second), far)[1])
    assert all(0.6e9 < rate < 1.1e9 for rate in rates[60:])


def test_the_rate_counts_from_the_first_file_not_from_the_start() -> None:
    pace = Pace(0.0)
    for second in range(8):
        pace.note(float(second), Progress())
    for second in range(5):
        pace.note(8.0 + second, Progress(files=100 * second, waiting=1000))
    assert pace.rates(12.0, Progress(400))[0] == pytest.approx(100.0)


def test_files_of_before_a_restart_are_no_speed() -> None:
    pace = Pace(0.0)
    assert pace.rates(3.0, Progress(100_000, 10**12)) == (0.0, 0.0)
    pace.note(3.0, Progress(100_000, 10**12))
    assert pace.rates(5.0, Progress(100_010, 10**12)) == pytest.approx((5.0, 0.0))


def test_a_retry_is_no_negative_speed() -> None:
    pace = Pace(0.0)
    pace.note(0.0, Progress(files=10, failed=10))
    pace.note(1.0, Progress(files=0, waiting=10))
    assert pace.rates(1.0, Progress(files=0, waiting=10)) == (0.0, 0.0)
    assert pace.failed_within(1.0, 60) == 0


def test_an_idle_task_does_not_stand_still() -> None:
    pace = Pace(0.0)
    for second in range(3600):
        pace.note(float(second), Progress(files=5))
    assert pace.still_for(3600.0) == 0 and pace.finished() == 0
    pace.note(3600.0, Progress(files=5, waiting=1))  # the first file after an hour
    assert pace.still_for(3600.5) == pytest.approx(0.5)
    pace.note(3700.0, Progress(files=5, waiting=9))
    assert pace.still_for(3700.0) == pytest.approx(100.0)
    pace.note(3701.0, Progress(files=6, waiting=8))
    assert pace.still_for(3701.0) == 0 and pace.finished() == 3701.0


def test_the_trend_of_what_waits_and_of_what_failed() -> None:
    pace = Pace(0.0)
    for second in range(0, 300, 5):
        pace.note(float(second), Progress(waiting=second, failed=second // 100))
    assert pace.waiting_before(299.0, 600) == []
    seen = pace.waiting_before(299.0, 100)
    assert seen == sorted(seen) and seen[0] >= 199 and len(seen) == 10
    assert pace.failed_within(299.0, 150) == 1
    assert pace.failed_within(299.0, 1e6) == 2
    assert Pace(0.0).failed_within(1.0, 1e6) == 0


def test_memory_is_bounded() -> None:
    pace = Pace(0.0)
    for step in range(100_000):
        pace.note(step / 10, Progress(files=step))
    assert len(pace._recent) < 200 and len(pace._trend) < 400


@pytest.mark.parametrize(
    ("waiting", "left", "file_rate", "byte_rate", "seconds"),
    [(0, 0, 0, 0, 0.0), (10, 0, 5, 0, 2.0), (10, 1000, 5, 100, 10.0), (10, 1000, 0, 0, None), (10, 100, 1, 100, 10.0)],
)
def test_remaining_time(waiting: int, left: int, file_rate: float, byte_rate: float, seconds: float | None) -> None:
    assert remaining(waiting, left, file_rate, byte_rate) == seconds
