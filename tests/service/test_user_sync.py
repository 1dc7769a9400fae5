"""Users follow a directory: on a real database, with runs that overlap, fail and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dm.common.caller import Caller, calling
from dm.common.errors import CommunicationError, InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.common.health import Health
from dm.site.database.store import Store
from dm.site.facility.adapters.base import Person
from dm.site.identity.sync_settings import UserSyncSettings
from dm.site.identity.synchronisation import Told, UserSynchronisation
from dm.site.identity.users import Users

SETTINGS = UserSyncSettings(deactivate="after_runs", absent_runs=2, limit_percent=20, limit_least=3)


class Directory:
    """A user directory whose people the test decides."""

    def __init__(self) -> None:
        self.people: list[Person] = []
        self.outage = ""
        self.gate: threading.Event | None = None
        self.asked = threading.Event()
        self.on_rejected: Callable[[str, str, str], None] = print

    def __call__(self) -> Directory:
        return self

    def users(self) -> Iterator[Person]:
        self.asked.set()
        if self.gate is not None:
            assert self.gate.wait(60)
        yield from self.people[: len(self.people) // 2]
        if self.outage:
            raise CommunicationError(self.outage)
        yield from self.people[len(self.people) // 2 :]

    def close(self) -> None:
        self.asked.set()


def person(number: int, **changes: Any) -> Person:
    names = {"first_name": "Ann", "last_name": f"Lee{number}", "email": f"d{number}@example.org", "institution": "ANL"}
    return Person(**{"key": f"K{number}", "badge": number} | names | changes)


@pytest.fixture(scope="module")
def migrated(postgres_url: str) -> Iterator[Store]:
    made = Store(postgres_url)
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def store(migrated: Store) -> Store:
    """A database without people."""
    with migrated.transaction() as connection:
        connection.execute(text("TRUNCATE users, user_syncs, audit_events CASCADE"))
    return migrated


@pytest.fixture
def directory() -> Directory:
    made = Directory()
    made.people = [person(number) for number in range(1, 21)]
    return made


@pytest.fixture
def sync(store: Store, directory: Directory) -> Iterator[UserSynchronisation]:
    Users(store).add("dmadmin", "secret-of-dmadmin")
    Users(store).add_system_role("dmadmin", "administrator")
    made = UserSynchronisation(store, {"hr": directory}, SETTINGS)
    yield made
    made.stop()


def rows(store: Store, what: str) -> dict[str, Any]:
    with store.transaction() as connection:
        return dict(connection.execute(text(f"SELECT username, {what} FROM users WHERE source = 'hr'")).all())


def events(store: Store) -> list[tuple[str, str, str]]:
    statement = "SELECT event, subject, actor FROM audit_events WHERE details ? 'directory' ORDER BY id"
    with store.transaction() as connection:
        return [tuple(row) for row in connection.execute(text(statement)).all()]


def test_life_of_a_directory(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    with calling(Caller(actor="dmadmin", service="facility")):
        first = sync.run("dmadmin", "hr")
    assert (first["status"], first["added"], first["unchanged"]) == ("done", 20, 0), first
    assert Users(store).get("d1") | {"lastUpdate": ""} == {
        **{"id": Users(store).get("d1")["id"], "username": "d1", "badge": 1, "firstName": "Ann", "middleName": ""},
        **Users(store).get("d1"), "isLocalUser": False, "email": "d1@example.org", "lastUpdate": "",
    }  # fmt: skip
    assert set(events(store)) == {("user.added", f"d{number}", "dmadmin") for number in range(1, 21)}

    again = sync.run("dmadmin")
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 20)

    directory.people[:3] = [person(1, username="lee"), person(2, badge=999, username="d2"), person(3, email="x@y.org")]
    changed = sync.run("dmadmin")
    assert (changed["updated"], changed["renamed"]) == (3, 1)
    assert {note["username"] for note in changed["notes"]} == {"d1", "d2"}
    assert rows(store, "badge")["d2"] == 999 and "lee" in rows(store, "badge")

    left = directory.people.pop()
    once = sync.run("dmadmin")
    assert (once["absent"], once["deactivated"]) == (1, 0) and once["absentUsers"] == ["d20"]
    twice = sync.run("dmadmin")
    assert twice["deactivated"] == 1 and twice["deactivatedUsers"][0]["username"] == "d20"
    assert rows(store, "active")["d20"] is False
    assert ("user.deactivated", "d20", "") in events(store)
    assert sync.run("dmadmin")["deactivated"] == 0

    directory.people.append(left)
    back = sync.run("dmadmin")
    assert (back["reactivated"], back["updated"]) == (1, 0)
    assert rows(store, "active")["d20"] is True and rows(store, "absent_runs")["d20"] == 0
    assert [run["status"] for run in sync.all()] == ["done"] * 7 and "addedUsers" not in sync.all()[0]


def test_names_go_round(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    sync.run("dmadmin")
    before = rows(store, "id")
    directory.people[:3] = [person(1, username="d2"), person(2, username="d3"), person(3, username="d1")]
    assert sync.run("dmadmin")["renamed"] == 3
    after = rows(store, "id")
    assert (after["d2"], after["d3"], after["d1"]) == (before["d1"], before["d2"], before["d3"])


def test_local_accounts_are_conflicts(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    Users(store).add("d7", "secret-of-d7", first_name="Local")
    found = sync.run("dmadmin")
    assert found["added"] == 19 and found["skippedPersons"][0]["username"] == "d7"
    assert Users(store).get("d7")["firstName"] == "Local" and Users(store).get("d7")["isLocalUser"]


def test_sessions_of_the_deactivated_end(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    from dm.site.identity import user_store

    sync.run("dmadmin")
    with store.transaction() as connection:
        user_store.add_session(connection, b"x" * 32, "d1", 10)
    directory.people[0] = person(1, active=False)
    assert sync.run("dmadmin")["deactivated"] == 1
    with store.transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM sessions")).scalar_one() == 0


def test_a_dry_run_changes_nothing(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    found = sync.run("dmadmin", dry_run=True)
    assert (found["status"], found["added"], found["dryRun"]) == ("done", 20, True)
    assert found["message"].startswith("Would be: 20 added") and found["addedUsers"][0] == "d1"
    assert rows(store, "id") == {} and events(store) == []


def test_refused_unless_forced(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    sync.run("dmadmin")
    everybody, directory.people = directory.people, directory.people[:10]
    health = Health("facility")
    sync.watch(health)
    refused = sync.run("dmadmin")
    assert refused["status"] == "refused" and "10 of 20" in refused["message"]
    assert set(rows(store, "absent_runs").values()) == {0}
    told = health.status()
    assert told["status"] == "warning" and "refused" in told["checks"][0]["message"]
    assert sync.run("dmadmin", dry_run=True)["status"] == "refused"

    directory.people = []
    assert "empty" in sync.run("dmadmin")["message"]
    directory.people = everybody[:10]
    assert sync.run("dmadmin", force=True)["absent"] == 10
    assert sync.run("dmadmin")["deactivated"] == 10  # counted when they vanished
    directory.people = []
    forced = sync.run("dmadmin", force=True)
    assert forced["status"] == "done" and forced["absent"] == 10


def test_an_outage_in_the_middle_changes_nothing(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    sync.run("dmadmin")
    directory.outage = "The directory does not answer."
    failed = sync.run("dmadmin", force=True)
    assert failed["status"] == "failed" and "does not answer" in failed["message"]
    health = Health("facility")
    sync.watch(health)
    (told,) = health.status()["checks"]  # which strangers may read
    assert told["status"] == "warning" and "hr: failed" in told["message"] and "answer" not in told["message"]
    assert set(rows(store, "active").values()) == {True}
    directory.outage = ""
    assert sync.run("dmadmin")["unchanged"] == 20


def test_one_run_at_a_time(sync: UserSynchronisation, store: Store, directory: Directory) -> None:
    directory.gate = threading.Event()
    begun = sync.begin("dmadmin")
    assert begun["status"] == "running"
    assert directory.asked.wait(30)
    with pytest.raises(InvalidObjectState, match="already"):
        sync.begin("dmadmin")
    other = UserSynchronisation(store, {"hr": directory}, SETTINGS)  # as in another process
    with pytest.raises(InvalidObjectState, match="already"):
        other.begin("dmadmin")
    assert other.get(begun["id"])["status"] == "running"
    directory.gate.set()
    assert sync.get(begun["id"], wait=30)["status"] == "done"
    assert other.get(begun["id"])["added"] == 20


def test_bad_requests(sync: UserSynchronisation) -> None:
    with pytest.raises(InvalidArgument, match="gives no users"):
        sync.begin("dmadmin", "payroll")
    with pytest.raises(ObjectNotFound):
        sync.get("00000000-0000-0000-0000-000000000001")
    with pytest.raises(InvalidArgument, match="UUID"):
        sync.get("seven")
    with pytest.raises(InvalidArgument, match="Limit"):
        sync.all(limit=0)


def test_ldap_is_told_and_told_again_after_an_outage(store: Store, directory: Directory) -> None:
    told: list[Told] = []
    outage = ["LDAP does not answer."]

    def push(users: Any) -> None:
        if outage:
            raise CommunicationError(outage[0])
        told.extend(users)

    Users(store).add("dmadmin", "secret-of-dmadmin")
    sync = UserSynchronisation(store, {"hr": directory}, SETTINGS, push)
    directory.people = [person(1, password_hash="{SSHA512}one"), person(2)]
    health = Health("facility")
    sync.watch(health)
    assert "LDAP does not answer" in sync.run("dmadmin")["remark"]
    (shown,) = health.status()["checks"]
    assert (shown["status"], "2 users" in shown["message"], "answer" in shown["message"]) == ("warning", True, False)
    outage.clear()
    assert "remark" not in sync.run("dmadmin")
    assert {(one.username, one.person.password_hash) for one in told} == {("d1", "{SSHA512}one"), ("d2", None)}
    told.clear()
    sync.run("dmadmin")
    assert told == []
    directory.people[0] = person(1, password_hash="{SSHA512}two", username="lee")
    sync.run("dmadmin")
    assert [(one.username, one.person.password_hash) for one in told] == [("lee", "{SSHA512}two")]
    sync.stop()


def test_the_background_runs_when_due(store: Store, directory: Directory) -> None:
    Users(store).add("dmadmin", "secret-of-dmadmin")
    sync = UserSynchronisation(store, {"hr": directory}, SETTINGS)
    sync.start()
    deadline = time.monotonic() + 60
    while not (found := sync.all()) or found[-1]["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sync.stop()
    assert (found[-1]["status"], found[-1]["owner"], len(found)) == ("done", "user-sync", 1)
    assert events(store)[0][2] == "user-sync"


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from dm.site.database.store import Store
from dm.site.identity import sync_store
from dm.site.identity.synchronisation import UserSynchronisation
from tests.service.test_user_sync import Directory, SETTINGS, person

directory = Directory()
directory.people = [person(number) for number in range(1, 21)]
add = sync_store.add
def adding(*words):
    add(*words)
    print("added", flush=True)
    time.sleep(60)
sync_store.add = adding
UserSynchronisation(Store(sys.argv[1]), {"hr": directory}, SETTINGS).run("dmadmin")
"""


