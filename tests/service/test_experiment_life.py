"""The life of an experiment: changed, renamed with all it holds, deleted, restored, purged - and kill -9 in between."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from dm.common.errors import (
    AuthorizationError,
    InvalidArgument,
    InvalidObjectState,
    ObjectAlreadyExists,
    ObjectNotFound,
)
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import STEPS, Deaths, deaths_of, filled, finished, named, whole


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    with fx.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as running:
        yield running


def events(site: fx.Site, experiment_id: int) -> list[str]:
    with site.service.store.transaction() as connection:
        found = connection.execute(
            text("SELECT event FROM audit_events WHERE details->>'experimentId' = :id ORDER BY id"),
            {"id": str(experiment_id)},
        )
        return list(found.scalars())


def test_a_deleted_experiment_is_out_of_reach_and_comes_back_whole(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = filled(site, name, usernameList=[fx.ALICE], rootPath="2026-3")
    directory = Path(made["storageDirectory"])
    finished(api, api.deleteExperimentByName(name, fx.STATION))
    assert not directory.exists()
    aside = directory.parent / ".deleted"
    assert aside.stat().st_mode & 0o7777 == 0o700 and [entry.name for entry in aside.iterdir()] == [str(made["id"])]
    for user in (fx.MANAGER, fx.ALICE, fx.ADMIN):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            site.experiments(user).getExperimentById(made["id"])
        with pytest.raises(ObjectNotFound):
            site.files(user).statFile("a", name, fx.STATION)
    (shown,) = [one for one in api.getDeletedExperiments(fx.STATION) if one["id"] == made["id"]]
    assert (shown["name"], shown["countFiles"], shown["countBytes"], shown["status"]) == (name, 3, 9, "deleted")
    assert 6.9 < (shown["purgeTime"] - shown["deletedTime"]) / 86400 < 7.1
    status = site.rest().get("/status")
    assert "deleted experiments wait to be purged" in json.dumps(status)
    finished(api, api.restoreDeletedExperiment(made["id"]))
    back = site.experiments(fx.ALICE).getExperimentByName(name, fx.STATION)
    assert back["storageDirectory"] == made["storageDirectory"] and back["rootPath"] == "2026-3"
    assert back["experimentUsernameList"] == [fx.ALICE] and "status" not in back
    whole(site, back)
    assert not aside.exists() and api.getDeletedExperiments(fx.STATION) == []
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    assert fx.publish(site.station(), grant, {"later": b"1"})["later"]["status"] == "stored"
    assert events(site, made["id"])[-4:] == [
        "experiment.deletion", "experiment.deleted", "experiment.restored", "grant.added",
    ]  # fmt: skip


def test_the_name_is_free_at_once_and_the_old_one_takes_another(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    old = filled(site, name)
    finished(api, api.deleteExperimentById(old["id"]))
    new = filled(site, name)
    assert new["id"] != old["id"] and new["storageDirectory"] == old["storageDirectory"]
    with pytest.raises(ObjectAlreadyExists, match="give another one"):
        api.restoreDeletedExperiment(old["id"])
    with pytest.raises(InvalidArgument):
        api.restoreDeletedExperiment(old["id"], "../x")
    finished(api, api.restoreDeletedExperiment(old["id"], f"{name}-old"))
    for record in (api.getExperimentById(old["id"]), api.getExperimentById(new["id"])):
        whole(site, record)


def test_what_is_in_the_way_of_a_restoration_stays(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = filled(site, name)
    finished(api, api.deleteExperimentById(made["id"]))
    stranger = Path(made["storageDirectory"])
    stranger.mkdir()
    (stranger / "thesis").write_text("mine")
    operation = finished(api, api.restoreDeletedExperiment(made["id"]), "failed")
    assert "exists and is not empty" in operation["errorMessage"]
    assert (stranger / "thesis").read_text() == "mine"
    (stranger / "thesis").unlink()
    finished(api, api.restoreDeletedExperiment(made["id"]))
    whole(site, api.getExperimentById(made["id"]))


def test_only_administrators_purge_and_only_the_stations_managers_restore(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = filled(site, name, usernameList=[fx.ALICE])
    finished(api, api.deleteExperimentById(made["id"]))
    with pytest.raises(AuthorizationError):
        api.purgeDeletedExperiment(made["id"])
    with pytest.raises(AuthorizationError):
        site.experiments(fx.ALICE).restoreDeletedExperiment(made["id"])
    with pytest.raises(ObjectNotFound):
        site.experiments(fx.OTHER_MANAGER).restoreDeletedExperiment(made["id"])
    with pytest.raises(AuthorizationError):
        site.experiments(fx.OTHER_MANAGER).getDeletedExperiments(fx.STATION)
    admin = site.experiments(fx.ADMIN)
    finished(admin, admin.purgeDeletedExperiment(made["id"]))
    assert not list(Path(made["storageDirectory"]).parent.glob(".deleted/*"))
    for attempt in (admin.restoreDeletedExperiment, admin.purgeDeletedExperiment):
        with pytest.raises(ObjectNotFound, match="does not exist"):
            attempt(made["id"])
    with site.service.store.transaction() as connection:
        for table in ("published_files", "experiment_roles"):
            left = connection.execute(
                text(f"SELECT count(*) FROM {table} WHERE experiment_id = :id"), {"id": made["id"]}
            ).scalar_one()
            assert left == 0


def test_what_was_kept_long_enough_is_purged(site: fx.Site) -> None:
    api = site.experiments(fx.MANAGER)
    made, younger = filled(site, named()), filled(site, named())
    for record in (made, younger):
        finished(api, api.deleteExperimentById(record["id"]))
    with site.service.store.transaction() as connection:
        connection.execute(
            text("UPDATE experiments SET purge_after = now() - interval '1 s' WHERE id = :id"), {"id": made["id"]}
        )
    assert site.service.use_cases.life.deletion.purge_due() == 1
    deadline = time.monotonic() + 30
    while events(site, made["id"])[-1] != "experiment.purged":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert site.service.use_cases.life.deletion.purge_due() == 0
    finished(api, api.restoreDeletedExperiment(younger["id"]))


def test_a_running_daq_keeps_an_experiment_where_it_is(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = filled(site, name)
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    for attempt in (
        lambda: api.deleteExperimentById(made["id"]),
        lambda: api.updateExperiment(made["id"], f"{name}-x"),
        lambda: api.updateExperiment(made["id"], rootPath="2026-1"),
    ):
        with pytest.raises(InvalidObjectState, match="1 running DAQs"):
            attempt()
    assert api.updateExperiment(made["id"], description="no directory moves")["description"] == "no directory moves"
    site.station().deleteGrant(grant["id"])
    moved = api.updateExperiment(made["id"], f"{name}-x", rootPath="2026-1/week2")
    assert moved["storageDirectory"] == str(site.root / fx.STATION / "2026-1/week2" / f"{name}-x")
    whole(site, moved)
    assert api.updateExperiment(made["id"], rootPath="")["storageDirectory"] == str(
        site.root / fx.STATION / f"{name}-x"
    )
    assert not (site.root / fx.STATION / "2026-1").exists()  # nothing else was in there


def test_a_name_or_place_that_is_taken_changes_nothing(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made, other = filled(site, name), filled(site, named())
    with pytest.raises(ObjectAlreadyExists):
        api.updateExperiment(made["id"], other["name"], description="neither this")
    with pytest.raises(InvalidArgument, match="within each other"):
        api.updateExperiment(made["id"], rootPath=other["name"])
    stranger = site.root / fx.STATION / f"{name}-s"
    stranger.mkdir()
    (stranger / "thesis").write_text("mine")
    with pytest.raises(InvalidObjectState, match="exists and is not empty"):
        api.updateExperiment(made["id"], stranger.name)
    record = api.getExperimentById(made["id"])
    assert (record["name"], record["description"], "status" in record) == (name, "", False)
    whole(site, record)


def test_templates_arrange_new_experiments(site: fx.Site) -> None:
    api, admin = site.experiments(fx.OTHER_MANAGER), site.experiments(fx.ADMIN)
    before = api.addExperiment(named(), fx.OTHER_STATION)
    with pytest.raises(AuthorizationError):
        api.updateStation(fx.OTHER_STATION, pathTemplate="{station}/{name}")
    with pytest.raises(InvalidArgument, match="must begin with"):
        admin.updateStation(fx.OTHER_STATION, pathTemplate="{name}")
    changed = admin.updateStation(fx.OTHER_STATION, pathTemplate="{station}/{year}-{month}/{name}")
    assert changed["pathTemplate"] == "{station}/{year}-{month}/{name}"
    name = named()
    made = api.addExperiment(name, fx.OTHER_STATION, startDate="05-Mar-26", endDate="07-Mar-26")
    assert made["storageDirectory"] == str(site.root / fx.OTHER_STATION / "2026-03" / name)
    assert Path(made["dataDirectory"]).is_dir()
    with pytest.raises(InvalidArgument, match="arranges its experiments as"):
        api.addExperiment(named(), fx.OTHER_STATION, rootPath="2026-1")
    renamed = api.updateExperiment(made["id"], f"{name}-x", startDate="2026-02-01")
    assert renamed["storageDirectory"] == str(site.root / fx.OTHER_STATION / "2026-03" / f"{name}-x")
    assert api.getExperimentById(before["id"])["storageDirectory"] == before["storageDirectory"]
    assert "pathTemplate" not in admin.updateStation(fx.OTHER_STATION, pathTemplate="")
    finished(api, api.deleteExperimentById(made["id"]))
    finished(api, api.restoreDeletedExperiment(made["id"]))


def test_metadata_keys_are_removed(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    api.addExperiment(name, fx.STATION)
    api.upsertExperimentMetadata("emailedUsers", ["d1"], name, fx.STATION)
    assert "emailedUsers" not in api.deleteExperimentMetadata("emailedUsers", name, fx.STATION)
    with pytest.raises(ObjectNotFound, match="emailedUsers"):
        api.deleteExperimentMetadata("emailedUsers", name, fx.STATION)
    with pytest.raises(ObjectNotFound):
        api.deleteExperimentMetadata("name", name, fx.STATION)


def test_stations_types_and_storages_go_only_if_nothing_ever_used_them(site: fx.Site, tmp_path: Path) -> None:
    admin, manager = site.experiments(fx.ADMIN), site.experiments(fx.MANAGER)
    admin.addStation("9ID")
    site.users(fx.ADMIN).addUserStationRole(fx.BOB, "manager", "9ID")
    admin.addExperimentType("RARE")
    (tmp_path / "second").mkdir()
    admin.addStorage("SECOND", "localhost", str(tmp_path / "second"))
    assert admin.updateExperimentType("RARE", "RARER", "seldom")["description"] == "seldom"
    with pytest.raises(ObjectAlreadyExists):
        admin.updateExperimentType("RARER", "TEST")
    assert admin.updateStorage("SECOND", storageHost="elsewhere.example")["storageHost"] == "elsewhere.example"
    name = named()
    made = manager.addExperiment(name, fx.STATION, typeName="RARER", storageName="SECOND")
    assert made["storageDirectory"].startswith(str(tmp_path / "second" / fx.STATION))
    for attempt in (
        lambda: admin.deleteStation(fx.STATION),
        lambda: admin.deleteExperimentType("RARER"),
        lambda: admin.deleteStorage("SECOND"),
    ):
        with pytest.raises(InvalidObjectState, match="is used by"):
            attempt()
        with pytest.raises(AuthorizationError):
            manager.deleteStorage("SECOND")
    assert admin.updateStation(fx.STATION, storageName="SECOND")["defaultStorageId"] == made["primaryStorageId"]
    assert manager.addExperiment(named(), fx.STATION)["primaryStorage"]["name"] == "SECOND"
    assert admin.updateStorage("SECOND", retired=True)["retired"] is True
    with pytest.raises(InvalidObjectState, match="retired"):
        manager.addExperiment(named(), fx.STATION)
    with pytest.raises(InvalidObjectState, match="retired"):
        admin.updateStation(fx.OTHER_STATION, storageName="SECOND")
    admin.updateStation(fx.STATION, storageName="")
    assert manager.addExperiment(named(), fx.STATION)["primaryStorage"]["name"] == "VOYAGER"
    assert admin.deleteStation("9ID")["name"] == "9ID"
    admin.addExperimentType("NEVER")
    assert admin.deleteExperimentType("NEVER")["name"] == "NEVER"
    with pytest.raises(ObjectNotFound):
        admin.deleteExperimentType("NEVER")
    (tmp_path / "third").mkdir()
    admin.addStorage("THIRD", "localhost", str(tmp_path / "third"))
    assert admin.deleteStorage("THIRD")["name"] == "THIRD" and (tmp_path / "third").is_dir()


@pytest.fixture
def deaths(site: fx.Site) -> Iterator[Deaths]:
    with deaths_of(site) as running:
        yield running


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_while_an_experiment_is_deleted_restored_and_purged(site: fx.Site, deaths: Deaths, step: int) -> None:
    made = filled(site, named())
    number, place = made["id"], Path(made["storageDirectory"])
    aside = place.parent / ".deleted" / str(number)
    api = site.experiments(fx.MANAGER)

    def is_deleted() -> bool:
        with pytest.raises(ObjectNotFound):
            api.getExperimentById(number)
        assert (aside / "data/run1/b").read_bytes() == b"beta" and not place.exists()
        return True

    def deleted() -> bool:
        return is_deleted() if aside.exists() else not api.getExperimentById(number)

    def is_back() -> bool:
        if aside.exists():
            return not is_deleted()
        assert "status" not in api.getExperimentById(number)
        whole(site, api.getExperimentById(number))
        return True

    def bring_back() -> dict[str, Any]:
        if aside.exists():
            assert deaths.do("restore", number=number) == 0
        assert is_back()
        return {}

    def put_away() -> dict[str, Any]:
        if not aside.exists():
            assert deaths.do("delete", number=number) == 0
        assert is_deleted()
        return {}

    assert deaths.rounds(step, "delete", bring_back, deleted, number=number) > 5
    assert deaths.rounds(step, "restore", put_away, is_back, number=number) > 5
    put_away()
    death = 1
    while (status := deaths.do("purge", death, number=number)) == -signal.SIGKILL:
        assert deaths.do("nothing") == 0
        death += step
        if not aside.exists():
            break
    assert status in (0, -signal.SIGKILL) and death > 1
    with site.service.store.transaction() as connection:
        left = connection.execute(text("SELECT purged IS NULL FROM experiments WHERE id = :id"), {"id": number})
        assert left.scalar_one() is False
    assert not aside.exists() and not place.exists()


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_while_an_experiment_is_renamed(site: fx.Site, deaths: Deaths, step: int) -> None:
    made = filled(site, named(), rootPath="2026-7")
    number, api = made["id"], site.experiments(fx.MANAGER)

    def another() -> dict[str, Any]:
        return {"new_name": named("renamed"), "root_path": uuid.uuid4().hex[:6]}

    def arrived(new_name: str, root_path: str) -> bool:
        record = api.getExperimentById(number)
        assert "status" not in record and Path(record["dataDirectory"]).is_dir()
        whole(site, record)
        leftovers = [path for path in (site.root / fx.STATION).rglob(".*") if path.name != ".staging"]
        assert not leftovers
        return bool(record["name"] == new_name and record["rootPath"] == root_path)

    assert deaths.rounds(step, "update", another, arrived, number=number) > 5
