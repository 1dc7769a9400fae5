"""The forms of a data directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.sources import choose, parse
from dm.station.acquisition.transports.local import Local, LocalSettings

EXPERIMENT = {"dataDirectory": "/store/e1/data", "analysisDirectory": "/store/e1/analysis"}


def settings(**more: object) -> AcquisitionSettings:
    return AcquisitionSettings.model_validate(
        {
            "certificate": "c",
            "key": "k",
            "database_url": "mongodb://h/d",
            "storage_aliases": {"voyager": "/gdata"},
            **more,
        }
    )


def test_a_local_path() -> None:
    place = parse("/data/a b/", settings(), EXPERIMENT, "data")
    assert place.source.root == b"/data/a b"
    assert place.source.text == "/data/a b/"
    assert place.source.is_local
    assert not place.in_place


def test_bytes_survive() -> None:
    assert parse("/data/\udcff", settings(), EXPERIMENT, "data").source.root == b"/data/\xff"


def test_another_host() -> None:
    source = parse("@det@host.example.org:/data", settings(), EXPERIMENT, "data").source
    assert (source.host, source.root, source.scheme) == ("det@host.example.org", b"/data", "ssh")
    with pytest.raises(InvalidArgument, match="No transport"):
        choose(source, [Local(LocalSettings())])


def test_urls() -> None:
    source = parse("ftp://host:2811/a%20b", settings(), EXPERIMENT, "data").source
    assert (source.host, source.port, source.root, source.scheme) == ("host", 2811, b"/a b", "ftp")
    assert parse("file:///data", settings(), EXPERIMENT, "data").source.is_local


def test_data_on_storage_already() -> None:
    place = parse("@voyager", settings(), EXPERIMENT, "analysis")
    assert place.in_place
    assert place.source.root == b"/store/e1/analysis"
    assert parse("@voyager:/8id/x", settings(), EXPERIMENT, "data").source.root == b"/gdata/8id/x"


@pytest.mark.parametrize(
    "text",
    [
        "data",
        "@host",
        "@host:data",
        "@-oProxyCommand=x:/data",
        "@ho st:/data",
        "ftp:///data",
        "ftp://host:99999/d",
        "ftp://h",
        "a\0b",
    ],
)
def test_what_cannot_be(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse(text, settings(), EXPERIMENT, "data")


def test_only_below_allowed_directories(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "inside"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    limited = settings(allowed_directories=[str(inside)])
    assert parse(str(inside), limited, EXPERIMENT, "data").source.root == str(inside).encode()
    assert parse(f"file://{inside}", limited, EXPERIMENT, "data").source.root == str(inside).encode()
    for bad in (outside, inside / "link", inside / ".." / "inside", f"file://{outside}", f"file://localhost{outside}"):
        with pytest.raises(InvalidArgument, match="is not below"):
            parse(str(bad), limited, EXPERIMENT, "data")