def test_a_killed_run_leaves_nothing(sync: UserSynchronisation, store: Store) -> None:
    url = store.engine.url.render_as_string(hide_password=False)
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen([sys.executable, "-c", KILLED, url, root], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "added\n"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 30
    while sync.all()[-1]["status"] == "running":  # until PostgreSQL has noticed
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "ended during the run" in sync.all()[-1]["message"]
    assert rows(store, "id") == {} and events(store) == []
    assert sync.run("dmadmin")["added"] == 20


def test_whom_an_administrator_deactivates_no_directory_lets_in_again(
    sync: UserSynchronisation, store: Store, directory: Directory
) -> None:
    users = Users(store)
    sync.run("dmadmin")
    directory.people[:2] = [person(1, active=False), person(2, active=False)]
    sync.run("dmadmin")
    assert (rows(store, "active")["d1"], rows(store, "active")["d2"]) == (False, False)
    users.update("d1", active=True)
    users.update("d1", active=False)
    users.update("d2", active=False)  # they are already, but the directory could think better of it
    directory.people[:2] = [person(1), person(2)]
    assert sync.run("dmadmin")["reactivated"] == 0
    assert (rows(store, "active")["d1"], rows(store, "active")["d2"]) == (False, False)
    users.update("d2", active=True)
    assert rows(store, "active")["d2"] is True
