"""The plugin by itself: no service, only a batch of files as DM hands it over."""

from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument
from dm.station.acquisition.plugins.base import PluginBatch, PluginContext, PluginFile
from dm_plugin_example.logbook import Logbook
from dm_plugin_example.settings import LogbookSettings


def batch(*paths: bytes) -> PluginBatch:
    files = [
        PluginFile(
            path=path,
            source_path=b"/detector/" + path,
            source_url="file:///detector",
            storage_path=b"/storage/" + path,
            size=3,
            mtime_ns=0,
            digests={},
            md5="",
            version=1,
            key=f"key of {path!r}",
        )
        for path in paths
    ]
    return PluginBatch({"id": "d1"}, {"id": 1, "name": "e1"}, "data", files)


@pytest.fixture
def logbook(tmp_path: Path) -> Logbook:
    settings = LogbookSettings(directory=tmp_path, refuse=[".bak"])
    return Logbook(settings, PluginContext("25IDC", "nobody", "nothing"))


def test_every_file_gets_one_line(logbook: Logbook, tmp_path: Path) -> None:
    seen = batch(b"a", b"b\xff")
    logbook.process(seen)
    logbook.process(batch(b"b\xff", b"c"))  # as after a restart
    assert len((tmp_path / "e1.jsonl").read_text().splitlines()) == 3
    assert [file.metadata["logbookLine"] for file in seen.files] == [1, 2]


def test_a_refused_file_does_not_hold_up_the_others(logbook: Logbook) -> None:
    seen = batch(b"a.bak", b"a")
    logbook.process(seen)
    assert "must not be here" in seen.files[0].error and not seen.files[0].transient
    assert seen.files[1].error == ""


def test_keys_are_checked_before_a_daq_starts(logbook: Logbook) -> None:
    logbook.check({"logbookPage": "7"})
    with pytest.raises(InvalidArgument, match="is not a number"):
        logbook.check({"logbookPage": "seven"})
