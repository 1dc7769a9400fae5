"""People's entries in a real slapd, for sites where DM writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ServiceUnavailable
from dm.site.facility.service import build_from_settings
from dm.site.facility.settings import FacilitySettings
from dm.site.identity.ldap.keeper import DirectoryKeeper
from tests.service import storage_fixtures as fx
from tests.service.ldap_fixtures import site_with_ldap
from tests.service.slapd_server import Slapd, running_slapd, until

# The hash of "directory-secret", as user directories hand it over.
SECRET = "directory-secret"
HASHED = "{SSHA}5JxvC3NuP/Wb2/51vvEb3peEZTtzYWx0c2FsdA=="
UID_FIRST = 600_000


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with running_slapd(tmp_path_factory.mktemp("ldap") / "slapd") as server:
        yield server


@pytest.fixture(scope="module", params=["expire", pytest.param("remove", marks=pytest.mark.long)])
def site(
    request: pytest.FixtureRequest,
    slapd: Slapd,
    new_postgres_database: Callable[[], str],
    certificates: Path,
    run_directory: Path,
) -> Iterator[fx.Site]:
    directory = run_directory / f"ldap-users-{request.param}"
    options = {"manage_users": "synchronised", "deactivation": request.param, "mark": f"dm-{request.param}"}
    with site_with_ldap(new_postgres_database(), certificates, directory, slapd, **options) as found:
        yield found


def keeper(site: fx.Site) -> DirectoryKeeper:
    return site.service.use_cases.directory.required()


def add_person(site: fx.Site, username: str, **columns: Any) -> int:
    """Add a user as a synchronisation with a directory does; return the number."""
    values = {"first_name": "Ann", "last_name": "Doe", "email": f"{username}@example.org", "source": "hr", **columns}
    values |= {"username": username, "badge": int(username[1:]), "source_key": username, "is_local_user": False}
    names = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    with site.service.store.transaction() as connection:
        statement = f"INSERT INTO users ({names}) VALUES ({places}) RETURNING id"
        return int(connection.exec_driver_sql(statement, values).scalar_one())


def change(site: fx.Site, number: int, **columns: Any) -> None:
    with site.service.store.transaction() as connection:
        settings = ", ".join(f"{name} = %({name})s" for name in columns)
        connection.exec_driver_sql(f"UPDATE users SET {settings} WHERE id = %(id)s", {**columns, "id": number})


def entry(slapd: Slapd, username: str) -> dict[str, list[str]]:
    return slapd.entry(f"uid={username},{slapd.people}") or {}


def name_for(site: fx.Site, number: int) -> str:
    """Return a user name of this module's site: both write into one slapd."""
    assert site.settings.ldap is not None
    return f"d{(1 if site.settings.ldap.deactivation == 'expire' else 2)}{number:05d}"


def test_an_entry_follows_its_user(site: fx.Site, slapd: Slapd) -> None:
    assert site.settings.ldap is not None
    name = name_for(site, 1)
    number = add_person(site, name)
    until(lambda: entry(slapd, name), what="the entry")
    made = entry(slapd, name)
    assert made["uidNumber"] == [str(UID_FIRST + number)]
    assert (made["cn"], made["sn"], made["mail"]) == (["Ann Doe"], ["Doe"], [f"{name}@example.org"])
    assert (made["homeDirectory"], made["loginShell"], made["gidNumber"]) == ([f"/home/{name}"], ["/bin/bash"], ["100"])
    assert made["description"] == [f"{site.settings.ldap.mark}:user:{number}"]
    assert "userPassword" not in made
    change(site, number, last_name="Roe", email="")
    until(lambda: entry(slapd, name).get("sn") == ["Roe"])
    assert "mail" not in entry(slapd, name)
    change(site, number, username=name_for(site, 2))
    until(lambda: entry(slapd, name_for(site, 2)).get("uidNumber") == [str(UID_FIRST + number)])
    assert entry(slapd, name) == {}


