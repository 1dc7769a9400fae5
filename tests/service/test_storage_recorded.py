"""Published files that the database lost are known again from the manifest, which no backup is older than."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from tests.service import storage_fixtures as fx


def forget(site: fx.Site, condition: str) -> None:
    with site.service.store.transaction() as connection:
        connection.execute(text(f"DELETE FROM published_files WHERE {condition}"))


def rows(site: fx.Site) -> list[tuple[object, ...]]:
    statement = "SELECT path, size, mtime_ns, digest, md5, version, source, batch_id FROM published_files ORDER BY path"
    with site.service.store.transaction() as connection:
        return [tuple(row) for row in connection.execute(text(statement)).all()]


def test_files_are_recorded_again(storage_site: fx.Site) -> None:
    site = storage_site
    experiment = site.experiments(fx.MANAGER).addExperiment("recorded", fx.STATION, "TEST")
    grant = site.station(fx.MANAGER).addGrant("recorded", "upload", fx.STATION)
    station = site.station()
    odd = "odd \udcff\n"
    fx.publish(station, grant, {"a": b"one", "b": b"two", odd: b"three"})
    fx.publish(station, grant, {"a": b"one, changed"}, onConflict="replace")
    Path(experiment["storageDirectory"], "data", "b").unlink()
    files, before = site.files(fx.MANAGER), rows(site)
    assert files.recordFilesAgain(experiment["id"])["countMissing"] == 0

    forget(site, "path <> 'b'")
    assert not files.statFile("a", "recorded")["readyForProcessing"]
    found = files.recordFilesAgain(experiment["id"], dryRun=True)
    assert (found["countMissing"], found["countRecorded"], found["countGone"]) == (2, 2, 2)
    assert len(rows(site)) == 1
    assert files.recordFilesAgain(experiment["id"])["countMissing"] == 2
    assert rows(site) == before
    assert files.statFile("a", "recorded")["readyForProcessing"]
    assert files.recordFilesAgain(experiment["id"])["countMissing"] == 0

    # an older record than the disk has, as after a backup from before the replacement
    with site.service.store.transaction() as connection:
        connection.execute(text("UPDATE published_files SET version = 1, size = 3 WHERE path = 'a'"))
    assert files.recordFilesAgain(experiment["id"])["countMissing"] == 1
    assert rows(site) == before


def test_only_managers(storage_site: fx.Site) -> None:
    import pytest

    from dm.common.errors import ObjectNotFound

    experiment = site_experiment(storage_site)
    with pytest.raises(ObjectNotFound):
        storage_site.files(fx.STRANGER).recordFilesAgain(experiment)
    with pytest.raises(ObjectNotFound):
        list(storage_site.files(fx.OTHER_MANAGER).iterateManifest(experiment))


def site_experiment(site: fx.Site) -> int:
    return int(site.experiments(fx.MANAGER).addExperiment("recorded-2", fx.STATION, "TEST")["id"])
