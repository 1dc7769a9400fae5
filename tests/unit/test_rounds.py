"""Rounds of background work go on after an error, and end when they are told to."""

import threading

from dm.common.caller import CALLER
from dm.common.errors import CommunicationError
from dm.common.rounds import Rounds


def test_no_error_ends_them() -> None:
    errors = [ZeroDivisionError("nobody expected it"), CommunicationError("it is away")]
    seen, enough = [], threading.Event()

    def work() -> float:
        seen.append(CALLER.get().actor)
        if errors:
            raise errors.pop()
        enough.set()
        return 60.0

    rounds = Rounds("sweeper", work, retry_seconds=0.01)
    rounds.start()
    assert enough.wait(30)
    assert rounds.stop(30)
    assert seen == ["sweeper"] * 3


def test_a_round_that_hangs_is_not_waited_for() -> None:
    begun, end = threading.Event(), threading.Event()

    def work() -> float:
        begun.set()
        end.wait(30)
        return 0.0

    rounds = Rounds("sweeper", work, retry_seconds=1)
    rounds.start()
    assert begun.wait(30)
    assert not rounds.stop(0.01)
    end.set()
    assert rounds.stop(30)
    assert rounds.stop(0)
