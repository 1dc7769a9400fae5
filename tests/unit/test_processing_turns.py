"""Callers who speak of the same thing go one after the other."""

from __future__ import annotations

import threading

import pytest

from dm.common.errors import ServiceUnavailable
from dm.station.processing.turns import Turns


def test_names_in_common_exclude_each_other() -> None:
    turns, inside, most = Turns(), 0, 0
    lock, start = threading.Lock(), threading.Barrier(20)

    def work(names: set[str]) -> None:
        nonlocal inside, most
        start.wait()
        for _ in range(50):
            with turns.of(names):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [
        threading.Thread(target=work, args=({"a", f"{number}"} if number % 2 else {"b", "a"},)) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_other_names_and_none_wait_for_nobody() -> None:
    turns = Turns(patience=0)
    with (
        turns.of({"a"}),
        turns.of({"b", "c"}),
        turns.of(set()),
        pytest.raises(ServiceUnavailable, match="try again"),
        turns.of({"c", "d"}),
    ):
        pass
    with turns.of({"a", "b", "c", "d"}):
        pass


def test_a_failure_ends_the_turn() -> None:
    turns = Turns(patience=0)
    with pytest.raises(KeyError), turns.of({"a"}):
        raise KeyError("a")
    with turns.of({"a"}):
        pass
