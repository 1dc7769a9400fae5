"""An experiment moves to another storage: copied, verified, switched, cleared - whatever dies in between."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import AuthorizationError, InvalidArgument, InvalidObjectState
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import STEPS, Deaths, deaths_of, filled, finished, named, whole


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    """A site with two storages, the first one the stations'."""
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        second = running.root.parent / "second"
        second.mkdir(mode=0o711)
        admin = running.experiments(fx.ADMIN)
        admin.addStorage("SECOND", "localhost", str(second))
        admin.updateStation(fx.STATION, storageName="VOYAGER")
        yield running


def test_all_of_it_arrives_and_nothing_is_left(site: fx.Site) -> None:
    admin, name = site.experiments(fx.ADMIN), named()
    made = filled(site, name, usernameList=[fx.ALICE], rootPath="2026-5")
    old = Path(made["storageDirectory"])
    (old / "data/by-hand").write_text("kept, too")
    (old / "data/link").symlink_to("a")
    with pytest.raises(AuthorizationError):
        site.experiments(fx.MANAGER).moveExperiment(name, "SECOND", fx.STATION)
    with pytest.raises(InvalidArgument, match="already"):
        admin.moveExperiment(name, "VOYAGER", fx.STATION)
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    with pytest.raises(InvalidObjectState, match="1 running DAQs"):
        admin.moveExperiment(name, "SECOND", fx.STATION)
    site.station().deleteGrant(grant["id"])
    operation = finished(admin, admin.moveExperiment(name, "SECOND", fx.STATION))
    assert operation["storageName"] == "SECOND"
    record = admin.getExperimentById(made["id"])
    new = site.root.parent / "second" / fx.STATION / "2026-5" / name
    assert (record["storageDirectory"], record["primaryStorage"]["name"]) == (str(new), "SECOND")
    assert (new / "data/by-hand").read_text() == "kept, too" and os.readlink(new / "data/link") == "a"
    (new / "data/by-hand").unlink()
    (new / "data/link").unlink()
    whole(site, record)
    assert (new / "data/a").stat().st_mtime_ns == 1_700_000_000_123_456_789
    assert fx.modes(new / "data") == {
        "a": 0o640,
        "run1": 0o2750,
        "run1/b": 0o640,
        "run1/deep": 0o2750,
        "run1/deep/c": 0o640,
    }
    assert site.files(fx.ALICE).statFile("a", name, fx.STATION)["readyForProcessing"]
    deadline = time.monotonic() + 30
    while old.parent.exists():  # the old copy is removed by an operation of its own
        assert time.monotonic() < deadline
        time.sleep(0.02)
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    assert fx.publish(site.station(), grant, {"later": b"1"})["later"]["status"] == "stored"
    assert (new / "data/later").read_bytes() == b"1"


def test_a_damaged_file_or_a_stranger_in_the_way_keeps_it_where_it_is(site: fx.Site) -> None:
    admin, name = site.experiments(fx.ADMIN), named()
    made = filled(site, name)
    rotten = Path(made["dataDirectory"], "a")
    status = rotten.stat()
    rotten.write_bytes(b"alphA")
    os.utime(rotten, ns=(status.st_mtime_ns, status.st_mtime_ns))
    operation = finished(admin, admin.moveExperiment(name, "SECOND", fx.STATION), "failed")
    assert "'data/a' is damaged" in operation["errorMessage"]
    record = admin.getExperimentById(made["id"])
    assert (record["storageDirectory"], "status" in record) == (made["storageDirectory"], False)
    place = site.root.parent / "second" / fx.STATION
    assert not list(place.glob(".moving-*"))
    rotten.write_bytes(b"alpha")
    os.utime(rotten, ns=(status.st_mtime_ns, status.st_mtime_ns))
    (place / name).mkdir()
    with pytest.raises(InvalidObjectState, match="exists; move it away"):
        admin.moveExperiment(name, "SECOND", fx.STATION)
    (place / name).rmdir()
    finished(admin, admin.moveExperiment(name, "SECOND", fx.STATION))
    whole(site, admin.getExperimentById(made["id"]))


@pytest.fixture
def deaths(site: fx.Site) -> Iterator[Deaths]:
    with deaths_of(site) as running:
        yield running


@pytest.mark.parametrize("step", [29, *STEPS[1:]])
def test_kill_9_while_an_experiment_moves(site: fx.Site, deaths: Deaths, step: int) -> None:
    made = filled(site, named())
    number, admin = made["id"], site.experiments(fx.ADMIN)
    roots = {"VOYAGER": site.root, "SECOND": site.root.parent / "second"}

    def elsewhere() -> dict[str, Any]:
        now = admin.getExperimentById(number)["primaryStorage"]["name"]
        return {"storage": "SECOND" if now == "VOYAGER" else "VOYAGER"}

    def arrived(storage: str) -> bool:
        record = admin.getExperimentById(number)
        assert "status" not in record
        whole(site, record)
        there = record["primaryStorage"]["name"]
        assert Path(record["storageDirectory"]).is_relative_to(roots[there])
        for name, root in roots.items():
            left = {path.name for path in (root / fx.STATION).glob(f"*{made['name']}*")}
            assert left == ({made["name"]} if name == there else set())
            assert not list((root / fx.STATION).glob(f".moving-{number}"))
            assert not list((root / fx.STATION).glob(f".deleted/{number}"))
        return bool(there == storage)

    assert deaths.rounds(step, "move", elsewhere, arrived, number=number) > 20
