"""What users ask for when they start a DAQ or upload: the keys of ``taskInfo`` (6.1), read strictly and once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from dm.common.errors import InvalidArgument
from dm.common.paths import encode, relative
from dm.station.acquisition.selection import Selection, words

_RESERVED = frozenset({"experimentName", "dataDirectory", "_id"})


class TaskSpec(BaseModel):
    """The known keys; every other key is metadata of the files, and echoed."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow", frozen=True)

    dest_directory: str = ""
    target_directory: str = ""
    use_analysis_directory_as_root: bool = False
    experiment_file_path: str = ""
    process_existing_files: bool = False
    process_hidden_files: bool = False
    reprocess_files: bool = False
    remove_source_files: bool = False
    file_path_pattern: str = ""
    skip_file_path_pattern: str = ""
    include_file_extensions: str = ""
    exclude_file_extensions: str = ""
    max_run_time_in_hours: float = Field(default=0, ge=0, le=10_000)
    upload_data_directory_on_exit: str = ""
    upload_dest_directory_on_exit: str = ""
    upload_target_directory_on_exit: str = ""
    processing_mode: Literal["files", "directory"] = "files"
    workflow_name: str = ""
    workflow_owner: str = ""
    workflow_args: dict[str, Any] = {}
    workflow_job_owner: str = ""
    workflow_per: Literal["", "file", "batch"] = ""
    skip_transfer: bool = False
    skip_checksum: bool = False
    skip_catalog: bool = False
    skip_plugins: tuple[str, ...] = ()
    on_conflict: Literal["fail", "replace", "version"] = "fail"
    completion_rule: str = Field(default="", max_length=200)
    completion_args: dict[str, Any] = {}
    watch_method: Literal["", "auto", "events", "polling", "both"] = ""

    @field_validator(
        "file_path_pattern",
        "skip_file_path_pattern",
        "include_file_extensions",
        "exclude_file_extensions",
        mode="before",
    )
    @classmethod
    def _list_as_text(cls, value: Any) -> Any:
        return ",".join(str(item) for item in value) if isinstance(value, list | tuple) else value

    @field_validator("skip_plugins", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return words(value) if isinstance(value, str) else value

    @field_validator("processing_mode", mode="before")
    @classmethod
    def _mode(cls, value: Any) -> Any:
        text = value.strip().lower() if isinstance(value, str) else value
        return "files" if text in ("single file", "singlefile", "file") else text

    @field_validator("completion_rule", mode="before")
    @classmethod
    def _rules(cls, value: Any) -> Any:
        return ",".join(str(item) for item in value) if isinstance(value, list | tuple) else value

    @field_validator("workflow_args", "completion_args", mode="before")
    @classmethod
    def _arguments(cls, value: Any) -> Any:
        return parse_words(value) if isinstance(value, str | list | tuple) else value

    @property
    def root(self) -> str:
        """``data`` or ``analysis``: the directory of the experiment that files go below."""
        return "analysis" if self.use_analysis_directory_as_root else "data"

    @property
    def destination(self) -> bytes:
        """The sub-folder files go into, as canonical bytes; empty for none."""
        text = (self.dest_directory or self.target_directory).strip("/")
        return relative(text) if text not in ("", ".") else b""

    @property
    def exit_destination(self) -> str:
        """The sub-folder that the upload at the end goes into; empty for none."""
        return self.upload_dest_directory_on_exit or self.upload_target_directory_on_exit

    @property
    def only(self) -> bytes | None:
        """The single file of an upload, as canonical bytes."""
        return relative(self.experiment_file_path) if self.experiment_file_path else None

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's own keys."""
        return {key: value for key, value in (self.model_extra or {}).items() if key not in _RESERVED}

    def selection(self) -> Selection:
        """Return the name filters."""
        return Selection.parse(
            file_path_pattern=self.file_path_pattern,
            skip_file_path_pattern=self.skip_file_path_pattern,
            include_file_extensions=self.include_file_extensions,
            exclude_file_extensions=self.exclude_file_extensions,
            process_hidden_files=self.process_hidden_files,
            only=self.only,
        )


def parse_words(value: str | list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    """Read ``key:value`` words, as a text separated by blanks or commas or as a list.

    :raises InvalidArgument: a word without a colon.
    """
    parts = value.replace(",", " ").split() if isinstance(value, str) else [str(item) for item in value]
    found: dict[str, Any] = {}
    for word in parts:
        key, colon, text = word.partition(":")
        if not colon or not key:
            raise InvalidArgument(f"Argument {word!r} is not a key:value word.")
        found[key] = text
    return found


def parse(task_info: Mapping[str, Any] | None) -> tuple[TaskSpec, dict[str, Any]]:
    """Read a ``taskInfo``.

    :returns: the specification, and the keys as given (known ones in their proper type), for the info record.
    :raises InvalidArgument: naming key and value.
    """
    given = {str(key): value for key, value in (task_info or {}).items() if value is not None and value != ""}
    for key in given:
        if "\0" in key:
            raise InvalidArgument(f"Key {key!r} contains a NUL byte.")
    try:
        spec = TaskSpec.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0]) if problem["loc"] else "taskInfo"
        shown = repr(problem["input"])
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise InvalidArgument(f"{key} = {shown} is not acceptable: {problem['msg'].rstrip('.')}.") from None
    if bool(spec.workflow_name) != bool(spec.workflow_owner):
        missing = "workflowOwner" if spec.workflow_name else "workflowName"
        raise InvalidArgument(f"workflowName and workflowOwner belong together; {missing} is missing.")
    if spec.skip_transfer and spec.remove_source_files:
        raise InvalidArgument("removeSourceFiles needs a transfer; leave out skipTransfer.")
    if spec.exit_destination and not spec.upload_data_directory_on_exit:
        raise InvalidArgument("uploadDestDirectoryOnExit needs uploadDataDirectoryOnExit; name the directory, too.")
    spec.selection()
    _ = spec.destination
    if spec.exit_destination.strip("/") not in ("", "."):
        relative(spec.exit_destination.strip("/"))
    typed = spec.model_dump(by_alias=True, exclude_unset=True, exclude=set(spec.model_extra or {}))
    if "skipPlugins" in typed:
        typed["skipPlugins"] = ",".join(typed["skipPlugins"])
    echo = {key: typed.get(key, value) for key, value in given.items() if key not in _RESERVED}
    try:
        json.dumps(echo, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"taskInfo is not plain JSON: {error}.") from None
    return spec, echo


def check_text_bytes(text: str) -> bytes:
    """Return the bytes of a directory text. :raises InvalidArgument: empty, or with a NUL byte."""
    raw = encode(text)
    if not raw.strip() or b"\0" in raw:
        raise InvalidArgument(f"Data directory {text!r} is empty or contains a NUL byte; name a directory.")
    return raw
