"""Freeing the detector's disk, by the command."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from tests.live import STATION, Suite
from tests.service.acquisition_fixtures import tree


def fates(text: str) -> dict[str, str]:
    """Return path -> fate of what ``--display-format dict`` printed."""
    return {record["path"]: record["fate"] for record in map(ast.literal_eval, text.splitlines())}


def test_dry_run_then_delete(suite: Suite, open_directory: Path) -> None:
    names = [b"plain", "üñï.h5".encode(), b"new\nline", b"-rf", b"bad\xff"]
    for name in names:
        Path(os.fsdecode(os.fsencode(open_directory) + b"/" + name)).write_bytes(name)
    suite.dm("dm-add-experiment", "--experiment", "prune", "--type", "TEST", "--station", STATION)
    line = suite.dm("dm-upload", "--experiment", "prune", "--data-directory", open_directory, "--wait")
    upload = line.split()[0].removeprefix("id=")
    (open_directory / "plain").write_bytes(b"PLAIN")
    (open_directory / "later").write_bytes(b"in no ledger")
    before = tree(open_directory)

    words = ["dm-prune-source", "--id", upload, "--display-format", "dict", "--display-keys", "path,fate"]
    told = fates(suite.dm(*words))
    assert told.pop("plain") == "kept"
    assert {os.fsencode(path) for path in told} == set(names[1:]) and set(told.values()) == {"removable"}
    assert set(fates(suite.dm(*words, "--keep-days", "1", "--delete")).values()) == {"kept"}
    ours = ["dm-prune-source", "--experiment", "prune"]
    assert suite.dm(*ours, "--older-than", "1", "--delete") == ""
    assert tree(open_directory) == before

    told = fates(suite.dm(*words, "--delete", "--read-again"))
    assert told.pop("plain") == "kept" and set(told.values()) == {"removed"}
    assert tree(open_directory).keys() == {b"plain", b"later"}
    kept = suite.dm(*ours, "--older-than", "0", "--quiet", "--delete")
    assert kept.count("fate=") == 1 and "fate=kept" in kept and "digest is not the stored one" in kept
    assert "Give either --id" in suite.dm("dm-prune-source", "--delete", status=2)
    assert "does not exist" in suite.dm("dm-prune-source", "--id", "none", status=14)
