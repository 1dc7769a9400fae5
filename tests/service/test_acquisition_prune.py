"""Sources of finished DAQs and uploads are removed only with proof; the storage service is a real one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidObjectState, ObjectNotFound
from dm.station.acquisition.office import Office
from dm.station.acquisition.prune import Pruner, Wish
from tests.service.acquisition_fixtures import MANAGER, PRINCIPAL, Site, finish, running_office, tree
from tests.service.plugin_fixtures import NAMES


@pytest.fixture(scope="module")
def office(site: Site, new_mongo_database: Callable[[], str]) -> Iterator[Office]:
    with running_office(site, new_mongo_database()) as found:
        yield found


@pytest.fixture
def experiment(site: Site, request: pytest.FixtureRequest) -> dict[str, Any]:
    return site.experiment(f"p{abs(hash(request.node.name)) % 10**8}")


def upload(office: Office, experiment: dict[str, Any], source: Path, **keys: Any) -> str:
    begun = office.start("upload", PRINCIPAL, experiment["name"], str(source), keys)
    assert finish(office, "upload", begun["id"])["status"] == "done"
    return str(begun["id"])


def prune(office: Office, task: str, **wish: Any) -> dict[bytes, tuple[str, str]]:
    """Prune page by page; return path -> fate and reason."""
    pruner = Pruner(office.store, office.parts.site, office.parts.settings)
    told: dict[bytes, tuple[str, str]] = {}
    after: int | None = 0
    while after is not None:
        page = pruner.page("upload", task, Wish(MANAGER[0], after=after, **wish))
        told |= {os.fsencode(file["path"]): (file["fate"], file["reason"]) for file in page["files"]}
        after = page["next"]
    return told


def test_what_is_proven_goes_and_nothing_else(
    office: Office, experiment: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, storage = tmp_path / "source", Path(experiment["dataDirectory"]) / "raw"
    source.mkdir()
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(name)
    odd = {b"rewritten", b"same size and time", b"lost", b"damaged", b"touched", b"open"}
    for name in odd:
        (source / os.fsdecode(name)).write_bytes(b"original")
    task = upload(office, experiment, source, destDirectory="raw")
    (source / "new").write_bytes(b"in no ledger")

    (source / "rewritten").write_bytes(b"longer than it was")
    before = (source / "same size and time").stat()
    (source / "same size and time").write_bytes(b"0riginal")
    os.utime(source / "same size and time", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(source / "touched", (1, 1))  # another time, the same bytes: proven by its digest
    (storage / "lost").unlink()
    before = (storage / "damaged").stat()
    (storage / "damaged").write_bytes(b"0riginal")
    os.utime(storage / "damaged", ns=(before.st_atime_ns, before.st_mtime_ns))

    whole = tree(source)
    told = prune(office, task, limit=5)
    assert tree(source) == whole, "without delete nothing is removed"
    assert {name for name, (fate, _why) in told.items() if fate == "removable"} == {
        *NAMES, b"touched", b"open", b"damaged",
    }  # fmt: skip
    assert prune(office, task, read_again=True)[b"damaged"] == (
        "kept",
        "Read again, the file in storage has another digest.",
    )
    with (source / "open").open("ab"), caplog.at_level(logging.INFO, "dm.audit"):
        told = prune(office, task, delete=True, read_again=True, limit=5)
    kept = {name: why for name, (fate, why) in told.items() if fate == "kept"}
    assert set(kept) == odd - {b"touched"}
    assert "changed since" in kept[b"rewritten"] and "digest" in kept[b"same size and time"]
    assert "does not exist" in kept[b"lost"] and "open for writing" in kept[b"open"]
    assert tree(source).keys() == {*kept, b"new"}
    removed = [record.getMessage() for record in caplog.records if "source file removed" in record.getMessage()]
    assert len(removed) == len(NAMES) + 1
    assert all(f"user={MANAGER[0]} " in line and task in line and "xxh3_128:" in line for line in removed)
    again = prune(office, task, delete=True, read_again=True)
    assert {name for name, (fate, _why) in again.items() if fate == "gone"} == {*NAMES, b"touched"}
    assert again[b"open"] == ("removed", "")


def test_days_that_are_kept(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    task = upload(office, experiment, tmp_path)
    assert prune(office, task, delete=True, keep_days=1)[b"a"][0] == "kept"
    time.sleep(0.1)
    assert prune(office, task, delete=True, keep_days=1e-6)[b"a"] == ("removed", "")


def test_a_file_that_a_later_upload_changed(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"first")
    first = upload(office, experiment, tmp_path)
    (tmp_path / "a").write_bytes(b"second")
    upload(office, experiment, tmp_path)
    assert prune(office, first, delete=True)[b"a"] == ("removed", ""), "storage has what the source has now"
    assert (Path(experiment["dataDirectory"]) / "a").read_bytes() == b"second"


def test_a_source_that_is_the_storage(office: Office, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    task = upload(office, experiment, tmp_path)
    (tmp_path / "a").unlink()
    (tmp_path / "a").symlink_to(Path(experiment["dataDirectory"]) / "a")
    assert prune(office, task, delete=True)[b"a"] == ("kept", "it is a link")
    (tmp_path / "a").unlink()
    os.link(Path(experiment["dataDirectory"]) / "a", tmp_path / "a")
    assert prune(office, task, delete=True)[b"a"] == ("kept", "it is the very file that storage keeps")


def test_what_is_refused(office: Office, site: Site, experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    daq = office.start("daq", PRINCIPAL, experiment["name"], str(tmp_path), {})
    pruner = Pruner(office.store, office.parts.site, office.parts.settings)
    with pytest.raises(InvalidObjectState, match="not removed yet"):
        pruner.page("daq", daq["id"], Wish(MANAGER[0]))
    office.stop("daq", daq["id"], abort=False)
    finish(office, "daq", daq["id"])
    for kind, task in (("upload", daq["id"]), ("daq", "no-such-daq")):
        with pytest.raises(ObjectNotFound):
            pruner.page(kind, task, Wish(MANAGER[0]))
    in_place = upload(office, experiment, tmp_path, skipTransfer=True)
    with pytest.raises(InvalidObjectState, match="were not moved"):
        pruner.page("upload", in_place, Wish(MANAGER[0]))
    moved = upload(office, experiment, tmp_path, destDirectory="x")
    site.stop()
    try:
        with pytest.raises(Exception, match=r"cannot be reached|refused|answer") as problem:
            pruner.page("upload", moved, Wish(MANAGER[0], delete=True))
        assert not isinstance(problem.value, AssertionError)
    finally:
        site.start()
    assert (tmp_path / "a").exists()


def test_removing_while_moving(office: Office, site: Site, experiment: dict[str, Any], tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"f{number}").write_bytes(b"%d" % number)
    task = upload(office, experiment, tmp_path, removeSourceFiles=True)
    assert tree(tmp_path) == {} and len(tree(experiment["dataDirectory"])) == 30
    assert {fate for fate, _why in prune(office, task).values()} == {"gone"}
