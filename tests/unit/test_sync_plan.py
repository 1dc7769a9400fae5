"""What a run of synchronisation would do, decided without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dm.site.facility.adapters.base import Person
from dm.site.identity.sync_plan import Known, Plan, make_plan
from dm.site.identity.sync_settings import UserSyncSettings

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
SETTINGS = UserSyncSettings(deactivate="immediately")


def person(number: int, **changes: Any) -> Person:
    return Person(
        **{"key": f"K{number}", "badge": number, "first_name": "Ann", "last_name": f"Lee{number}", "email": "a@b.org"}
        | changes
    )


def user(number: int, **changes: Any) -> Known:
    """The user that :func:`person` of the same number became."""
    known = Known(
        id=number, username=f"d{number}", badge=number, first_name="Ann", middle_name="", last_name=f"Lee{number}",
        email="a@b.org", institution="", active=True, source="hr", source_key=f"K{number}", absent_since=None,
        absent_runs=0, deactivated_by=None, directory_digest=None, administrator=False,
    )  # fmt: skip
    return replace(known, **changes)


ADMINISTRATOR = user(9000, username="dmadmin", source=None, source_key=None, badge=None, administrator=True)


def plan(people: list[Person], users: list[Known], settings: UserSyncSettings = SETTINGS) -> Plan:
    return make_plan("hr", people, [ADMINISTRATOR, *users], settings, NOW)


def notes(found: Plan) -> str:
    return " ".join(str(note["note"]) for note in found.notes)


def reasons(found: Plan) -> str:
    return " ".join(str(one["reason"]) for one in found.skipped)


def test_new_changed_and_vanished() -> None:
    found = plan([person(1), person(2, email="new@b.org"), person(4)], [user(1), user(2), user(3)])
    assert [one.username for one in found.added] == ["d4"]
    assert [(one.user.username, one.values["email"]) for one in found.changed] == [("d2", "new@b.org")]
    assert [one.username for one, _ in found.deactivated] == ["d3"]
    assert found.unchanged == 1 and not found.skipped


def test_nobody_touches_local_accounts_or_people_of_another_directory() -> None:
    local = user(1, source=None, source_key=None)
    other = user(2, source="guests", source_key="K2")
    found = plan([person(1), person(2), person(3)], [local, other, user(3)])
    assert "local account" in reasons(found) and "another user of guests" in reasons(found)
    assert not found.added and not found.changed and not found.deactivated
    assert plan([person(3)], [local, other, user(3)]).deactivated == []


def test_user_names_may_change_and_be_exchanged() -> None:
    found = plan(
        [person(1, username="d2"), person(2, username="d1"), person(3, username="lee")], [user(1), user(2), user(3)]
    )
    assert {one.user.username: one.name for one in found.changed} == {"d1": "d2", "d2": "d1", "d3": "lee"}
    assert notes(found).count("user name changes") == 3


def test_a_user_name_that_somebody_else_has_is_kept_and_everything_else_follows() -> None:
    local = user(7, username="boss", source=None, source_key=None)
    found = plan([person(1, username="Boss", email="x@y.org"), person(2, username="d1")], [user(1), user(2), local])
    assert {one.user.username: one.name for one in found.changed} == {"d1": "d1"}
    assert "which is the name of a local account" in notes(found)
    assert "which is the name of another user of hr" in notes(found)  # as the first could not give it up


def test_a_changed_badge_is_reported() -> None:
    found = plan([person(1, badge=77, username="d1")], [user(1)])
    assert found.changed[0].values["badge"] == 77 and "badge changes from 1 to 77" in notes(found)


def test_a_new_key_with_the_same_badge_is_the_same_person() -> None:
    found = plan([person(1, key="NEW", username="lee")], [user(1)])
    assert not found.added and not found.deactivated
    assert [(one.user.id, one.person.key, one.name) for one in found.changed] == [(1, "NEW", "lee")]


def test_a_user_name_given_to_somebody_else_inherits_nothing() -> None:
    found = plan([person(2, username="d1", badge=5)], [user(1)])
    assert not found.added and not found.changed and "another user of hr" in reasons(found)
    without = plan([person(1, key="NEW", badge=None, username="d1")], [user(1)])
    assert [one.person.key for one in without.changed] == ["NEW"]  # same name and last name, no badge that differs


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (person(1, key=""), "key"),
        (person(1, key="x\0"), "NUL"),
        (person(1, badge=-1), "Badge"),
        (person(1, badge="seven", username="a"), "Badge"),
        (person(1, badge=1 << 31), "Badge"),
        (person(1, badge=None), "neither"),
        (person(1, username="two words"), "User name"),
        (person(1, username="-rf"), "User name"),
        (person(1, last_name=None), "last_name"),
        (person(1, email="x" * 1001), "email"),
        (person(1, first_name="\ud800"), "no text"),
    ],
)
def test_malformed_people_are_reported_and_left_as_they_are(bad: Person, reason: str) -> None:
    found = plan([bad, person(2)], [user(2)])
    assert reason in reasons(found) and not found.added and not found.deactivated and found.unchanged == 1


def test_a_known_person_whose_record_is_malformed_has_not_vanished() -> None:
    found = plan([person(1, username="two words"), person(2)], [user(1), user(2)])
    assert not found.deactivated and len(found.skipped) == 1


def test_whom_the_adapter_left_out_has_not_vanished() -> None:
    rejected = [("user 'K1'", "its badge is no number: 'x'")]
    found = make_plan("hr", [person(2)], [ADMINISTRATOR, user(1), user(2)], SETTINGS, NOW, rejected=rejected)
    assert not found.deactivated and "no number" in reasons(found)


def test_duplicates() -> None:
    same = plan([person(1), person(1)], [])
    assert len(same.added) == 1 and "twice" in notes(same)
    different = plan([person(1), person(1, email="other")], [user(1)])
    assert not different.changed and not different.deactivated and len(different.skipped) == 2
    names = plan([person(1, username="lee"), person(2, username="Lee")], [])
    assert not names.added and len(names.skipped) == 2
    badges = plan([person(1), person(2, badge=1, username="other")], [])
    assert not badges.added and "badge 1" in reasons(badges)


def test_policies() -> None:
    def left(settings: UserSyncSettings, **changes: Any) -> tuple[int, int]:
        found = plan([person(2)], [user(1, **changes), user(2)], settings)
        return len(found.deactivated), len(found.absent)

    assert left(UserSyncSettings(deactivate="never"), absent_runs=99) == (0, 1)
    runs = UserSyncSettings(deactivate="after_runs", absent_runs=3)
    assert left(runs, absent_runs=1) == (0, 1) and left(runs, absent_runs=2) == (1, 0)
    days = UserSyncSettings(deactivate="after_days", absent_days=7)
    assert left(days) == (0, 1)
    assert left(days, absent_since=NOW - timedelta(days=6)) == (0, 1)
    assert left(days, absent_since=NOW - timedelta(days=7)) == (1, 0)
    back = plan([person(1)], [user(1, absent_runs=2, absent_since=NOW)], days)
    assert [one.id for one in back.present_again] == [1] and back.unchanged == 1


def test_activity_follows_the_directory_but_not_against_an_administrator() -> None:
    found = plan([person(1, active=False)], [user(1)])
    assert [one.id for one, _ in found.deactivated] == [1]
    back = plan([person(1)], [user(1, active=False, deactivated_by="directory")])
    assert back.changed[0].reactivated and back.summary()["reactivated"] == 1
    kept = plan([person(1)], [user(1, active=False)])
    assert not kept.changed and "administrator" in notes(kept)
    assert plan([person(1, active=False)], []).inactive == 1


def test_the_last_administrator_stays() -> None:
    found = make_plan("hr", [person(2)], [user(1, administrator=True), user(2)], SETTINGS, NOW)
    assert not found.deactivated and "last administrator" in notes(found)


def test_too_many_changes_are_refused() -> None:
    users = [user(number) for number in range(1, 101)]
    people = [person(number) for number in range(1, 101)]
    settings = UserSyncSettings(deactivate="after_days", limit_percent=20, limit_least=3)
    assert not plan(people[20:], users, settings).refusal(settings)
    assert "21 of 100" in plan(people[21:], users, settings).refusal(settings)
    # who has been missing for long was counted when they went
    gone = [replace(one, absent_runs=1, absent_since=NOW) for one in users[:50]] + users[50:]
    assert not plan(people[50:], gone, settings).refusal(settings)
    assert plan([replace(one, email="x@new.org") for one in people], users, settings).refusal(settings)
    assert "empty" in plan([], users, settings).refusal(settings)
    assert not plan([person(number) for number in range(1, 500)], users, settings).refusal(settings)


@given(
    st.lists(
        st.builds(
            Person,
            key=st.sampled_from(["K1", "K2", "K3", "K4"]),
            badge=st.sampled_from([1, 2, 3, 4, None]),
            username=st.sampled_from(["d1", "d2", "d3", "D1", "boss", None]),
            last_name=st.sampled_from(["Lee1", "Lee2", ""]),
            active=st.booleans(),
        ),
        max_size=6,
    )
)
def test_user_names_stay_unique_and_others_untouched(people: list[Person]) -> None:
    local = user(7, username="boss", source=None, source_key=None)
    users = [ADMINISTRATOR, local, user(1), user(2), user(3)]
    found = make_plan("hr", people, users, SETTINGS, NOW)
    names = {one.id: one.username for one in users} | {change.user.id: change.name for change in found.changed}
    final = [name.casefold() for name in names.values()] + [str(one.username).casefold() for one in found.added]
    assert len(final) == len(set(final))
    keys = {one.id: one.source_key for one in users if one.source} | {c.user.id: c.person.key for c in found.changed}
    mine = [*keys.values(), *(one.key for one in found.added)]
    assert len(mine) == len(set(mine))
    touched = {change.user.id for change in found.changed} | {one.id for one, _ in found.deactivated}
    assert not touched & {local.id, ADMINISTRATOR.id}
    assert len({change.user.id for change in found.changed}) == len(found.changed)
