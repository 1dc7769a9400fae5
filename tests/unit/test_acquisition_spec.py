"""Reading ``taskInfo``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument
from dm.station.acquisition.spec import TaskSpec, parse, parse_words


def test_texts_become_their_types_and_other_keys_are_metadata() -> None:
    spec, echo = parse(
        {
            "processExistingFiles": "true",
            "processHiddenFiles": "1",
            "reprocessFiles": 0,
            "maxRunTimeInHours": "24",
            "processingMode": "Directory",
            "destDirectory": "/raw/one/",
            "sample": "gold",
            "temperature": 4.2,
            "skipPlugins": "metadata, workflow",
            "workflowName": "",
        }
    )
    assert spec.process_existing_files
    assert spec.process_hidden_files
    assert not spec.reprocess_files
    assert spec.max_run_time_in_hours == 24
    assert spec.processing_mode == "directory"
    assert spec.destination == b"raw/one"
    assert spec.metadata == {"sample": "gold", "temperature": 4.2}
    assert spec.skip_plugins == ("metadata", "workflow")
    assert echo["processExistingFiles"] is True
    assert echo["sample"] == "gold"
    assert echo["skipPlugins"] == "metadata,workflow"
    assert "workflowName" not in echo


@pytest.mark.parametrize("mode", ["files", "Files", "Single File", "DIRECTORY"])
def test_processing_modes_of_the_gui(mode: str) -> None:
    assert parse({"processingMode": mode})[0].processing_mode in ("files", "directory")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"processExistingFiles": "perhaps"}, "processExistingFiles = 'perhaps'"),
        ({"maxRunTimeInHours": "20000"}, "maxRunTimeInHours"),
        ({"processingMode": "sideways"}, "processingMode = 'sideways'"),
        ({"destDirectory": "../out"}, "'..'"),
        ({"experimentFilePath": "a\0b"}, "NUL"),
        ({"workflowName": "w"}, "workflowOwner is missing"),
        ({"workflowOwner": "w"}, "workflowName is missing"),
        ({"workflowName": "w", "workflowOwner": "o", "workflowArgs": "a:1 b"}, "'b'"),
        ({"skipTransfer": "1", "removeSourceFiles": "1"}, "removeSourceFiles"),
        ({"onConflict": "guess"}, "onConflict"),
        ({"x": float("nan")}, "JSON"),
        ({"filePathPattern": "a\0"}, "NUL"),
    ],
)
def test_one_sentence_for_what_cannot_be(keys: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        for only in (parse(keys)[0],):
            _ = only.only
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workflow_arguments() -> None:
    assert parse_words("a:1 b:x:y,c:") == {"a": "1", "b": "x:y", "c": ""}
    spec, _ = parse({"workflowName": "w", "workflowOwner": "o", "workflowArgs": {"n": 1}})
    assert spec.workflow_args == {"n": 1}


def test_info_keys_cannot_be_smuggled() -> None:
    spec, echo = parse({"experimentName": "other", "dataDirectory": "/etc", "_id": 1})
    assert spec.metadata == {}
    assert echo == {}


def test_the_reference_page_names_every_key_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/daq-keys.md").read_text()
    asked, _, _told = page.partition("## The info record")
    rows = [line.split("|")[1] for line in asked.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named == {str(field.alias) for field in TaskSpec.model_fields.values()}


def test_where_the_upload_at_the_end_goes_is_checked_at_the_start() -> None:
    both = parse({"uploadDataDirectoryOnExit": "/logs", "uploadTargetDirectoryOnExit": "a/b"})[0]
    assert both.exit_destination == "a/b"
    with pytest.raises(InvalidArgument, match="needs uploadDataDirectoryOnExit"):
        parse({"uploadDestDirectoryOnExit": "a"})
    with pytest.raises(InvalidArgument, match=r"'\.\.'"):
        parse({"uploadDataDirectoryOnExit": "/logs", "uploadDestDirectoryOnExit": "../a"})
