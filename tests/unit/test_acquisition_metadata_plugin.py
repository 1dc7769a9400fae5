"""The metadata plugin: what it adds to a file, and what it leaves alone."""

import pytest
from pydantic import ValidationError

from dm.station.acquisition.plugins.base import PluginBatch, PluginContext, PluginFile
from dm.station.acquisition.plugins.metadata import Metadata, MetadataSettings

SPEC = (
    "#F a.dat\n#E 1\n#D Wed Feb 03 16:51:31 2016\n#C Setup  User = usaxs\n\n#S 1 ascan  th 0 1 1 1\n#N 1\n#L th\n1\n2\n"
)


def plugin_file(path, **metadata):
    status = path.stat()
    return PluginFile(
        path=path.name.encode(),
        source_path=bytes(path),
        source_url=path.as_uri(),
        storage_path=b"/nowhere/at/all",
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        digests={},
        md5="",
        version=1,
        key="k",
        metadata=metadata,
    )


@pytest.fixture
def run():
    made = []

    def process(files, daq=None, **settings):
        plugin = Metadata(MetadataSettings(**settings), PluginContext("25IDC", "dm25idc", "secret"))
        made.append(plugin)
        plugin.process(PluginBatch(daq=daq or {}, experiment={}, root="data", files=files))
        return plugin

    yield process
    for plugin in made:
        plugin.close()


def test_a_later_version_replaces_what_was_found_but_not_what_the_user_said(tmp_path, run):
    path = tmp_path / "a.dat"
    path.write_text(SPEC)
    file = plugin_file(path, title="mine", beamtime="17")
    run([file], {"title": "mine", "beamtime": "17", "status": "running"})
    assert file.error == ""
    assert (file.metadata["title"], file.metadata["scanCount"], file.metadata["user"]) == ("mine", 1, "usaxs")
    path.write_text(SPEC + "\n#S 2 ascan  th 0 1 1 1\n#N 1\n#L th\n1\n2\n")
    again = plugin_file(path, **file.metadata)
    run([again], {"title": "mine"})
    assert (again.metadata["title"], again.metadata["scanCount"]) == ("mine", 2)


def test_files_that_cannot_be_understood_or_read_go_on_with_a_note(tmp_path, run):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    gone = tmp_path / "gone.txt"
    gone.write_text("x")
    files = [plugin_file(broken), plugin_file(gone)]
    gone.unlink()
    run(files)
    assert [file.error for file in files] == ["", ""]
    assert "cannot be read" in files[0].metadata["metadataError"]
    assert files[1].metadata == {"metadataError": "The file is not readable from this host."}
    broken.write_text(SPEC)
    repaired = plugin_file(broken, **files[0].metadata)
    run([repaired])
    assert "metadataError" not in repaired.metadata


def test_the_stations_program_adds_and_overrides(tmp_path, run):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "title=from program"; echo "path=$1"\n')
    program.chmod(0o755)
    path = tmp_path / "a.dat"
    path.write_text(SPEC)
    file = plugin_file(path)
    run([file], executable=str(program))
    assert (file.metadata["title"], file.metadata["path"], file.metadata["scanCount"]) == ("from program", str(path), 1)
    program.write_text("#!/bin/sh\nexit 9\n")
    failed = plugin_file(path)
    run([failed], executable=str(program))
    assert (failed.error, failed.metadata["scanCount"]) == ("", 1)
    assert "status 9" in failed.metadata["metadataError"]


def test_a_stopping_service_leaves_the_rest_for_later(tmp_path):
    path = tmp_path / "a.dat"
    path.write_text(SPEC)
    context = PluginContext("25IDC", "dm25idc", "secret")
    context.stop.set()
    plugin = Metadata(MetadataSettings(), context)
    file = plugin_file(path)
    plugin.process(PluginBatch(daq={}, experiment={}, root="data", files=[file]))
    plugin.close()
    assert file.transient
    assert file.metadata == {}


def test_the_program_is_named_by_an_absolute_path():
    with pytest.raises(ValidationError, match="absolute path"):
        MetadataSettings(executable="program")
