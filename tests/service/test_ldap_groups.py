"""Groups of experiments in a real slapd follow the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service import storage_fixtures as fx
from tests.service.ldap_fixtures import GID_FIRST, settings, site_with_ldap
from tests.service.slapd_server import Slapd, running_slapd, until

STAFF = {fx.MANAGER, fx.SERVICE}


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


def test_the_group_of_an_experiment_follows_its_members(site: fx.Site, slapd: Slapd) -> None:
    experiments, users = site.experiments(fx.MANAGER), site.users(fx.MANAGER)
    added = experiments.addExperiment("follow", usernameList=[fx.ALICE])
    group, dn = added["authGroupName"], f"cn={added['authGroupName']},{slapd.groups}"
    until(lambda: slapd.members(group) == STAFF | {"mover", fx.ALICE})
    entry = slapd.entry(dn)
    assert entry is not None
    assert entry["gidNumber"] == [str(GID_FIRST + added["id"])]
    assert entry["description"] == [f"dm:experiment:{added['id']}"]
    users.addUserExperimentRole(fx.BOB, "PI", "follow")
    until(lambda: slapd.members(group) == STAFF | {"mover", fx.ALICE, fx.BOB})
    users.deleteUserExperimentRole(fx.ALICE, "User", "follow")
    until(lambda: slapd.members(group) == STAFF | {"mover", fx.BOB})
    assert slapd.entry(dn)["gidNumber"] == entry["gidNumber"]  # type: ignore[index]