def test_deactivation_by_policy_and_back(site: fx.Site, slapd: Slapd) -> None:
    assert site.settings.ldap is not None
    name = name_for(site, 3)
    number = add_person(site, name)
    until(lambda: entry(slapd, name), what="the entry")
    change(site, number, active=False)
    if site.settings.ldap.deactivation == "remove":
        until(lambda: not entry(slapd, name))
    else:
        until(lambda: entry(slapd, name).get("shadowExpire") == ["1"])
        assert entry(slapd, name)["loginShell"] == ["/usr/sbin/nologin"]
    change(site, number, active=True)
    until(lambda: entry(slapd, name).get("loginShell") == ["/bin/bash"])
    assert "shadowExpire" not in entry(slapd, name)
    assert entry(slapd, name)["uidNumber"] == [str(UID_FIRST + number)]


def test_password_hashes_reach_ldap_and_nothing_else(
    site: fx.Site, slapd: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    name = name_for(site, 4)
    number = add_person(site, name)
    report = keeper(site).push_users([number], {name: HASHED}, dry_run=True)
    assert report.passwords == [name]
    report = keeper(site).push_users([number], {name: HASHED})
    assert report.passwords == [name]
    dn = f"uid={name},{slapd.people}"
    assert slapd.password_is(dn, SECRET)
    rest = fx.RestClient(site.url, name, SECRET, ca_file=site.ca_file)
    try:
        assert rest.get("/session")["username"] == name  # and so they log in
    finally:
        rest.close()
    other = HASHED[:6] + "A" * 4 + HASHED[10:]
    keeper(site).push_users([number], {name: other})
    assert not slapd.password_is(dn, SECRET)
    keeper(site).push_users([number])  # without a hash the password stays as it is
    assert HASHED[6:] not in caplog.text
    with site.service.store.transaction() as connection:
        for table in ("users", "audit_events", "directory_runs", "directory_marks"):
            rows = connection.exec_driver_sql(f"SELECT t::text FROM {table} t").scalars().all()
            assert not any(HASHED[6:] in row for row in rows)


def test_local_users_and_foreign_entries_are_left_alone(site: fx.Site, slapd: Slapd) -> None:
    name = name_for(site, 5)
    slapd.add_person(name, "foreign-secret", 70_000)
    before = entry(slapd, name)
    number = add_person(site, name, first_name="Somebody", last_name="Else")
    assert keeper(site).push_users([number], {name: HASHED}).foreign == [name]
    report = site.users(fx.ADMIN).syncGroups()
    assert name in report["people"]["foreign"]
    assert entry(slapd, name) == before
    assert entry(slapd, fx.ALICE) == {}  # a local user


def test_nobody_of_a_directory_becomes_an_account_of_the_system(site: fx.Site, slapd: Slapd) -> None:
    name = name_for(site, 30)
    number = add_person(site, name)
    until(lambda: entry(slapd, name), what="the entry")
    for taken in ("root", "daemon"):
        change(site, number, username=taken)
        report = keeper(site).push_users([number], {taken: HASHED})
        assert [one["user"] for one in report.refused] == [taken] and "system" in report.refused[0]["reason"]
        assert entry(slapd, taken) == {} and entry(slapd, name)
    change(site, number, username=name)
    other = add_person(site, name_for(site, 31), active=False)
    change(site, other, username="root", active=True)
    assert keeper(site).push_users([other], {"root": HASHED}).refused
    assert entry(slapd, "root") == {}
    change(site, other, username=name_for(site, 31))
    assert not keeper(site).push_users([number, other]).refused


def test_drift_of_people_is_repaired(site: fx.Site, slapd: Slapd) -> None:
    assert site.settings.ldap is not None
    lost, changed = name_for(site, 6), name_for(site, 7)
    for name in (lost, changed):
        add_person(site, name)
    until(lambda: site.users(fx.ADMIN).getGroupSync()["waiting"] == 0, what="an up-to-date directory")
    slapd.delete(f"uid={lost},{slapd.people}")
    slapd.modify(f"dn: uid={changed},{slapd.people}\nchangetype: modify\nreplace: uidNumber\nuidNumber: 0\n")
    leftover = f"uid=left-{site.settings.ldap.mark},{slapd.people}"
    slapd.add(
        f"dn: {leftover}\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\nuid: left-{site.settings.ldap.mark}\n"
        f"cn: left\nsn: left\nuidNumber: 5\ngidNumber: 5\nhomeDirectory: /\n"
        f"description: {site.settings.ldap.mark}:user:999999\n"
    )
    dry = site.users(fx.ADMIN).syncGroups(dryRun=True)["people"]
    assert entry(slapd, lost) == {}
    people = site.users(fx.ADMIN).syncGroups()["people"]
    for report in (dry, people):
        assert (report["added"], report["changed"], report["removed"]) == ([lost], [changed], [leftover])
    assert entry(slapd, lost)["uid"] == [lost]
    assert entry(slapd, changed)["uidNumber"] != ["0"]
    assert slapd.entry(leftover) is None


def test_people_of_the_facility_s_directory_log_in_with_its_passwords(
    site: fx.Site, slapd: Slapd, certificates: Path, tmp_path: Path
) -> None:
    """A synchronisation hands the hashes over; the entry made anew after a loss gets its password back."""
    assert site.settings.ldap is not None
    name = name_for(site, 9)
    (tmp_path / "people").mkdir()
    table = tmp_path / "people" / "users.csv"
    head = "key,badge,firstName,lastName,email,passwordHash\n"
    table.write_text(f"{head}K{name},{name[1:]},Ann,Lee,{name}@example.org,{HASHED}\n")
    values = json.loads(site.settings.ldap.model_dump_json(exclude_none=True))
    (tmp_path / "dm.toml").write_text(
        "[storage.ldap]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    )
    settings = FacilitySettings(
        host="127.0.0.1", port=0, certificate=certificates / "server.pem", key=certificates / "server.key",
        database_url=site.settings.database_url, database_connections=2,
        adapters={"hr": {"adapter": "csv", "directory": tmp_path / "people"}},
        user_sync={"every_hours": 0},
    )  # fmt: skip
    facility = build_from_settings(settings, tmp_path / "dm.toml")
    try:
        assert facility.user_syncs.run("dmadmin", "hr")["status"] == "done"
        dn = f"uid={name},{slapd.people}"
        assert slapd.password_is(dn, SECRET)
        assert facility.application.authenticator.login(name, SECRET).username == name
        until(lambda: site.users(fx.ADMIN).getGroupSync()["waiting"] == 0, what="an up-to-date directory")
        slapd.delete(dn)
        site.users(fx.ADMIN).syncGroups()
        assert not slapd.password_is(dn, SECRET)
        assert facility.user_syncs.run("dmadmin", "hr")["status"] == "done"
        assert slapd.password_is(dn, SECRET)
    finally:
        facility.stop()


def test_pushing_into_a_directory_that_is_down_says_so(site: fx.Site, slapd: Slapd) -> None:
    name = name_for(site, 8)
    slapd.stop()
    try:
        number = add_person(site, name)
        with pytest.raises(ServiceUnavailable):
            keeper(site).push_users([number], {name: HASHED})
    finally:
        slapd.start()
    until(lambda: entry(slapd, name), what="the entry after the outage")


@pytest.mark.long
def test_the_server_itself_locks_who_is_not_active(
    new_postgres_database: Callable[[], str], certificates: Path, open_directory: Path, tmp_path: Path
) -> None:
    options = {"manage_users": "all", "deactivation": "lock"}
    with (
        running_slapd(tmp_path / "slapd", policy=True) as slapd,
        site_with_ldap(new_postgres_database(), certificates, open_directory / "site", slapd, **options) as site,
    ):
        until(lambda: entry(slapd, fx.ALICE), what="the entry of a local user")
        number = add_person(site, "d900001")
        dn = f"uid=d900001,{slapd.people}"
        until(lambda: entry(slapd, "d900001"), what="the entry")
        keeper(site).push_users([number], {"d900001": HASHED})
        assert slapd.password_is(dn, SECRET)
        change(site, number, active=False)
        until(lambda: not slapd.password_is(dn, SECRET), what="a locked account")
        assert entry(slapd, "d900001")["loginShell"] == ["/usr/sbin/nologin"]
        assert site.users(fx.ADMIN).syncGroups(dryRun=True)["drift"] == 0
        change(site, number, active=True)
        until(lambda: slapd.password_is(dn, SECRET), what="an account unlocked")
