"""Sessions in memory, the cookie, and login throttling; with a clock of our own."""

from __future__ import annotations

import threading

import pytest

from dm.common.errors import InvalidSession, ServiceLimit
from dm.common.web import cookies
from dm.common.web.routes import Principal
from dm.common.web.sessions import MemorySessionStore, session_key
from dm.common.web.throttle import LoginThrottle, MemoryTally, TokenGuesses, TooManyLogins, UndecidedLogin
from tests.guesses import fail


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends_when_idle_at_its_limit_and_at_logout():
    clock = Clock()
    store = MemorySessionStore(idle_seconds=100, absolute_seconds=250, clock=clock)
    session = store.create(Principal("d123456"))
    for _ in range(2):
        clock.now += 99
        assert store.get(session).username == "d123456"
    clock.now += 60
    assert store.get(session) is None, "absolute limit"
    session = store.create(Principal("d123456"))
    clock.now += 101
    assert store.get(session) is None, "idle limit"
    session = store.create(Principal("d123456"))
    store.delete(session)
    store.delete(session)
    assert store.get(session) is None
    assert store.count == 0


def test_ids_are_new_unguessable_and_not_kept():
    store = MemorySessionStore()
    ids = {store.create(Principal("d123456")) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(session) >= 43 for session in ids)
    assert not ids & set(store._sessions)
    assert session_key(next(iter(ids))) in store._sessions


def test_capacity_drops_the_session_unused_for_longest():
    clock = Clock()
    store = MemorySessionStore(capacity=3, clock=clock)
    first, second, third = (store.create(Principal(name)) for name in ("a", "b", "c"))
    store.get(first)
    fourth = store.create(Principal("d"))
    assert store.get(second) is None
    assert all(store.get(session) for session in (first, third, fourth))


def test_old_sessions_do_not_pile_up():
    clock = Clock()
    store = MemorySessionStore(idle_seconds=10, clock=clock)
    for _ in range(500):
        store.create(Principal("d123456"))
        clock.now += 1
    assert store.count <= 12


ID = "A" * 43


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"SESSIONID={ID}", [ID]),
        (f"SESSIONID={ID}; expires=Mon, 23 Nov 2026 04:21:46 GMT; Path=/; Secure; HttpOnly; SameSite=Strict", [ID]),
        (f'a=b; SESSIONID="{ID}";c', [ID]),
        (f"SESSIONID={ID}; SESSIONID={'B' * 43}; SESSIONID={ID}", [ID, "B" * 43]),
        (f"SESSIONID={ID}; Path=/, SESSIONID={'B' * 43}; Path=/", [ID, "B" * 43]),
        (f"sessionid={ID}", []),
        (f"XSESSIONID={ID}", []),
        ("SESSIONID=../../etc/passwd", []),
        ("SESSIONID=", []),
        ("SESSIONID", []),
        (f"SESSIONID={ID}\xe9", []),
        ("=;;=;,", []),
        ("", []),
    ],
)
def test_cookie_headers(header, expected):
    assert cookies.session_ids(header) == expected


def test_a_cookie_of_back_slashes_is_linear():
    assert cookies.session_ids('SESSIONID="' + "\\" * 2_000_000 + '"') == []


def test_at_most_eight_candidates():
    header = "; ".join(f"SESSIONID={number:043d}" for number in range(300))
    assert len(cookies.session_ids(header)) == 8


def test_set_cookie_text():
    text = cookies.set_session("abc", 0)
    assert text == "SESSIONID=abc; expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Strict"
    assert cookies.session_ids(cookies.set_session(ID, 1e9)) == [ID]


def test_ten_failures_then_slow_then_the_right_password_again_in_time():
    clock = Clock()
    throttle = LoginThrottle(clock=clock)
    assert [fail(throttle) for _ in range(200)] == [True] * 10 + [False] * 190
    with pytest.raises(ServiceLimit, match="try again in 180 seconds"), throttle.attempt("d123456", "10.0.0.1"):
        pytest.fail("must not run")
    clock.now += 181
    with throttle.attempt("d123456", "10.0.0.1"):
        pass
    assert [fail(throttle) for _ in range(11)] == [True] * 10 + [False], "a success forgives"


def test_others_are_not_locked():
    throttle = LoginThrottle(clock=Clock())
    for _ in range(50):
        fail(throttle)
    assert fail(throttle, "d654321"), "another account from the same address"
    assert fail(throttle, "d123456", "10.0.0.2"), "the same account from another address"


