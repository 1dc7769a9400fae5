"""A catalog whose records are gone is made anew from what storage wrote down about each file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dm.station.catalog.rebuild import complete
from tests.live import STATION, Suite

EXPERIMENT = "rebuilt"
KEYS = ("root", "experimentFilePath", "fileSize", "fileModificationTime", "md5Sum", "digests", "version")
Listing = Callable[[], dict[str, dict[str, object]]]


@pytest.fixture(scope="module")
def uploaded(suite: Suite, run_directory: Path) -> Listing:
    """An experiment with files, one of them in its second version; lists its catalog records by path."""
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--station", STATION, "--type", "TEST")
    source = run_directory / "rebuild-source"
    (source / "scan").mkdir(parents=True)
    (source / "a.dat").write_bytes(b"first")
    for number in range(30):
        (source / "scan" / f"f{number:03d}.dat").write_bytes(b"x" * number)
    (source / os.fsdecode(b"odd \xff\n name.dat")).write_bytes(b"odd")
    _whole_seconds(source)
    suite.dm("dm-upload", "--experiment", EXPERIMENT, "--data-directory", source, "--wait")
    (source / "a.dat").write_bytes(b"second, longer")
    _whole_seconds(source)
    suite.dm("dm-upload", "--experiment", EXPERIMENT, "--data-directory", source, "--wait", "onConflict:replace")

    def listing() -> dict[str, dict[str, object]]:
        text = suite.dm("dm-list-experiment-files", "--experiment", EXPERIMENT, "--display-format", "json", "--all")
        found = [json.loads(line) for line in text.splitlines()]
        return {record["experimentFilePath"]: {key: record.get(key) for key in KEYS} for record in found}

    return listing


def _whole_seconds(source: Path) -> None:
    """The embedded database keeps 15 digits of a number that is changed; times of these files have fewer."""
    for path in source.rglob("*.dat"):
        os.utime(path, (1_770_000_000 + len(path.name), 1_770_000_000 + path.stat().st_size))


def rebuilt(suite: Suite, *words: str) -> dict[str, int]:
    text = suite.dm("dm-rebuild-catalog", *words, "--display-format", "json")
    return next(one for one in map(json.loads, text.splitlines()) if one["experimentName"] == EXPERIMENT)


def test_missing_records_come_back(suite: Suite, uploaded: Listing) -> None:
    before = uploaded()
    assert len(before) == 32 and before["a.dat"]["version"] == 2
    nothing = rebuilt(suite, "--experiment", EXPERIMENT)
    assert (nothing["nAdded"], nothing["nUpdated"], nothing["nUnchanged"], nothing["countGone"]) == (0, 0, 32, 1)

    from dm.common.client import RestClient

    url, ca_file = suite.environment["DM_CAT_WEB_SERVICE_URL"], suite.environment["DM_CA_FILE"]
    with RestClient(url, *suite.manager, ca_file=ca_file) as catalog:
        assert catalog.delete(f"/experimentFileCollections/{EXPERIMENT}")["countFiles"] == 32
    assert uploaded() == {}
    planned = rebuilt(suite, "--experiment", EXPERIMENT, "--dry-run", "--list")
    assert planned["nAdded"] == 32 and uploaded() == {}
    done = rebuilt(suite, "--all-experiments", "--storage")
    assert (done["nAdded"], done["nErrors"], done["nRecordedAgain"]) == (32, 0, 0)
    assert uploaded() == before
    assert rebuilt(suite, "--all-experiments")["nAdded"] == 0


def test_what_is_not_on_disk_any_more_is_left_out(suite: Suite, uploaded: Listing) -> None:
    record = json.loads(suite.dm("dm-get-experiment", "--experiment", EXPERIMENT, "--display-format", "json", "--all"))
    (Path(record["storageDirectory"]) / "data" / "scan" / "f001.dat").unlink()
    found = rebuilt(suite, "--experiment", EXPERIMENT)
    assert (found["countFiles"], found["countGone"]) == (31, 2)


def test_wrong_use(suite: Suite) -> None:
    assert "--experiment or --all-experiments" in suite.dm("dm-rebuild-catalog", status=2)
    assert "does not exist" in suite.dm("dm-rebuild-catalog", "--experiment", "nowhere", status=14)


def test_a_manifest_that_breaks_off_is_noticed() -> None:
    from dm.common.errors import DmException

    assert list(complete([{"path": "a"}, {"event": "end", "countFiles": 1}])) == [{"path": "a"}]
    for cut in ([{"path": "a"}], [], [{"event": "end", "countFiles": 3}]):
        with pytest.raises(DmException, match="broke off"):
            list(complete(cut))
