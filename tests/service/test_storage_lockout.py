"""Failed logins are counted for all processes of the site together, and alike for accounts that do not exist."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from dm.common.errors import ServiceLimit
from dm.common.web import throttle as kit
from dm.common.web.throttle import LoginThrottle
from dm.site.database.store import Store
from dm.site.identity import lockout
from dm.site.identity.lockout import Lockouts, SqlTally
from tests.guesses import fail
from tests.service import storage_fixtures as fx


@pytest.fixture(scope="module")
def store(new_postgres_database: Callable[[], str]) -> Iterator[Store]:
    made = Store(new_postgres_database(), 8)
    made.migrate()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def fresh(store: Store) -> None:
    with store.transaction() as connection:
        connection.execute(text("DELETE FROM login_tallies"))


def process(store: Store) -> LoginThrottle:
    """The throttle of one more service process."""
    return LoginThrottle(SqlTally(store), patience=5)


def later(store: Store, seconds: float) -> None:
    with store.transaction() as connection:
        connection.execute(
            text("UPDATE login_tallies SET at = at - make_interval(secs => :seconds)"), {"seconds": seconds}
        )


def test_f41_processes_share_the_count_and_a_restart_does_not_forget(store: Store) -> None:
    one, other = process(store), process(store)
    assert [fail(one) for _ in range(6)] == [True] * 6
    assert [fail(other, " D123456 ") for _ in range(6)] == [True] * 4 + [False] * 2
    with (
        pytest.raises(ServiceLimit, match=r"try again in 1[78]\d seconds"),
        process(store).attempt("d123456", "10.0.0.1"),
    ):
        pytest.fail("must not run")
    assert fail(one, "d654321"), "another account from the same address"
    assert fail(one, "d123456", "10.0.0.2"), "the same account from another address"
    later(store, 181)
    with other.attempt("d123456", "10.0.0.1"):
        pass
    assert [fail(one) for _ in range(11)] == [True] * 10 + [False], "a success forgives"


def test_f41_an_account_sees_fewer_than_100_failures_an_hour_over_all_processes_and_addresses(store: Store) -> None:
    processes = [process(store) for _ in range(3)]
    seen = 0
    for minute in range(60):
        seen += sum(fail(one, remote=f"10.0.{minute}.{number}") for number, one in enumerate(processes * 2))
        later(store, 60)
    assert 30 <= seen <= 62


def test_f41_many_at_once_in_several_processes_are_no_way_around(store: Store) -> None:
    processes = [process(store) for _ in range(3)]
    looked_at: list[bool] = []
    barrier = threading.Barrier(30)

    def attack(number: int) -> None:
        barrier.wait(30)
        looked_at.append(fail(processes[number % 3]))

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(looked_at) == 10


def test_f41_many_right_logins_at_once_are_all_let_in(store: Store) -> None:
    processes = [process(store) for _ in range(2)]
    done: list[int] = []

    def login(number: int) -> None:
        with processes[number % 2].attempt("25idcuser", "10.0.0.1"):
            done.append(number)

    threads = [threading.Thread(target=login, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 30
    assert fail(process(store), "25idcuser")


def test_a_process_that_died_over_a_try_has_failed_it(store: Store) -> None:
    tally = SqlTally(store)
    assert [tally.take("d123456", "10.0.0.1") for _ in range(10)] == [0.0] * 10
    assert tally.take("d123456", "10.0.0.1") is None, "they may still turn out right"
    later(store, 61)
    wait = tally.take("d123456", "10.0.0.1")
    assert wait is not None and 100 < wait < 130, "a third of a try has come back in this minute"


def test_no_name_spends_what_another_account_has(store: Store) -> None:
    for _ in range(40):
        fail(process(store), "d123456\0" + "10.0.0.1", "10.9.9.9")
        fail(process(store), "address\0" + "10.0.0.1\0d123456", "10.9.9.9")
    assert fail(process(store))
    assert kit.key_of("a\0b") != kit.key_of("a", "b")


def test_administrators_see_and_lift_locks(store: Store) -> None:
    lockouts = Lockouts(store)
    for number in range(40):
        fail(process(store), "d123456", f"10.0.0.{number // 10}")
    fail(process(store), "d654321")
    locks = lockouts.all()
    assert {(lock["username"], lock["remote"]) for lock in locks} == {
        ("d123456", remote) for remote in ("*", "10.0.0.0", "10.0.0.1", "10.0.0.2")
    }
    assert all(lock["retryAfter"] > 60 for lock in locks)
    lockouts.lift("D123456")
    assert lockouts.all() == []
    assert fail(process(store))
    lockouts.lift("nobody at all")


def test_rows_go_when_the_limits_are_full_again(store: Store) -> None:
    fail(process(store))
    with store.transaction() as connection:
        assert lockout.sweep(connection) == 0
    later(store, 2 * 3600 + 1)
    with store.transaction() as connection:
        assert lockout.sweep(connection) == 2


def test_f41_200_wrong_passwords_are_answered_alike_for_known_and_unknown(
    new_postgres_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> None:
    """Over HTTPS: two services, one account that exists and one that does not; others log in all the while."""
    with fx.running_site(new_postgres_database(), certificates, tmp_path / "site") as site:
        service, server = fx.start(site.settings)
        try:
            clients = [site.rest(), fx.RestClient(server.url, ca_file=site.ca_file)]
            answers: dict[str, list[tuple[int, str]]] = {}
            for username, tries in ((fx.ALICE, 200), ("d987654", 20)):
                answers[username] = []
                for number in range(tries):
                    form = f"username={username}&password=wrong-{number}".encode()
                    reply = clients[number % 2].send(
                        "POST", "/login", content=form, headers={"Content-Type": "application/x-www-form-urlencoded"}
                    )
                    body = reply.json()
                    answers[username].append((reply.status_code, body["errorMessage"].partition(";")[0]))
            assert answers[fx.ALICE][:20] == answers["d987654"]
            assert [status for status, _ in answers[fx.ALICE]] == [401] * 10 + [429] * 190
            with pytest.raises(ServiceLimit):
                site.rest(fx.ALICE).login()
            site.rest(fx.BOB).login()
            locked = site.users(fx.ADMIN).getLoginLocks()
            assert {lock["username"] for lock in locked} == {fx.ALICE, "d987654"}
            site.users(fx.ADMIN).unlockUser(fx.ALICE)
            site.rest(fx.ALICE).login()
            clients[1].close()
        finally:
            server.stop()
            service.stop()
