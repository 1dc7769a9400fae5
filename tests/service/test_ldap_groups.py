"""Groups of experiments in a real slapd follow the database."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.environment import write_login_file
from dm.common.errors import AuthorizationError, ConfigurationError, InvalidObjectState
from tests.live import PROGRAMS
from tests.service import storage_fixtures as fx
from tests.service.ldap_fixtures import GID_FIRST, settings, site_with_ldap
from tests.service.slapd_server import Slapd, running_slapd, until

STAFF = {fx.MANAGER, fx.SERVICE, "mover"}


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with running_slapd(tmp_path_factory.mktemp("ldap") / "slapd") as server:
        yield server


@pytest.fixture(scope="module")
def site(
    slapd: Slapd, new_postgres_database: Callable[[], str], certificates: Path, run_directory: Path
) -> Iterator[fx.Site]:
    directory = run_directory / "ldap-groups"
    with site_with_ldap(new_postgres_database(), certificates, directory, slapd, extra_members=["mover"]) as found:
        yield found


def added(site: fx.Site, slapd: Slapd, name: str, *usernames: str) -> tuple[int, str]:
    """Add an experiment; return its number and its group once slapd has it."""
    record = site.experiments(fx.MANAGER).addExperiment(name, usernameList=list(usernames))
    until(lambda: slapd.members(record["authGroupName"]) == STAFF | set(usernames), what="the group")
    return int(record["id"]), str(record["authGroupName"])


def execute(site: fx.Site, statement: str, *values: Any) -> None:
    with site.service.store.transaction() as connection:
        connection.exec_driver_sql(statement, values)


def events(site: fx.Site, event: str) -> list[dict[str, Any]]:
    with site.service.store.transaction() as connection:
        rows = connection.exec_driver_sql(
            "SELECT subject, actor, details FROM audit_events WHERE event = %s ORDER BY id", (event,)
        )
        return [dict(row._mapping) for row in rows]


def status(site: fx.Site) -> str:
    """Return what health says now."""
    site.service.application.health.clear()
    return json.dumps(site.service.application.health.status())


def test_the_group_of_an_experiment_follows_its_members(site: fx.Site, slapd: Slapd) -> None:
    users = site.users(fx.MANAGER)
    number, group = added(site, slapd, "follow", fx.ALICE)
    entry = slapd.entry(f"cn={group},{slapd.groups}")
    assert entry is not None
    assert entry["gidNumber"] == [str(GID_FIRST + number)]
    assert entry["description"] == [f"dm:experiment:{number}"]
    users.addUserExperimentRole(fx.BOB, "PI", "follow")
    users.addUserExperimentRole(fx.BOB, "User", "follow")
    until(lambda: slapd.members(group) == STAFF | {fx.ALICE, fx.BOB})
    users.deleteUserExperimentRole(fx.ALICE, "User", "follow")
    users.deleteUserExperimentRole(fx.BOB, "PI", "follow")  # is still User
    until(lambda: slapd.members(group) == STAFF | {fx.BOB})
    assert slapd.entry(f"cn={group},{slapd.groups}")["gidNumber"] == entry["gidNumber"]  # type: ignore[index]


def test_the_staff_of_a_station_is_in_all_its_groups(site: fx.Site, slapd: Slapd) -> None:
    groups = [added(site, slapd, f"staff{number}")[1] for number in range(3)]
    administrator = site.users(fx.ADMIN)
    administrator.addUserStationRole(fx.ALICE, "manager", fx.STATION)
    until(lambda: all(slapd.members(group) == STAFF | {fx.ALICE} for group in groups))
    administrator.deleteUserStationRole(fx.ALICE, "manager", fx.STATION)
    until(lambda: all(slapd.members(group) == STAFF for group in groups))


def test_who_is_not_active_is_in_no_group(site: fx.Site, slapd: Slapd) -> None:
    _, group = added(site, slapd, "inactive", fx.ALICE, fx.BOB)
    execute(site, "UPDATE users SET active = false WHERE username = %s", fx.BOB)
    until(lambda: slapd.members(group) == STAFF | {fx.ALICE})
    execute(site, "UPDATE users SET active = true WHERE username = %s", fx.BOB)
    until(lambda: slapd.members(group) == STAFF | {fx.ALICE, fx.BOB})


def test_a_deleted_experiment_has_a_group_without_members_until_it_is_purged(site: fx.Site, slapd: Slapd) -> None:
    number, group = added(site, slapd, "gone", fx.ALICE)
    execute(
        site, "UPDATE experiments SET state = 'deleted', purge_after = now() + interval '1 day' WHERE id = %s", number
    )
    until(lambda: slapd.members(group) == {"mover"})
    execute(site, "UPDATE experiments SET state = 'active', purge_after = NULL WHERE id = %s", number)
    until(lambda: slapd.members(group) == STAFF | {fx.ALICE})
    execute(site, "UPDATE experiments SET state = 'deleted', purge_after = now() WHERE id = %s", number)
    execute(site, "UPDATE experiments SET purged = now() WHERE id = %s", number)
    until(lambda: slapd.members(group) is None)
    again, other = added(site, slapd, "gone")
    assert again > number
    assert other != group


def test_a_group_is_renamed_with_its_experiment(site: fx.Site, slapd: Slapd) -> None:
    number, group = added(site, slapd, "before", fx.ALICE)
    execute(site, "UPDATE experiments SET auth_group_name = 'after-25idc' WHERE id = %s", number)
    until(lambda: slapd.members("after-25idc") == STAFF | {fx.ALICE})
    assert slapd.members(group) is None
    assert slapd.entry(f"cn=after-25idc,{slapd.groups}")["gidNumber"] == [str(GID_FIRST + number)]  # type: ignore[index]


def test_only_differences_are_written(site: fx.Site, slapd: Slapd) -> None:
    _, group = added(site, slapd, "calm", fx.ALICE)
    quiet(site)
    begin = len(slapd.log())
    report = site.users(fx.ADMIN).syncGroups()
    assert report["drift"] == 0
    assert not re.search(r"op=\d+ (ADD|MOD|DEL|MODRDN) ", slapd.log()[begin:])
    site.users(fx.MANAGER).addUserExperimentRole(fx.BOB, "User", "calm")
    until(lambda: slapd.members(group) == STAFF | {fx.ALICE, fx.BOB})
    assert re.findall(r"op=\d+ MOD attr=(.*)", slapd.log()[begin:]) == ["memberUid"]


def quiet(site: fx.Site) -> None:
    """Wait until the directory knows all."""
    until(lambda: site.users(fx.ADMIN).getGroupSync()["waiting"] == 0, what="an up-to-date directory")


def test_drift_is_reported_repaired_and_noted(site: fx.Site, slapd: Slapd) -> None:
    administrator = site.users(fx.ADMIN)
    names = {key: added(site, slapd, f"drift-{key}", fx.ALICE) for key in ("lost", "gid", "more", "less", "name")}
    group = {key: name for key, (_, name) in names.items()}
    quiet(site)
    dn = {key: f"cn={name},{slapd.groups}" for key, name in group.items()}
    slapd.delete(dn["lost"])
    slapd.modify(f"dn: {dn['gid']}\nchangetype: modify\nreplace: gidNumber\ngidNumber: 77\n")
    slapd.modify(f"dn: {dn['more']}\nchangetype: modify\nadd: memberUid\nmemberUid: d999\nmemberUid: mallory\n")
    slapd.modify(f"dn: {dn['less']}\nchangetype: modify\ndelete: memberUid\nmemberUid: {fx.ALICE}\n")
    slapd.modify(f"dn: {dn['name']}\nchangetype: modrdn\nnewrdn: cn=elsewhere\ndeleteoldrdn: 1\n")
    extra = f"cn=leftover,{slapd.groups}"
    slapd.add(
        f"dn: {extra}\nobjectClass: posixGroup\ncn: leftover\ngidNumber: 78\ndescription: dm:experiment:999999\n\n"
        f"dn: cn=foreign,{slapd.groups}\nobjectClass: posixGroup\ncn: foreign\ngidNumber: 79\nmemberUid: mallory\n"
    )

    def found(report: Any) -> None:
        assert report["drift"] == 6
        assert report["missingGroups"] == [group["lost"]]
        assert report["extraGroups"] == [extra]
        assert report["wrongGid"] == [{"group": group["gid"], "gid": 77, "rightGid": GID_FIRST + names["gid"][0]}]
        assert report["extraMembers"] == [{"group": group["more"], "users": ["d999", "mallory"]}]
        assert report["missingMembers"] == [{"group": group["less"], "users": [fx.ALICE]}]
        assert report["wrongName"] == [{"group": group["name"], "dn": f"cn=elsewhere,{slapd.groups}"}]

    found(administrator.syncGroups(dryRun=True))
    assert slapd.members(group["lost"]) is None  # nothing was written
    assert slapd.entry(extra) is not None
    found(administrator.syncGroups())
    assert all(slapd.members(name) == STAFF | {fx.ALICE} for name in group.values())
    assert slapd.entry(dn["gid"])["gidNumber"] == [str(GID_FIRST + names["gid"][0])]  # type: ignore[index]
    assert slapd.entry(extra) is None
    assert slapd.members("foreign") == {"mallory"}  # not ours
    assert {event["details"]["kind"] for event in events(site, "group.drift")} >= {
        "missing_groups", "extra_groups", "wrong_gid", "extra_members", "missing_members", "wrong_name"
    }  # fmt: skip
    assert "changed by others in 6 ways" in status(site)
    assert administrator.syncGroups()["drift"] == 0


def test_a_foreign_group_in_the_way_is_left_alone_and_told(site: fx.Site, slapd: Slapd) -> None:
    number, group = added(site, slapd, "obstacle")
    quiet(site)
    slapd.delete(f"cn={group},{slapd.groups}")
    foreign = (
        f"dn: cn={group},{slapd.groups}\nobjectClass: posixGroup\ncn: {group}\ngidNumber: 81\nmemberUid: mallory\n"
    )
    slapd.add(foreign)
    report = site.users(fx.ADMIN).syncGroups()
    assert report["inTheWay"] == [group]
    assert slapd.members(group) == {"mallory"}
    slapd.delete(f"cn={group},{slapd.groups}")
    slapd.add(
        foreign.replace(f"cn: {group}", "cn: other")
        .replace(f"cn={group}", "cn=other")
        .replace("81", str(GID_FIRST + number))
    )
    assert site.users(fx.ADMIN).syncGroups()["inTheWay"] == [group]
    slapd.delete(f"cn=other,{slapd.groups}")
    site.users(fx.ADMIN).syncGroups()
    assert slapd.members(group) == STAFF


def test_a_group_the_server_refuses_holds_up_no_other(site: fx.Site, slapd: Slapd) -> None:
    number, group = added(site, slapd, "refused")
    execute(site, "UPDATE experiments SET auth_group_name = '' WHERE id = %s", number)  # no cn is empty
    _, other = added(site, slapd, "accepted", fx.ALICE)
    report = site.users(fx.ADMIN).syncGroups()
    assert report["refusedCount"] == 1
    assert "LDAP refused 1 entries" in status(site)
    execute(site, "UPDATE experiments SET auth_group_name = %s WHERE id = %s", group, number)
    site.users(fx.MANAGER).addUserExperimentRole(fx.BOB, "User", "refused")
    until(lambda: slapd.members(group) == STAFF | {fx.BOB})
    assert slapd.members(other) == STAFF | {fx.ALICE}


def test_many_removals_are_held_back(site: fx.Site, slapd: Slapd) -> None:
    quiet(site)
    for number in range(25):
        slapd.add(
            f"dn: cn=old{number},{slapd.groups}\nobjectClass: posixGroup\ncn: old{number}\n"
            f"gidNumber: {9000 + number}\ndescription: dm:experiment:{800000 + number}\n"
        )
    administrator = site.users(fx.ADMIN)
    report = administrator.syncGroups()
    assert (report["heldBack"], report["extraGroupsCount"]) == (25, 25)
    assert slapd.members("old0") is not None
    assert "25 removals from LDAP are held back" in status(site)
    assert administrator.syncGroups(force=True)["heldBack"] == 0
    assert slapd.members("old0") is None


def test_the_command_is_for_administrators(site: fx.Site, tmp_path: Path) -> None:
    def run(username: str) -> subprocess.CompletedProcess[str]:
        login = tmp_path / username
        write_login_file(login, username, fx.password_of(username))
        environment = {"DM_DS_WEB_SERVICE_URL": site.url, "DM_CA_FILE": str(site.ca_file), "DM_LOGIN_FILE": str(login)}
        return subprocess.run(
            [str(PROGRAMS / "dm-sync-groups"), "--dry-run"],
            env=os.environ | environment | {"DM_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    quiet(site)
    assert run(fx.ADMIN).stdout.startswith("dryRun=True ")
    assert run(fx.MANAGER).returncode == AuthorizationError.code


def test_an_outage_is_caught_up(site: fx.Site, slapd: Slapd) -> None:
    _, group = added(site, slapd, "outage", fx.ALICE)
    slapd.stop()
    site.users(fx.MANAGER).addUserExperimentRole(fx.BOB, "User", "outage")
    assert site.users(fx.ADMIN).getGroupSync()["waiting"] >= 1
    slapd.start()
    until(lambda: slapd.members(group) == STAFF | {fx.ALICE, fx.BOB})


def test_group_numbers_are_given_when_ldap_is_switched_on_and_never_change(
    slapd: Slapd, new_postgres_database: Callable[[], str], certificates: Path, open_directory: Path
) -> None:
    with fx.running_site(new_postgres_database(), certificates, open_directory / "site") as site:
        site.experiments(fx.MANAGER).addExperiment("early")
        with pytest.raises(InvalidObjectState, match="no LDAP"):
            site.users(fx.ADMIN).syncGroups()
        ldap = settings(slapd, mark="other", gid_first=630_000)
        site.restart(site.settings.model_copy(update={"ldap": ldap}))
        group = site.experiments(fx.MANAGER).getExperimentByName("early")["authGroupName"]
        until(lambda: slapd.members(group) == {fx.MANAGER, fx.SERVICE}, what="the group of an older experiment")
        assert slapd.entry(f"cn={group},{slapd.groups}")["gidNumber"] == ["630001"]  # type: ignore[index]
        site.stop()
        moved = site.settings.model_copy(update={"ldap": ldap.model_copy(update={"gid_first": 640_000})})
        with pytest.raises(ConfigurationError, match="set it back"):
            fx.start(moved)
        site.service, site.server = fx.start(site.settings.model_copy(update={"ldap": None}))
        site.experiments(fx.MANAGER).addExperiment("late")
        with site.service.store.transaction() as connection:
            numbers = connection.exec_driver_sql("SELECT name, gid FROM experiments ORDER BY id").all()
        assert [tuple(row) for row in numbers] == [("early", 630_001), ("late", None)]


def _keeper(site: fx.Site) -> subprocess.Popen[bytes]:
    assert site.settings.ldap is not None
    command = [
        sys.executable, str(Path(__file__).with_name("directory_process.py")), site.settings.database_url,
        site.settings.ldap.model_dump_json(),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def _end(process: subprocess.Popen[bytes], kill: bool) -> None:
    process.kill() if kill else process.terminate()
    process.wait(20)
    assert process.stdout is not None
    process.stdout.close()


def _killed_rounds(site: fx.Site, slapd: Slapd, rounds: int) -> None:
    """Change memberships while keepers are killed with -9; at the end the directory agrees."""
    name = f"killed-{time.time_ns()}"
    _, group = added(site, slapd, name)
    members, numbers = site.users(fx.MANAGER), random.Random(rounds)
    site.service.use_cases.directory.stop()  # others do the work from here on
    wanted = set(STAFF)
    for _ in range(rounds):
        process = _keeper(site)
        try:
            for _ in range(8):
                who = numbers.choice(fx.PEOPLE)
                if who in wanted:
                    members.deleteUserExperimentRole(who, "User", name)
                else:
                    members.addUserExperimentRole(who, "User", name)
                wanted ^= {who}
                time.sleep(numbers.random() * 0.15)
        finally:
            _end(process, kill=True)
    process = _keeper(site)
    try:
        until(lambda: slapd.members(group) == wanted, what="agreement after kill -9")
    finally:
        _end(process, kill=False)
        site.restart()
    quiet(site)
    assert site.users(fx.ADMIN).syncGroups(dryRun=True)["drift"] == 0


def test_changes_survive_kill_9_of_whoever_writes_them(site: fx.Site, slapd: Slapd) -> None:
    _killed_rounds(site, slapd, 1)


@pytest.mark.long
def test_changes_survive_many_kills(site: fx.Site, slapd: Slapd) -> None:
    _killed_rounds(site, slapd, 20)


@pytest.mark.long
def test_several_processes_write_one_directory(site: fx.Site, slapd: Slapd) -> None:
    others = [_keeper(site) for _ in range(2)]
    try:
        _, group = added(site, slapd, "several")
        for who in fx.PEOPLE:
            site.users(fx.MANAGER).addUserExperimentRole(who, "User", "several")
        until(lambda: slapd.members(group) == STAFF | set(fx.PEOPLE))
        quiet(site)
        assert site.users(fx.ADMIN).syncGroups(dryRun=True)["drift"] == 0
    finally:
        for process in others:
            _end(process, kill=False)