def test_one_address_never_uses_up_an_account():
    clock = Clock()
    throttle = LoginThrottle(clock=clock)
    for _ in range(24 * 60):
        fail(throttle)
        clock.now += 60
    assert fail(throttle, "d123456", "10.0.0.2")


def test_an_account_sees_fewer_than_100_failures_an_hour_from_any_number_of_addresses():
    clock = Clock()
    throttle = LoginThrottle(clock=clock)
    seen = 0
    for second in range(3600):
        seen += fail(throttle, "d123456", f"10.0.{second % 200}.1")
        clock.now += 1
    assert 30 <= seen < 100


def test_spelling_variants_are_one_account():
    throttle = LoginThrottle(clock=Clock())
    assert sum(fail(throttle, name) for name in ["d123456", "D123456", " d123456 "] * 20) == 10


def test_errors_of_ours_cost_nothing():
    throttle = LoginThrottle(clock=Clock())
    for _ in range(30):
        with pytest.raises(ZeroDivisionError), throttle.attempt("d123456", "10.0.0.1"):
            raise ZeroDivisionError
    assert fail(throttle)


def test_fifty_right_logins_at_once_all_succeed():
    throttle = LoginThrottle()
    inside, worst, lock = 0, 0, threading.Lock()
    barrier = threading.Barrier(50)
    done: list[int] = []

    def login(number: int) -> None:
        nonlocal inside, worst
        barrier.wait(30)
        with throttle.attempt("25idcuser", "10.0.0.1"):
            with lock:
                inside += 1
                worst = max(worst, inside)
            threading.Event().wait(0.005)
            with lock:
                inside -= 1
        done.append(number)

    threads = [threading.Thread(target=login, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 50
    assert worst <= 16


def test_fifty_wrong_logins_at_once_stay_below_the_hourly_limit():
    throttle = LoginThrottle()
    barrier = threading.Barrier(50)
    looked_at: list[bool] = []

    def login() -> None:
        barrier.wait(30)
        looked_at.append(fail(throttle))

    threads = [threading.Thread(target=login) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(looked_at) == 10
    assert fail(throttle, "d123456", "10.0.0.2"), "another address still gets its turn"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("dm.common.web.throttle.MAX_ACCOUNTS", 50)
    tally = MemoryTally(Clock())
    throttle = LoginThrottle(tally)
    for number in range(500):
        fail(throttle, f"d{number:06d}")
    assert tally.count <= 100
    assert not throttle._in_flight


def test_f41_guesses_while_nobody_can_decide_are_not_free():
    throttle = LoginThrottle(clock=Clock())
    for _ in range(10):
        with pytest.raises(UndecidedLogin), throttle.attempt("d123456", "10.0.0.1"):
            raise UndecidedLogin("The user directory does not answer; try again in a moment.")
    assert not fail(throttle)
    assert UndecidedLogin("x").to_wire()["errorClass"] == "ServiceUnavailable"


def test_f41_wrong_api_tokens_are_not_looked_at_for_ever(monkeypatch):
    clock = Clock()
    guesses = TokenGuesses(clock)
    token, looked_at = f"dmt_{'0' * 32}_", 0
    for number in range(30):
        with pytest.raises((InvalidSession, TooManyLogins)), guesses.attempt(f"{token}{number:043d}", "10.0.0.1"):
            looked_at += 1
            raise InvalidSession("no")
    assert looked_at == 10
    with guesses.attempt(f"dmt_{'2' * 32}_right", "10.0.0.1"):
        pass
    for number in range(12):
        other = f"dmt_{'2' * 32}_{number:043d}"
        with pytest.raises((InvalidSession, TooManyLogins)), guesses.attempt(other, "10.0.0.1"):
            raise InvalidSession("no")
    with guesses.attempt(f"dmt_{'2' * 32}_right", "10.0.0.1"):
        pass  # nobody locks a token out that is in use
    with pytest.raises(TooManyLogins, match="Too many wrong API tokens"), guesses.attempt(f"{token}right", "10.0.0.1"):
        pytest.fail("must not run")
    with guesses.attempt(f"{token}right", "10.0.0.2"):
        pass
    with guesses.attempt(f"dmt_{'1' * 32}_right", "10.0.0.1"):
        pass
    clock.now += 181
    with guesses.attempt(f"{token}right", "10.0.0.1"):
        pass
    monkeypatch.setattr("dm.common.web.throttle.MAX_ACCOUNTS", 50)
    for number in range(200):
        with pytest.raises(InvalidSession), guesses.attempt(f"dmt_{number:032d}_", "10.0.0.1"):
            raise InvalidSession("no")
    assert len(guesses._buckets) <= 50
