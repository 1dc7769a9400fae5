"""From where files may be downloaded: bytes only for the networks the site allows, listings for all members."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dm.common import tls
from dm.common.errors import AuthorizationError, ConfigurationError, ObjectNotFound
from dm.common.settings import build
from dm.site.storage.outside_settings import DownloadSettings
from tests.service import storage_fixtures as fx

HERE, ON_SITE, OFF_SITE = "127.0.0.1", "10.1.2.3", "192.0.2.7"
PUBLIC_TYPE = "OUTREACH"


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    download = {
        "allowed_networks": ["10.1.0.0/16", "2001:db8::/32"],
        "station_networks": {fx.OTHER_STATION: ["192.0.2.0/24"]},
        "type_networks": {PUBLIC_TYPE: []},
        "elsewhere": "use the Globus collection 'DM data'",
    }
    directory = tmp_path_factory.mktemp("site")
    with fx.running_site(postgres_url, certificates, directory, download=download, trusted_proxies=[HERE]) as running:
        running.experiments(fx.ADMIN).addExperimentType(PUBLIC_TYPE, "for everybody")
        yield running


def made(site: fx.Site, station: str = fx.STATION, manager: str = fx.MANAGER, type_name: str | None = None) -> str:
    name = f"exp-{uuid.uuid4().hex[:8]}"
    site.experiments(manager).addExperiment(name, station, typeName=type_name, usernameList=[fx.ALICE])
    grant = site.station(manager).addGrant(name, "upload", station)
    service = fx.SERVICE if station == fx.STATION else fx.OTHER_SERVICE
    fx.publish(site.station(service), grant, {"a.h5": b"alpha" * 100})
    return name


def get(site: fx.Site, path: str, remote: str | None = None, user: str = fx.ALICE, **headers: str) -> httpx.Response:
    session = site.rest(user)
    session.login()
    headers["Cookie"] = f"SESSIONID={session.cookie}"
    if remote:
        headers["X-Forwarded-For"] = remote
    with httpx.Client(verify=tls.client_context(site.ca_file), timeout=30) as client:
        return client.get(f"{site.url}{path}", headers=headers)


def download(site: fx.Site, experiment: str, remote: str | None, **headers: str) -> httpx.Response:
    return get(site, f"/files/download?path=a.h5&experimentName={experiment}", remote, **headers)


@pytest.mark.parametrize("remote", [ON_SITE, "2001:db8::7", "::ffff:10.1.2.3"])
def test_from_the_site_s_networks(site: fx.Site, remote: str) -> None:
    assert download(site, made(site), remote).content == b"alpha" * 100


def test_from_elsewhere_nothing_but_listings(site: fx.Site) -> None:
    name = made(site)
    for remote in (OFF_SITE, "2001:db9::1", None, f"{ON_SITE}, {OFF_SITE}"):
        assert download(site, name, remote).status_code == 403
    number = site.experiments(fx.ALICE).getExperimentByName(name, fx.STATION)["id"]
    refused = [
        download(site, name, OFF_SITE, Range="bytes=0-9"),
        get(site, f"/files/archive?experimentName={name}", OFF_SITE),
        get(site, f"/experimentsById/{number}/archive", OFF_SITE, Range="bytes=0-9"),
    ]
    for response in refused:
        said = response.json()
        assert (response.status_code, said["errorClass"]) == (403, "AuthorizationError")
        assert said["errorMessage"] == (
            f"Files of experiment '{name}' cannot be downloaded over HTTPS from {OFF_SITE}, which is outside the "
            "networks this site allows; use the Globus collection 'DM data'."
        )
    assert get(site, f"/files?experimentName={name}", OFF_SITE).json()["countFiles"] == 1
    assert get(site, f"/files/stat?path=a.h5&experimentName={name}", OFF_SITE).json()["fileSize"] == 500
    with site.service.store.transaction() as connection:
        query = "SELECT actor, remote FROM audit_events WHERE event = 'download.refused' AND subject = %s"
        found = connection.exec_driver_sql(query, (f"{name}/{fx.STATION}",)).all()
    assert len(found) == 7 and {tuple(row) for row in found} >= {(fx.ALICE, OFF_SITE), (fx.ALICE, HERE)}


def test_the_station_s_networks_and_the_type_s_come_first(site: fx.Site) -> None:
    other = made(site, fx.OTHER_STATION, fx.OTHER_MANAGER)
    assert download(site, other, OFF_SITE).status_code == 200
    assert download(site, other, ON_SITE).status_code == 403
    assert download(site, made(site, type_name=PUBLIC_TYPE), "198.51.100.1").status_code == 200


def test_strangers_learn_nothing(site: fx.Site) -> None:
    name = made(site)
    response = get(site, f"/files/download?path=a.h5&experimentName={name}", OFF_SITE, fx.BOB)
    nothing = get(site, f"/files/download?path=a.h5&experimentName={name}x", OFF_SITE, fx.BOB)
    assert (response.status_code, nothing.status_code) == (404, 404)
    assert response.json()["errorMessage"] == nothing.json()["errorMessage"].replace(f"{name}x", name)


def test_dm_download_says_it_once(site: fx.Site, tmp_path: Path) -> None:
    name = made(site)
    with pytest.raises(AuthorizationError, match="outside the networks this site allows; use the Globus collection"):
        list(site.files(fx.ALICE).downloadFiles(name, tmp_path, fx.STATION))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(ObjectNotFound):
        site.files(fx.BOB).downloadFile("a.h5", name, tmp_path, fx.STATION)


@pytest.mark.parametrize(
    "values",
    [
        {"allowed_networks": ["10.1.2.3/16"]},
        {"station_networks": {"25IDC": ["office"]}},
        {"type_networks": {"X": [""]}},
    ],
)
def test_a_network_that_is_none(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"; write networks like 10\.1\.0\.0/16 or"):
        build(DownloadSettings, values, "storage.download", "dm.toml")
