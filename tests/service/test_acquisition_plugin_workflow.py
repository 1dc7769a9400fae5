"""The workflow plugin starts jobs at a real processing service, each once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import CommunicationError, InvalidArgument, ObjectNotFound
from dm.station.acquisition import spec
from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.plugins.base import PluginBatch
from dm.station.acquisition.plugins.workflow import Workflow
from tests.service import storage_fixtures as storage
from tests.service.plugin_fixtures import NAMES, context, errors, stored
from tests.service.processing_fixtures import OWNER, Running, running_processing


@pytest.fixture(scope="module")
def processing(
    new_postgres_database: Callable[[], str],
    new_mongo_database: Callable[[], str],
    certificates: Path,
    run_directory: Path,
) -> Iterator[Running]:
    directory = run_directory / "workflow-site"
    directory.mkdir()
    with storage.running_site(new_postgres_database(), certificates, directory) as site:
        site.experiments(OWNER).addExperiment("exp1", storage.STATION)
        processing = directory / "processing"
        with running_processing(site, new_mongo_database(), certificates, processing) as running:
            running.workflow({"1": {"command": "true"}})
            yield running


@pytest.fixture
def workflow(processing: Running) -> Iterator[Workflow]:
    given = context(
        username=storage.SERVICE,
        password=storage.password_of(storage.SERVICE),
        ca_file=str(processing.site.ca_file),
    )
    [made] = make_plugins({"workflow": {"url": processing.url}}, given)
    assert isinstance(made, Workflow)
    yield made
    made.close()


def jobs(processing: Running, daq: str) -> list[Any]:
    return processing.api().listProcessingJobs(queryDict={"daqId": daq}, keyList="ALL")


def batch(directory: Path, daq: str, names: list[bytes], **more: Any) -> PluginBatch:
    found = stored(
        directory,
        dict.fromkeys(names, b"1"),
        **{"id": daq, "workflowOwner": OWNER, "workflowName": "w", "workflowArgs": {"sample": "gold"}, **more},
    )
    found.daq["owner"] = OWNER
    return found


def test_a_job_for_each_file_whatever_its_name(workflow: Workflow, processing: Running, tmp_path: Path) -> None:
    seen = batch(tmp_path, "each", NAMES)
    workflow.process(seen)
    workflow.process(seen)  # as after a restart
    assert errors(seen) == {}
    found = jobs(processing, "each")
    assert {os.fsencode(job["experimentFilePath"]) for job in found} == set(NAMES)
    assert len(found) == len(NAMES) and {job["sample"] for job in found} == {"gold"}
    assert {job["owner"] for job in found} == {OWNER}


def test_what_is_another_job_and_what_is_not(workflow: Workflow, processing: Running, tmp_path: Path) -> None:
    """The key is made of DAQ, workflow, path and version, and of nothing else."""

    def count(names: list[bytes], **fields: Any) -> int:
        seen = batch(tmp_path, "keys", names, **fields.pop("daq", {}))
        for file in seen.files:
            for name, value in fields.items():
                setattr(file, name, value)
        workflow.process(seen)
        assert errors(seen) == {}
        return len(jobs(processing, "keys"))

    assert count([b"a", b"b"]) == 2
    assert count([b"a"], digests={"sha256": "00"}, md5="", metadata={"more": 1}, source_path=b"/elsewhere") == 2
    assert count([b"b"], daq={"workflowArgs": {"sample": "silver"}, "workflowJobOwner": OWNER}) == 2
    assert count([b"a"], version=2) == 3
    assert count([b"a"], version=2) == 3
    assert count([b"a"], run=1) == 4  # somebody had it processed again
    processing.workflow({"1": {"command": "true"}}, "other")
    assert count([b"a"], daq={"workflowName": "other"}) == 5
    workflow.process(batch(tmp_path, "another DAQ", [b"a"]))
    assert len(jobs(processing, "another DAQ")) == 1
    in_place = {"in_place": True}
    assert count([b"c"], **in_place) == 6
    assert count([b"c"], **in_place) == 6
    assert count([b"c"], **in_place, key="other bytes, for which nobody counts versions") == 7


def test_one_job_for_a_batch(workflow: Workflow, processing: Running, tmp_path: Path) -> None:
    seen = batch(tmp_path, "batch", [b"a", b"b", b"c\xff"], workflowPer="batch")
    whole, seen.files = seen.files, seen.files[:2]
    workflow.process(seen)  # another plugin held the third one back
    seen.files = whole
    workflow.process(seen)  # after a crash, with all three: the first two have their job
    workflow.process(seen)
    assert errors(seen) == {}
    found = jobs(processing, "batch")
    assert [[os.fsencode(path).rpartition(b"/")[2] for path in job["filePathList"]] for job in found] == [
        [b"a", b"b"],
        [b"c\xff"],
    ]
    assert {job["countFiles"] for job in found} == {1, 2}


def test_one_job_for_a_directory(workflow: Workflow, processing: Running, tmp_path: Path) -> None:
    seen = batch(tmp_path, "directory", [b"x/a", b"x/b"])
    seen.directory_mode = seen.last = True
    workflow.process(seen)
    workflow.process(seen)
    [job] = jobs(processing, "directory")
    assert job["filePath"] == str(tmp_path / "storage" / "x")


def test_one_that_is_refused_does_not_stop_the_others(workflow: Workflow, processing: Running, tmp_path: Path) -> None:
    seen = batch(tmp_path, "refused", [b"a", b"b"])
    seen.daq["workflowArgs"] = {"status": "a name that is the engine's own"}
    workflow.process(seen)
    assert all("reserved" in error and not transient for error, transient in errors(seen).values())
    assert len(errors(seen)) == 2
    seen = batch(tmp_path, "gone", [b"a"], workflowName="no such workflow")
    workflow.process(seen)
    [(error, transient)] = errors(seen).values()
    assert "does not exist" in error and not transient
    with pytest.raises(ObjectNotFound):
        workflow.check({"workflowOwner": OWNER, "workflowName": "no such workflow"})
    with pytest.raises(InvalidArgument, match="workflowPer"):
        spec.parse({"workflowPer": "hour"})


def test_a_service_that_is_away_is_waited_for(workflow: Workflow, processing: Running, tmp_path: Path) -> None:
    [away] = make_plugins({"workflow": {"url": "https://127.0.0.1:9", "timeout": 2}}, context())
    for per in ("file", "batch"):
        with pytest.raises(CommunicationError):  # nothing could be tried: all of it waits
            away.process(batch(tmp_path, "away", [b"a", b"b"], workflowPer=per))
    away.check({"workflowOwner": OWNER, "workflowName": "w"})  # data come first
    away.close()
