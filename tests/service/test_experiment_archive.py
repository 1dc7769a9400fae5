"""Experiments are copied into the archive, and what is lost comes back from it; pins keep them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import AuthorizationError, ConfigurationError, InvalidObjectState, ObjectNotFound
from dm.site.storage.manifest import read
from tests.service import storage_fixtures as fx
from tests.service.experiment_fixtures import CONTENTS, STEPS, Deaths, deaths_of, filled, finished, named, whole


@pytest.fixture(scope="module")
def site(postgres_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[fx.Site]:
    archive = tmp_path_factory.mktemp("archive")
    directory = tmp_path_factory.mktemp("site")
    with fx.running_site(postgres_url, certificates, directory, archive_directory=archive) as running:
        yield running


def copies(site: fx.Site, record: Any) -> Path:
    assert site.settings.archive_directory is not None
    return site.settings.archive_directory / fx.STATION / str(record["id"])


def test_what_is_lost_comes_back(site: fx.Site) -> None:
    api, files, name = site.experiments(fx.MANAGER), site.files(fx.MANAGER), named()
    made = filled(site, name, usernameList=[fx.ALICE])
    with pytest.raises(ObjectNotFound, match="archived copy"):
        api.restoreArchivedExperiment(name, fx.STATION)
    task = api.archiveExperiment(name, fx.STATION)
    assert list(task)[:2] == ["id", "name"] and task["experimentName"] == name
    task = finished(api, task)
    assert (task["countCopied"], api.getArchiveTask(task["id"])) == (task["countFiles"], task)
    assert api.listArchiveTasks()[-1] == task
    copy = copies(site, made)
    assert {path: (copy / "data" / path).read_bytes() for path in CONTENTS} == CONTENTS
    assert finished(api, api.archiveExperiment(name, fx.STATION))["countCopied"] == 0
    data = Path(made["dataDirectory"])
    (data / "a").unlink()  # lost
    files.deleteFiles(["run1/b"], name, fx.STATION)  # deleted, and missed
    before = (data / "run1/deep/c").stat()
    (data / "run1/deep/c").write_bytes(b"worked on since")
    finished(api, api.restoreArchivedExperiment(name, fx.STATION))
    assert (data / "run1/deep/c").read_bytes() == b"worked on since"
    (data / "run1/deep/c").write_bytes(b"")
    os.utime(data / "run1/deep/c", ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert (data / "a").read_bytes() == b"alpha" and (data / "run1/b").read_bytes() == b"beta"
    assert all(files.statFile(path, name, fx.STATION)["readyForProcessing"] for path in CONTENTS)
    assert [line["source"] for line in read(made["storageDirectory"]) if line["path"] == "run1/b"] == [
        "daq-1",
        "archive",
    ]
    assert fx.modes(data)["run1/b"] == 0o640


def test_what_is_refused(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = filled(site, name, usernameList=[fx.ALICE])
    grant = site.station(fx.MANAGER).addGrant(name, "daq", fx.STATION)
    with pytest.raises(InvalidObjectState, match="1 running DAQs"):
        api.archiveExperiment(name, fx.STATION)
    site.station().deleteGrant(grant["id"])
    with pytest.raises(AuthorizationError):
        site.experiments(fx.ALICE).archiveExperiment(name, fx.STATION)
    finished(api, api.archiveExperiment(name, fx.STATION))
    rotten = copies(site, made) / "data/a"
    status = rotten.stat()
    rotten.write_bytes(b"alphA")
    os.utime(rotten, ns=(status.st_mtime_ns, status.st_mtime_ns))
    Path(made["dataDirectory"], "a").unlink()
    task = finished(api, api.restoreArchivedExperiment(name, fx.STATION), "failed")
    assert "damaged" in task["errorMessage"] and not Path(made["dataDirectory"], "a").exists()
    with pytest.raises(ObjectNotFound):
        site.experiments(fx.OTHER_MANAGER).getArchiveTask(task["id"])
    kept = site.settings
    site.restart(kept.model_copy(update={"archive_directory": None}))
    try:
        with pytest.raises(ConfigurationError, match="archive_directory"):
            site.experiments(fx.MANAGER).archiveExperiment(name, fx.STATION)
    finally:
        site.restart(kept)


def test_a_pinned_experiment_is_not_deleted(site: fx.Site) -> None:
    api, name = site.experiments(fx.MANAGER), named()
    made = api.addExperiment(name, fx.STATION, usernameList=[fx.ALICE])
    with pytest.raises(AuthorizationError):
        site.experiments(fx.ALICE).pinExperiment(name, 1, fx.STATION)
    pinned = api.pinExperiment(name, 2, fx.STATION)
    assert pinned["pinnedByUser"] == fx.MANAGER
    assert 1.99 < (pinned["pinnedUntilTime"] - pinned["pinnedAtTime"]) / 86400 < 2.01
    assert pinned["pinnedUntilTimestamp"] > pinned["pinnedAtTimestamp"]
    with pytest.raises(InvalidObjectState, match="is pinned until"):
        api.deleteExperimentById(made["id"])
    assert "pinnedByUser" not in api.pinExperiment(name, 0, fx.STATION)
    api.pinExperiment(name, 1, fx.STATION)
    finished(api, api.deleteExperimentById(made["id"], force=True))


@pytest.fixture
def deaths(site: fx.Site) -> Iterator[Deaths]:
    with deaths_of(site) as running:
        yield running


@pytest.mark.parametrize("step", [29, *STEPS[1:]])
def test_kill_9_while_files_come_back(site: fx.Site, deaths: Deaths, step: int) -> None:
    made = filled(site, named())
    number, data, files = made["id"], Path(made["dataDirectory"]), site.files(fx.MANAGER)
    assert deaths.do("archive", number=number) == 0

    def lose() -> dict[str, Any]:
        assert deaths.do("delete_files", number=number, paths=["run1/b"]) == 0
        (data / "a").unlink(missing_ok=True)
        return {}

    def is_back() -> bool:
        known = {one["experimentFilePath"] for one in files.getFiles(made["name"], fx.STATION)}
        if not (data / "run1/b").exists():
            assert known == {"a", "run1/deep/c"}
            return False
        assert known == set(CONTENTS) and not list(data.rglob(".dm-*"))
        whole(site, made)
        return True

    assert deaths.rounds(step, "bring_back", lose, is_back, number=number) > 10

    def another() -> dict[str, Any]:
        shutil.rmtree(copies(site, made))
        return {}

    def is_copied() -> bool:
        copy = copies(site, made) / "data"
        there = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert not there or there == CONTENTS
        return bool(there)

    assert deaths.rounds(step, "archive", another, is_copied, number=number) > 10
