"""Data on storage already: which texts mean that, where they are, and how a request is fitted to them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from dm.station.acquisition import spec, stored
from dm.station.acquisition.settings import AcquisitionSettings
from dm.station.acquisition.sources import parse
from dm.station.acquisition.transports.base import Source


@pytest.fixture
def experiment(tmp_path: Path) -> dict[str, Any]:
    for kind in ("data", "analysis"):
        (tmp_path / "gdata" / "e1" / kind).mkdir(parents=True)
    directory = tmp_path / "gdata" / "e1"
    return {
        "storageHost": "Storage.example.org",
        "storageUrl": f"voyager://Storage.example.org{directory}",
        "storageDirectory": str(directory),
        "dataDirectory": f"{directory}/data",
        "analysisDirectory": f"{directory}/analysis",
    }


def settings(**more: object) -> AcquisitionSettings:
    values = {"certificate": "c", "key": "k", "database_url": "mongodb://h/d", **more}
    return AcquisitionSettings.model_validate(values)


@pytest.mark.parametrize("text", ["@voyager", "@VOYAGER", "@voyager:", "@storage.example.org", "@Storage.example.org:"])
def test_the_name_of_the_experiments_storage_is_its_own_directory(experiment: dict[str, Any], text: str) -> None:
    place = parse(text, settings(), experiment, "analysis")
    assert place.in_place
    assert os.fsdecode(place.source.root) == experiment["analysisDirectory"]
    assert place.source.text == text


def test_a_path_on_the_experiments_storage(experiment: dict[str, Any], tmp_path: Path) -> None:
    own = experiment["dataDirectory"]
    place = parse(f"@voyager:{own}/run1", settings(), experiment, "data")
    assert place.in_place
    assert os.fsdecode(place.source.root) == f"{own}/run1"
    # nothing but the experiment's own directory, however it is said
    os.symlink(tmp_path, Path(own) / "out")
    (tmp_path / "gdata" / "e1" / "database").mkdir()
    for path in ("/etc", f"{own}/../../e2/data", f"{own}/out", f"{own}base", "run1"):
        with pytest.raises(InvalidArgument, match=r"is not below|is not absolute"):
            parse(f"@voyager:{path}", settings(), experiment, "data")


def test_a_path_on_the_storage_host_is_fetched(experiment: dict[str, Any]) -> None:
    place = parse("@storage.example.org:/data", settings(), experiment, "data")
    assert not place.in_place
    assert (place.source.scheme, place.source.host) == ("ssh", "storage.example.org")


def test_an_alias_stands_for_its_directory_and_nothing_beside_it(experiment: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "gdata" / "8id").mkdir()
    (tmp_path / "secret").mkdir()
    os.symlink(tmp_path / "secret", tmp_path / "gdata" / "8id" / "link")
    known = settings(storage_aliases={"sojourner": str(tmp_path / "gdata")})
    assert os.fsdecode(parse("@sojourner:/8id", known, experiment, "data").source.root) == str(tmp_path / "gdata/8id")
    assert os.fsdecode(parse("@sojourner:8id", known, experiment, "data").source.root) == str(tmp_path / "gdata/8id")
    for path in ("/../secret", "/8id/link", "/8id/../../secret"):
        with pytest.raises(InvalidArgument, match="is not below"):
            parse(f"@sojourner:{path}", known, experiment, "data")
    # another way to the experiment's own directory is that directory
    os.symlink(tmp_path / "gdata" / "e1" / "data", tmp_path / "gdata" / "8id" / "mine")
    assert (
        os.fsdecode(parse("@sojourner:/8id/mine", known, experiment, "data").source.root)
        == (experiment["dataDirectory"])
    )


def test_other_hosts_and_addresses(experiment: dict[str, Any]) -> None:
    source = parse("@det@[fe80::1]:/d a", settings(), experiment, "data").source
    assert (source.host, source.root, source.scheme) == ("det@[fe80::1]", b"/d a", "ssh")
    assert parse("@host:/a:b", settings(), experiment, "data").source.root == b"/a:b"
    for text in ("@", "@:", "@host", "@host:d", "@[::1]"):
        with pytest.raises(InvalidArgument, match=r"known: @storage\.example\.org, @voyager"):
            parse(text, settings(), experiment, "data")
    for text in ("@h x:/d", "@h;x:/d", "@-x:/d"):
        with pytest.raises(InvalidArgument, match="no valid host"):
            parse(text, settings(), experiment, "data")
    with pytest.raises(InvalidArgument, match="known: none"):
        parse("@host", settings(), {}, "data")


def settled(experiment: dict[str, Any], directory: str, **keys: Any) -> tuple[spec.TaskSpec, dict[str, Any]]:
    read, echo = spec.parse(keys)
    return stored.settle(read, echo, Source(directory, os.fsencode(directory)), experiment)


def test_files_of_the_experiment_keep_their_place(experiment: dict[str, Any], tmp_path: Path) -> None:
    own = experiment["dataDirectory"]
    read, echo = settled(experiment, f"{own}/run1/a")
    assert (read.destination, read.skip_transfer) == (b"run1/a", True)
    assert echo == {"skipTransfer": True, "destDirectory": "run1/a"}
    read, echo = settled(experiment, own)
    assert read.destination == b"" and echo == {"skipTransfer": True}
    read, _echo = settled(experiment, experiment["analysisDirectory"], useAnalysisDirectoryAsRoot=True)
    assert read.destination == b""
    assert settled(experiment, f"{own}/run1", destDirectory="run1/")[0].destination == b"run1"
    with pytest.raises(InvalidArgument, match="leave out destDirectory"):
        settled(experiment, f"{own}/run1", destDirectory="elsewhere")
    with pytest.raises(InvalidArgument, match="set useAnalysisDirectoryAsRoot"):
        settled(experiment, experiment["analysisDirectory"])
    with pytest.raises(InvalidArgument, match="leave out useAnalysisDirectoryAsRoot"):
        settled(experiment, own, useAnalysisDirectoryAsRoot=True)
    with pytest.raises(InvalidArgument, match="holds the experiment's own directory"):
        settled(experiment, str(tmp_path / "gdata"))


def test_files_elsewhere_go_where_they_are_wanted(experiment: dict[str, Any], tmp_path: Path) -> None:
    read, echo = settled(experiment, str(tmp_path / "other"), destDirectory="from/other")
    assert read.destination == b"from/other"
    assert echo == {"destDirectory": "from/other", "skipTransfer": True}


def test_what_is_not_moved_is_not_removed(experiment: dict[str, Any], tmp_path: Path) -> None:
    """With @alias this once passed, and would have removed the only copy."""
    with pytest.raises(InvalidArgument, match="removeSourceFiles would remove"):
        settled(experiment, experiment["dataDirectory"], removeSourceFiles=True)


def test_what_is_not_moved_must_be_here(experiment: dict[str, Any]) -> None:
    read, echo = spec.parse({"skipTransfer": True})
    with pytest.raises(InvalidArgument, match="on another machine"):
        stored.settle(read, echo, Source("@h:/d", b"/d", "h", "ssh"), experiment)
