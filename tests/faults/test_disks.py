"""F-06, F-07: storage whose disk is full, read-only or refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import Bench, fill
from tests.faults.invariant import Task, check
from tests.faults.namespace import Namespace, namespace
from tests.service.acquisition_fixtures import STATION, until


@pytest.fixture(scope="module")
def inside() -> Iterator[Namespace]:
    with namespace() as found:
        yield found


@pytest.fixture(scope="module")
def walled(
    inside: Namespace, run_directory: Path, new_postgres_database: Callable[[], str], certificates: Path
) -> Iterator[Bench]:
    """A bench whose services see mounts of our own."""
    directory = run_directory / "walled"
    directory.mkdir(mode=0o755)
    found = Bench(directory, new_postgres_database(), certificates, prefix=inside.prefix, view=inside.view)
    try:
        found.open()
        found.reconfigure(batch_files=4)
        yield found
    finally:
        found.close()


def mounted_experiment(bench: Bench, inside: Namespace, options: str) -> tuple[dict[str, Any], Path]:
    """Return an experiment on a file system of its own, and where that is mounted."""
    bench.experiment_number += 1
    name = f"fault{bench.experiment_number}"
    place = bench.storage_root / STATION / name
    inside.mount(place, options)
    body = {"experimentName": name, "stationName": STATION}
    return dict(bench.rest("storage").post("/experiments", body)), place


def test_f06_the_disk_is_full(walled: Bench, inside: Namespace, source: Path, tmp_path: Path) -> None:
    experiment, place = mounted_experiment(walled, inside, "size=12m,mode=755")
    for number in range(24):
        (source / f"f{number:02d}").write_bytes(os.urandom(1 << 20))
    upload = walled.begin("upload", experiment, source)
    told = until(lambda: _told(walled, upload, str(place)), 60)
    assert told["status"] in ("running", "finalizing")
    for path in walled.data(experiment).iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()
    # other experiments go on
    other, elsewhere = walled.experiment(), tmp_path / "elsewhere"
    fill(elsewhere, 10)
    assert walled.upload(other, elsewhere)["status"] == "done"
    check(walled, other, elsewhere)
    # and this one, as soon as there is space
    inside.remount(place, "size=64m")
    record = walled.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 24), record
    check(walled, experiment, source, task=Task("upload", upload["id"]))


def _told(bench: Bench, task: dict[str, Any], *words: str) -> dict[str, Any] | None:
    record = bench.info("upload", task["id"])
    return record if all(word in record["errorMessage"] for word in words) else None


def test_f07_the_disk_is_read_only(walled: Bench, inside: Namespace, source: Path) -> None:
    """All of it: nothing can be said of a single file, so all wait, and say why."""
    experiment, place = mounted_experiment(walled, inside, "size=12m,mode=755")
    fill(source, 10)
    inside.remount(place, "ro")
    upload = walled.begin("upload", experiment, source)
    told = until(lambda: _told(walled, upload, experiment["storageDirectory"], "Read-only file system"), 60)
    assert told["nProcessingErrors"] == 0
    assert told["status"] != "failed"
    inside.remount(place, "rw")
    record = walled.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"]) == ("done", 10), record
    check(walled, experiment, source, task=Task("upload", upload["id"]))


def test_f07_a_directory_is_read_only(walled: Bench, inside: Namespace, source: Path) -> None:
    """One directory: its files fail after some attempts, each with the reason; the others arrive."""
    experiment, _place = mounted_experiment(walled, inside, "size=12m,mode=755")
    closed = Path(experiment["dataDirectory"], "closed")
    # an earlier upload made it, with everybody's usual owner and mode
    fill(source / "closed", 1, prefix="first")
    fill(source / "open", 4)
    assert walled.upload(experiment, source)["status"] == "done"
    inside.run("mount", "--bind", closed, closed)
    inside.run("mount", "-o", "remount,bind,ro", closed)
    fill(source / "closed", 3, prefix="late")
    fill(source / "open", 4, prefix="late")
    upload = walled.begin("upload", experiment, source)
    record = walled.finish("upload", upload["id"])
    assert (record["status"], record["nCompletedFiles"], record["nProcessingErrors"]) == ("failed", 4, 3), record
    refused = {f"closed/late{number}".encode() for number in range(3)}
    found = check(walled, experiment, source, task=Task("upload", upload["id"]), refused=refused)
    for path in refused:
        assert "Read-only file system" in found.rows[path]["lastError"]
        assert found.rows[path]["attempts"] == 3
    inside.run("umount", closed)
    assert walled.upload(experiment, source)["status"] == "done"
    check(walled, experiment, source)
