"""Whether many files are in storage as they were verified, with one question."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

from dm.common.errors import InvalidArgument, ObjectNotFound, ServiceLimit
from dm.site.storage.files import READERS
from tests.service import storage_fixtures as storage
from tests.service.plugin_fixtures import NAMES


@pytest.fixture(scope="module")
def site(new_postgres_database: Callable[[], str], certificates: Path, run_directory: Path) -> Iterator[storage.Site]:
    directory = run_directory / "check-site"
    directory.mkdir()
    with storage.running_site(new_postgres_database(), certificates, directory) as running:
        yield running


def test_what_storage_says(site: storage.Site) -> None:
    experiment = site.experiments(storage.MANAGER).addExperiment("checked", storage.STATION)
    contents = {os.fsdecode(name): name for name in [*NAMES, b"damaged", b"lost", b"touched", b"link"]}
    grant = site.station(storage.MANAGER).addGrant("checked", "upload")
    storage.publish(site.station(), grant, contents)
    data = Path(experiment["dataDirectory"])
    before = (data / "damaged").stat()
    (data / "damaged").write_bytes(b"DAMAGED")
    os.utime(data / "damaged", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(data / "touched", (1, 1))
    (data / "lost").unlink()
    (data / "link").unlink()
    (data / "link").symlink_to("/etc/passwd")
    (data / "unknown").write_bytes(b"nobody published it")
    route = f"/experimentsById/{experiment['id']}/files/check"

    def asked(username: str = storage.MANAGER, **more: Any) -> dict[str, dict[str, Any]]:
        body = {"paths": [*contents, "unknown", "never"], **more}
        found = site.rest(username).post(route, body)["files"]
        assert [record["experimentFilePath"] for record in found] == body["paths"]
        return {record["experimentFilePath"]: record for record in found}

    for username in (storage.MANAGER, storage.SERVICE):
        found = asked(username)
        for path in map(os.fsdecode, NAMES):
            assert (found[path]["verified"], found[path]["version"]) == (True, 1)
            assert found[path]["fileSize"] == len(contents[path])
            assert found[path]["digests"] == {"xxh3_128": xxhash.xxh3_128_hexdigest(contents[path])}
        assert found["damaged"]["verified"], "its size and time are as they were"
        for path, said in (
            ("lost", "does not exist"),
            ("touched", "no longer the one"),
            ("link", "link"),
            ("unknown", "never published"),
            ("never", "never published"),
        ):
            assert not found[path]["verified"] and said in found[path]["reason"], found[path]
    again = asked(readAgain=True)
    assert "another digest" in again["damaged"]["reason"] and again[os.fsdecode(NAMES[0])]["verified"]
    assert not asked(root="analysis")["touched"]["verified"]
    with pytest.raises(ObjectNotFound):
        asked(storage.STRANGER)
    for paths in (["../checked/data/lost"], ["/etc/passwd"], [""], ["x"] * 1001):
        with pytest.raises(InvalidArgument):
            site.rest(storage.MANAGER).post(route, {"paths": paths})
    begun = time.monotonic()
    many = site.rest(storage.MANAGER).post(route, {"paths": [os.fsdecode(NAMES[0])] * 1000})["files"]
    assert all(record["verified"] for record in many) and time.monotonic() - begun < 60


def test_reading_again_leaves_workers_for_others(site: storage.Site) -> None:
    """It may take hours, and every member may ask for it."""
    experiment = site.experiments(storage.MANAGER).addExperiment("readers", storage.STATION)
    storage.publish(site.station(), site.station(storage.MANAGER).addGrant("readers", "upload"), {"a": b"a"})
    route = f"/experimentsById/{experiment['id']}/files/check"
    client, readers = site.rest(storage.MANAGER), site.service.use_cases.files.readers
    for _ in range(READERS):
        assert readers.acquire(blocking=False), "each gave its place back"
    try:
        with pytest.raises(ServiceLimit, match="read again"):
            client.post(route, {"paths": ["a"], "readAgain": True})
        assert client.post(route, {"paths": ["a"]})["files"][0]["verified"]
    finally:
        for _ in range(READERS):
            readers.release()
    assert client.post(route, {"paths": ["a", "a"], "readAgain": True})["files"][1]["verified"]
