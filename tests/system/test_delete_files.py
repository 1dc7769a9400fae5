"""``dm-delete-files`` on a whole suite: storage and catalog, asked for first."""

from __future__ import annotations

from pathlib import Path

import pytest

from dm import FileCatApi
from tests.live import Suite


@pytest.fixture
def experiment(suite: Suite, open_directory: Path) -> str:
    name = "deletes-files"
    suite.dm("dm-add-experiment", "--experiment", name, "--type", "TEST")
    (open_directory / "run1").mkdir()
    for path in ("run1/a.h5", "run1/b.h5", "run1/b.log", "c.h5.log"):
        (open_directory / path).write_bytes(path.encode())
    suite.dm("dm-upload", "--experiment", name, "--data-directory", open_directory, "--wait")
    return name


def test_files_go_from_storage_and_catalog(suite: Suite, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in suite.environment.items():
        monkeypatch.setenv(key, value)
    catalog = FileCatApi()

    def known() -> set[str]:
        return {record["experimentFilePath"] for record in catalog.getExperimentFiles(experiment)}

    words = ["dm-delete-files", "--experiment", experiment, "--path-pattern"]
    everything = {"run1/a.h5", "run1/b.h5", "run1/b.log", "c.h5.log"}
    assert known() == everything
    for answer in ("", "\n", "no\n"):
        said = suite.dm(*words, r".*\.h5", stdin=answer, status=1)
        assert "2 files (18 bytes) below data of experiment deletes-files will be deleted from storage for good" in said
        assert "'run1/a.h5'" in said and "Nothing was deleted." in said
    assert "no regular expression" in suite.dm(*words, "(", status=2)
    assert "countFiles=0 " in suite.dm(*words, "run1", "--yes")  # whole paths only
    assert known() == everything
    line = suite.dm(*words, r".*\.h5", stdin="yes\n")
    assert line == "experimentName=deletes-files countFiles=2 countBytes=18 nCatalog=2 \n"
    assert known() == {"run1/b.log", "c.h5.log"}
    directory = suite.dm("dm-get-experiment", "--experiment", experiment, "--display-keys", "storageDirectory")
    data = Path(directory.strip().removeprefix("storageDirectory="), "data")
    assert {str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()} == known()
    catalog.close()
