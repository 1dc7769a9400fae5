"""What health says of a storage, without naming its directory."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from dm.site.storage.capacity import Storage


def test_room_comes_and_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    free = shutil.disk_usage(tmp_path).free / 2**30
    storage = Storage("voyager", str(tmp_path), free / 2)
    level, text = storage.look()
    assert level == "ok" and text.startswith("voyager: ") and text.endswith(" GiB free")
    storage.minimum = free * 1.05
    assert storage.look()[0] == "warning"
    storage.minimum = free * 0.97  # a little better is not better
    assert storage.look()[0] == "warning"
    storage.minimum = free * 20
    assert storage.look()[0] == "critical"
    storage.minimum = free / 2
    assert storage.look()[0] == "ok"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert all(str(tmp_path) in record.getMessage() for record in caplog.records)
    assert str(tmp_path) not in text


def test_a_directory_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "mount"
    storage = Storage("voyager", str(place), 0)
    for _ in range(3):
        assert storage.look() == ("critical", "voyager: its directory is not writable; the log names it")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    place.mkdir()
    assert storage.look()[0] == "ok"
