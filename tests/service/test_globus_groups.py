"""Globus groups follow the members of experiments, and a guest collection lets them read: with a stand-in for Globus
whose answers have the shapes of the SDK's own testing fixtures.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import responses
from globus_sdk.testing import get_response_set

from dm.common.environment import write_login_file
from dm.common.errors import (
    AuthorizationError,
    ConfigurationError,
    DmException,
    InvalidArgument,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceUnavailable,
)
from dm.common.settings import build
from dm.site.storage.api import GlobusDsApi
from dm.site.storage.globus_client import Change, GlobusClient
from dm.site.storage.outside_settings import GlobusSettings
from tests.live import PROGRAMS
from tests.service import storage_fixtures as fx
from tests.service.globus_fixtures import COLLECTION, HEAD, STAFF, identity, running_globus_site
from tests.service.globus_groups_stand_in import GroupsStandIn
from tests.service.globus_stand_in import CLIENT, GlobusStandIn, error


@dataclass
class Place:
    """A site and its Globus."""

    site: fx.Site
    globus: GlobusStandIn
    directory: Path

    @property
    def people(self) -> GroupsStandIn:
        return self.globus.groups

    def api(self, username: str = fx.MANAGER) -> GlobusDsApi:
        made = GlobusDsApi(username, fx.password_of(username), self.site.url, ca_file=self.site.ca_file)
        self.site.clients.append(made)
        return made

    def experiment(self, *members: str) -> str:
        name = f"exp-{uuid.uuid4().hex[:8]}"
        self.site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=list(members))
        return name

    def events(self, name: str) -> list[str]:
        with self.site.service.store.transaction() as connection:
            query = "SELECT event FROM audit_events WHERE subject = %s AND event LIKE 'group.%%' ORDER BY id"
            return list(connection.exec_driver_sql(query, (f"{name}/{fx.STATION}",)).scalars())


@pytest.fixture(scope="module")
def place(
    new_postgres_database: Callable[[], str], certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("site")
    with running_globus_site(new_postgres_database(), certificates, directory) as (site, globus):
        yield Place(site, globus, directory)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_group_has_the_experiment_s_members(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    group = place.api().createGlobusGroup(name, fx.STATION)
    assert group["name"] == f"{fx.STATION} {name}" and group["countMembers"] == 3 and group["unknownUsers"] == []
    assert place.people.members(group["id"]) == {identity(fx.ALICE): "member"} | STAFF
    assert place.people.groups[group["id"]].document["group_visibility"] == "private"
    experiment = place.site.experiments(fx.ALICE).getExperimentByName(name, fx.STATION)
    assert experiment["globusGroupId"] == group["id"]
    path = experiment["storageDirectory"].replace(str(place.directory / "storage"), "/dm") + "/"
    assert group["collectionPath"] == path and group["collectionId"] == COLLECTION
    assert place.people.readers(COLLECTION)[path] == group["id"]
    (rule,) = [rule for rule in place.people.rules[COLLECTION].values() if rule["path"] == path]
    assert (rule["permissions"], rule["principal_type"], rule["DATA_TYPE"]) == ("r", "group", "access")
    with pytest.raises(ObjectAlreadyExists):
        place.api().createGlobusGroup(name, fx.STATION)
    assert place.events(name) == ["group.added", "group.changed"]


def test_members_follow_by_themselves(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    group = place.api().createGlobusGroup(name, fx.STATION)["id"]
    users = place.site.users(fx.ADMIN)
    users.addUserExperimentRole(fx.BOB, "User", name, fx.STATION)
    eventually(lambda: identity(fx.BOB) in place.people.members(group))
    users.deleteUserExperimentRole(fx.ALICE, "User", name, fx.STATION)
    eventually(lambda: identity(fx.ALICE) not in place.people.members(group))
    users.updateUser(fx.BOB, active=False)
    try:
        eventually(lambda: place.people.members(group) == STAFF)
    finally:
        users.updateUser(fx.BOB, active=True)
    eventually(lambda: identity(fx.BOB) in place.people.members(group))


def test_who_is_unknown_to_globus_is_told(place: Place) -> None:
    name = place.experiment(fx.ALICE, fx.STRANGER)
    group = place.api().createGlobusGroup(name, fx.STATION)
    assert group["unknownUsers"] == [fx.STRANGER] and group["countMembers"] == 3
    status = place.site.rest().get("/status")
    assert "members unknown to Globus" in str(status)
    place.people.know(identity(fx.STRANGER))
    done = place.api().syncGlobusGroup(name, fx.STATION)
    assert done["added"] == [place.people.identities.pop(identity(fx.STRANGER))] and done["unknownUsers"] == []


def test_what_others_change_is_put_right_and_told(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    group = place.api().createGlobusGroup(name, fx.STATION)["id"]
    members = place.people.groups[group].members
    intruder, alice = str(uuid.uuid4()), place.people.identities[identity(fx.ALICE)]
    members[intruder] = "admin", "active"
    members[alice] = "manager", "active"
    rules = place.people.rules[COLLECTION]
    (rule,) = [number for number, rule in rules.items() if rule["principal"] == group]
    del rules[rule]
    seen = place.api().syncGlobusGroup(name, fx.STATION, dryRun=True)
    expected = {"removed": [intruder], "changed": [alice], "added": [], "accessRule": "added"}
    assert {key: seen[key] for key in expected} == expected and intruder in members
    done = place.api().syncGlobusGroup(name, fx.STATION)
    assert {key: done[key] for key in expected} == expected
    assert place.people.members(group) == {identity(fx.ALICE): "member"} | STAFF
    assert group in place.people.readers(COLLECTION).values()
    assert place.events(name)[-1] == "group.drift"


def test_who_may_not_be_added_is_invited(place: Place) -> None:
    place.people.unaddable.add(place.people.identities[identity(fx.BOB)])
    try:
        name = place.experiment(fx.BOB)
        group = place.api().createGlobusGroup(name, fx.STATION)
        members = place.people.groups[group["id"]].members
        assert members[place.people.identities[identity(fx.BOB)]] == ("member", "invited")
        assert place.api().syncGlobusGroup(name, fx.STATION)["added"] == [], "an invitation counts"
    finally:
        place.people.unaddable.clear()


def test_more_members_than_the_experiment_has(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    api = place.api()
    group = api.createGlobusGroup(name, fx.STATION)["id"]
    place.people.know("guest@home.example.org")
    record = api.addGlobusGroupMembers(name, ["Guest@home.example.org"], admins=[fx.BOB], stationName=fx.STATION)
    assert record["extras"] == {"guest@home.example.org": "member", identity(fx.BOB): "admin"}
    more = {"guest@home.example.org": "member", identity(fx.BOB): "admin"}
    assert place.people.members(group) == {identity(fx.ALICE): "member"} | STAFF | more
    api.deleteGlobusGroupMembers(name, ["guest@home.example.org", fx.BOB], fx.STATION)
    assert place.people.members(group) == {identity(fx.ALICE): "member"} | STAFF
    with pytest.raises(ObjectNotFound, match="was not added"):
        api.deleteGlobusGroupMembers(name, [fx.BOB], fx.STATION)
    for wrong in ("nobody", "a b@c", "x@y@z", "@", "a\0"):
        with pytest.raises(InvalidArgument):
            api.addGlobusGroupMembers(name, [wrong], stationName=fx.STATION)


def test_a_broken_creation_is_taken_up_again(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    before = set(place.people.groups)
    place.globus.replies += [("POST /v2/groups/.*", error(503, "Down", "maintenance"))] * 2
    with pytest.raises(ServiceUnavailable, match="out of order"):
        place.api().createGlobusGroup(name, fx.STATION)
    place.globus.replies.clear()
    (made,) = set(place.people.groups) - before
    done = place.api().syncGlobusGroup(name, fx.STATION)
    assert done["id"] == made and done["lastError"] == ""
    # and one whose very row is missing
    with place.site.service.store.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM globus_groups WHERE group_id = %s", (made,))
        connection.exec_driver_sql("UPDATE experiments SET globus_group_id = NULL WHERE name = %s", (name,))
    assert place.api().createGlobusGroup(name, fx.STATION)["id"] == made
    assert set(place.people.groups) - before == {made}


@pytest.mark.parametrize("mine", [("member", "active"), ("admin", "invited"), ("admin", "active")])
def test_a_group_that_a_stranger_prepared_is_not_taken_for_ours(place: Place, mine: tuple[str, str]) -> None:
    name = place.experiment(fx.ALICE)
    number = place.site.experiments(fx.MANAGER).getExperimentByName(name, fx.STATION)["id"]
    parent = str(uuid.uuid4()) if mine == ("admin", "active") else None  # whose administrators rule over it
    bait = place.people.strange(f"[dm experiment {number}]", mine, parent)
    made = place.api().createGlobusGroup(name, fx.STATION)["id"]
    assert made != bait and bait not in place.people.readers(COLLECTION).values()
    place.people.groups.pop(bait)


def test_who_is_in_a_group_is_right_before_it_may_read(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    number = place.site.experiments(fx.MANAGER).getExperimentByName(name, fx.STATION)["id"]
    bait = place.people.strange(f"[dm experiment {number}]", ("admin", "active"))
    place.globus.replies += [(f"POST /v2/groups/{bait}", error(403, "Forbidden", "not an administrator any more"))]
    with pytest.raises(DmException):
        place.api().createGlobusGroup(name, fx.STATION)
    assert bait not in place.people.readers(COLLECTION).values()
    place.globus.replies.clear()
    place.people.groups.pop(bait)


def test_trouble_is_told_and_tried_again(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    group = place.api().createGlobusGroup(name, fx.STATION)["id"]
    gone = place.people.groups.pop(group)
    place.site.users(fx.ADMIN).addUserExperimentRole(fx.BOB, "User", name, fx.STATION)
    eventually(lambda: "GroupNotFound" in place.api().getGlobusGroup(name, fx.STATION)["lastError"])
    place.people.groups[group] = gone
    done = place.api().syncGlobusGroup(name, fx.STATION)
    assert done["lastError"] == "" and identity(fx.BOB) in place.people.members(group)


def test_groups_end_with_their_experiments(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    group = place.api().createGlobusGroup(name, fx.STATION)["id"]
    place.site.experiments(fx.MANAGER).deleteExperimentByName(name, fx.STATION)
    eventually(lambda: group not in place.people.groups)
    assert group not in place.people.readers(COLLECTION).values()
    eventually(lambda: place.events(name)[-1] == "group.deleted")
    other = place.experiment(fx.ALICE)
    group = place.api().createGlobusGroup(other, fx.STATION)["id"]
    assert place.api().deleteGlobusGroup(other, fx.STATION)["id"] == group
    assert group not in place.people.groups and group not in place.people.readers(COLLECTION).values()
    with pytest.raises(ObjectNotFound, match="has no Globus group"):
        place.api().getGlobusGroup(other, fx.STATION)


def test_who_may_what(place: Place) -> None:
    name = place.experiment(fx.ALICE, fx.STRANGER)
    group = place.api().createGlobusGroup(name, fx.STATION)["id"]
    seen = place.api(fx.ALICE).getGlobusGroup(name, fx.STATION)
    assert seen["id"] == group and "unknownUsers" not in seen and "extras" not in seen
    with pytest.raises(ObjectNotFound):
        place.api(fx.BOB).getGlobusGroup(name, fx.STATION)
    with pytest.raises(AuthorizationError):
        place.api(fx.ALICE).syncGlobusGroup(name, fx.STATION)
    for stranger in (fx.BOB, fx.OTHER_MANAGER):
        with pytest.raises(ObjectNotFound):
            place.api(stranger).deleteGlobusGroup(name, fx.STATION)
    assert group in [one["id"] for one in place.api().getGlobusGroups()]
    assert place.api(fx.OTHER_MANAGER).getGlobusGroups() == []


def test_a_group_somebody_wrote_into_the_experiment(place: Place) -> None:
    name = place.experiment(fx.ALICE)
    other = str(uuid.uuid4())
    experiments = place.site.experiments(fx.MANAGER)
    number = experiments.getExperimentByName(name, fx.STATION)["id"]
    experiments.updateExperiment(number, globusGroupId=other)
    group = place.api(fx.ALICE).getGlobusGroup(name, fx.STATION)
    assert (group["id"], group["managed"]) == (other, False)
    with pytest.raises(ObjectAlreadyExists, match=other):
        place.api().createGlobusGroup(name, fx.STATION)


def test_the_commands(place: Place) -> None:
    """In the order in which a workflow uses them."""
    name = place.experiment(fx.ALICE)
    login = place.directory / "login"
    write_login_file(login, fx.MANAGER, fx.password_of(fx.MANAGER))
    environment = {
        "PATH": os.environ["PATH"],
        "DM_LOGIN_FILE": str(login),
        "DM_HOME": str(place.directory / "home"),
        "DM_DS_WEB_SERVICE_URL": place.site.url,
        "DM_CA_FILE": str(place.site.ca_file),
        "DM_STATION_NAME": fx.STATION,
        "DM_GLOBUS_GROUP_ADMINS": HEAD,
    }

    def dm(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [PROGRAMS / words[0], *words[1:]], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == status, done
        return done.stdout if status == 0 else done.stderr

    one = ("--experiment", name)
    assert dm("dm-create-globus-group", *one).startswith("id=")
    said = dm("dm-get-globus-group", *one, "--display-keys", "id")
    assert re.fullmatch(r"id=[0-9a-f-]{36} \n", said)
    group = said[3:].strip()
    dm("dm-add-globus-group-members", *one, "--users", fx.BOB)
    assert place.people.members(group)[identity(fx.BOB)] == "member"
    assert place.people.members(group)[HEAD] == "admin"
    dm("dm-delete-globus-group-members", *one, "--users", fx.BOB)
    assert identity(fx.BOB) not in place.people.members(group)
    keys = "--display-keys=dryRun,added,removed"
    assert dm("dm-sync-globus-group", *one, "--dry-run", keys) == "dryRun=True added=[] removed=[] \n"
    assert group in dm("dm-list-globus-groups")
    dm("dm-delete-globus-group", *one)
    assert "has no Globus group" in dm("dm-get-globus-group", *one, status=ObjectNotFound.code)


def test_a_site_without_globus(new_postgres_database: Callable[[], str], certificates: Path, tmp_path: Path) -> None:
    with fx.running_site(new_postgres_database(), certificates, tmp_path) as site:
        plain = Place(site, GlobusStandIn({}), tmp_path)
        name = plain.experiment(fx.ALICE)
        with pytest.raises(InvalidObjectState, match=r"set \[storage\.globus\] to have them"):
            plain.api().createGlobusGroup(name, fx.STATION)
        with pytest.raises(ObjectNotFound):
            plain.api().getGlobusGroup(name, fx.STATION)
        assert plain.api().getGlobusGroups() == [] and "globus" not in str(site.rest().get("/status"))


# --- the SDK's own fixtures ---------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GlobusClient]:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "secret").chmod(0o600)
    settings = GlobusSettings(client_id=CLIENT, client_secret_file=tmp_path / "secret")
    for service in ("AUTH", "GROUPS", "TRANSFER"):
        monkeypatch.delenv(f"GLOBUS_SDK_SERVICE_URL_{service}", raising=False)
    with responses.mock:  # where the SDK's fixtures put themselves
        get_response_set("auth.oauth2_client_credentials_tokens").lookup("default").add()
        yield GlobusClient(settings)


def test_groups_as_the_sdk_knows_them(client: GlobusClient) -> None:
    known = get_response_set("groups.create_group")
    known.activate("default")
    get_response_set("groups.get_my_groups").activate("default")
    get_response_set("groups.get_group").activate("default")
    get_response_set("groups.delete_group").activate("default")
    number = known.metadata["group_id"]
    assert client.create_group("Claptrap's Rough Riders", "") == number
    assert client.find_group("no such mark") is None
    assert client.members(number) == {}
    client.delete_group(number)


def test_identities_as_the_sdk_knows_them(client: GlobusClient) -> None:
    known = get_response_set("auth.get_identities").lookup("multiple")
    known.add()
    names = known.metadata["usernames"]
    found = client.identities([*names, "Nobody@globus.org"])
    assert found == dict(zip(names, known.metadata["ids"], strict=True))


def test_refused_credentials(client: GlobusClient, tmp_path: Path) -> None:
    get_response_set("auth.get_identities").lookup("unauthorized").add()
    with pytest.raises(ConfigurationError, match=f"refuses the credentials of client {CLIENT}"):
        client.identities(["a@b"])
    client.forget()
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        client.apply("x", Change(add={"y": "member"}))


@pytest.mark.parametrize(
    "values",
    [
        {"identity": "{password}"}, {"identity": "{email!r}"}, {"group_name": "{username}"},
        {"collection_paths": {"dm": "/"}}, {"client_id": "x"}, {"secret": "x"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    known = {"client_id": CLIENT, "client_secret_file": "x"}
    with pytest.raises(ConfigurationError):
        build(GlobusSettings, known | values, "storage.globus", "dm.toml")
