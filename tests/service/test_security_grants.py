"""A station's service account publishes by leave of people only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common.errors import AuthorizationError
from tests.service import storage_fixtures as fx


@pytest.fixture(scope="module")
def site(run_directory: Path, new_postgres_database: Callable[[], str], certificates: Path) -> Iterator[fx.Site]:
    with fx.running_site(new_postgres_database(), certificates, run_directory / "security-grants") as found:
        yield found
        found.close()


def test_the_service_account_gives_itself_no_grant(site: fx.Site) -> None:
    """Its role includes what managers may; leave to publish is not among it, whatever other roles it has."""
    site.rest(fx.MANAGER).post("/experiments", {"experimentName": "granted1", "stationName": fx.STATION})
    with pytest.raises(AuthorizationError, match="uses grants and gives none"):
        site.station().addGrant("granted1", "daq", fx.STATION)
    site.users(fx.ADMIN).addUserStationRole(fx.ALICE, "service", fx.STATION)
    site.users(fx.ADMIN).addUserStationRole(fx.ALICE, "manager", fx.STATION)
    with pytest.raises(AuthorizationError, match="uses grants and gives none"):
        site.station(fx.ALICE).addGrant("granted1", "daq", fx.STATION)
    assert site.station(fx.MANAGER).addGrant("granted1", "daq", fx.STATION)["secret"]
