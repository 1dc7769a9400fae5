"""What was allowed for one experiment is done to that one, whatever its name means a moment later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.web.routes import Principal, Request
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import named


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


def caller(site: fx.Site, username: str) -> Principal:
    return site.service.use_cases.users.login(username, fx.password_of(username))


CALLS = [
    ("POST", "/dm/userExperimentRoles", {"username": fx.STRANGER, "roleName": "User"}),
    ("PUT", "/dm/experimentMetadata", {"key": "colour", "value": "blue"}),
    ("PUT", "/dm/experimentPins", {"nDays": 3}),
    ("POST", "/dm/files/delete", {"paths": ["a"]}),
    ("POST", "/dm/files/restorePermissions", {}),
]


@pytest.mark.parametrize(("method", "path", "given"), CALLS, ids=[path for _, path, _ in CALLS])
def test_a_name_that_changes_hands_between_leave_and_deed(
    site: fx.Site, method: str, path: str, given: dict[str, Any]
) -> None:
    name = named()
    mine = site.experiments(fx.MANAGER).addExperiment(name, fx.STATION)
    application = site.service.application
    entry = application.table.match(method, path).entry
    arguments = entry.binder.bind({}, (), {"experimentName": name, **given})
    request = Request("r1", caller(site, fx.MANAGER), {}, "127.0.0.1")
    application.permit(request, arguments, entry.route)

    site.rest(fx.MANAGER).put(f"/experimentsById/{mine['id']}", {"newName": f"{name}-renamed"})
    other = site.experiments(fx.OTHER_MANAGER)
    before = other.addExperiment(name, fx.OTHER_STATION)
    done = entry.route.handler(request, arguments)

    assert other.getExperimentById(before["id"]) == before
    assert done.get("experimentName", done.get("name")) == f"{name}-renamed"


def test_of_two_experiments_of_one_name_a_manager_gets_their_own_and_hears_of_no_other(site: fx.Site) -> None:
    name = named()
    mine = site.experiments(fx.MANAGER).addExperiment(name, fx.STATION)
    other = site.experiments(fx.OTHER_MANAGER)
    before = other.addExperiment(name, fx.OTHER_STATION)
    body = {"experimentName": name, "key": "colour", "value": "blue"}
    assert site.rest(fx.MANAGER).put("/experimentMetadata", body=body)["id"] == mine["id"]
    assert other.getExperimentById(before["id"]) == before
