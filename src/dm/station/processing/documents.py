"""The job document as stored, and the job record as published.

What users choose freely (arguments, captured values, the workflow) is stored as JSON text: any key and any text,
also bytes of file names that are not UTF-8, comes back as it was, in its order. ``values`` repeats the simple ones
for queries. The first processes of a job are stored in its document, further ones in documents of their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dm.common import statuses, timestamps

EMBEDDED = 64
SHOWN = 1_000
SHOWN_COMMAND = 16 << 10
RECORD_OUTPUT = 4 << 20
DEFAULT_KEYS = (
    "id",
    "owner",
    "status",
    "stage",
    "submissionTime",
    "submissionTimestamp",
    "startTime",
    "startTimestamp",
    "endTime",
    "endTimestamp",
    "runTime",
    "countFiles",
    "errorMessage",
)
ENGINE_KEYS = frozenset({*DEFAULT_KEYS, "workflow", "errorCode"})  # the last marks errors on the wire
_ALWAYS = frozenset({"command", "workingDir", "userAccount"})
COUNTERS = (
    "nRunningChildProcesses",
    "nQueuedChildProcesses",
    "nCompletedChildProcesses",
    "nFailedChildProcesses",
    "nAbortedChildProcesses",
)


@dataclass
class Child:
    """One process of a job.

    :param number: runs on across all stages and repeats of the job. :param stage: index of its stage.
    :param repeat: which repeat of the stage, from 0. :param file: index of its input file.
    :param attempt: how often it was tried before, in this repeat and for this file.
    :param executor: name of the executor that runs it. :param key: the executor's key.
    :param captured: values its output regexes and its output file gave.
    :param reason: why it failed, where its exit status does not tell.
    :param lost: nobody saw its end. :param signal: number of the signal that ended it.
    """

    number: int
    stage: int
    repeat: int
    file: int
    key: str
    command: str
    workingDir: str | None
    userAccount: str
    submitTime: float
    executor: str = "local"
    attempt: int = 0
    status: str = statuses.RUNNING
    startTime: float | None = None
    endTime: float | None = None
    exitStatus: int | None = None
    stdOut: str = ""
    stdErr: str = ""
    outputTruncated: bool = False
    captured: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    lost: bool = False
    signal: int | None = None

    def to_document(self) -> dict[str, Any]:
        """Return what is stored: what says nothing is left out."""
        stored = {name: getattr(self, name) for name in self.__dataclass_fields__}
        stored["captured"] = json.dumps(self.captured) if self.captured else None
        return {name: value for name, value in stored.items() if name in _ALWAYS or _tells(value)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Child:
        """Rebuild from what is stored."""
        values = {key: document[key] for key in cls.__dataclass_fields__ if key in document}
        return cls(**values | {"captured": json.loads(values.get("captured") or "{}")})

    @property
    def ended(self) -> bool:
        """Whether its end has been recorded."""
        return self.endTime is not None

    def record(self, stage: str, share: int) -> dict[str, Any]:
        """Return the published record.

        :param share: most characters of each output.
        """
        result = {
            "childProcessNumber": self.number,
            "stageId": stage,
            "command": self.command,
            "userAccount": self.userAccount,
            "workingDir": self.workingDir,
            "status": self.status,
            "submitTime": self.submitTime,
            "startTime": self.startTime or self.submitTime,
            "endTime": self.endTime,
            "runTime": max(0.0, (self.endTime or 0.0) - (self.startTime or self.submitTime)),
            "exitStatus": self.exitStatus,
            "stdOut": shortened(self.stdOut, share),
            "stdErr": shortened(self.stdErr, share),
        }
        if self.outputTruncated:
            result["outputTruncated"] = True
        if self.attempt:
            result["attempt"] = self.attempt
        if self.signal:
            result["signal"] = self.signal
        if self.lost:
            result["lost"] = True
        return result


def _tells(value: Any) -> bool:
    return value is not None and value is not False and value != ""


def shortened(text: str, limit: int) -> str:
    """Return a text's beginning and end, with a note between, when it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    left_out = len(text) - limit
    return f"{text[: limit // 2]}\n... ({left_out} characters left out) ...\n{text[-(limit - limit // 2) :]}"


def displayed(output: bytes, tail: bytes = b"", left_out: int = 0) -> str:
    """Return output as text any database and page can hold: bytes that are not UTF-8 and NUL show as escapes.

    :param output: all of it, or its beginning. :param tail: its end, where ``left_out`` bytes between are left out.
    """
    if left_out:
        output = output + f"\n... ({left_out} bytes left out) ...\n".encode() + tail
    return output.decode("utf-8", "backslashreplace").replace("\0", "\\x00")


def displayable(text: str) -> str:
    """Return text with lone surrogates (bytes of file names that are not UTF-8) as escapes."""
    return displayed(text.encode("utf-8", "surrogateescape")) if not text.isascii() else text


def searchable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that queries can name: simple ones under plain names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not name.isascii() or not name.replace("_", "a").replace("-", "a").isalnum():
            continue
        if isinstance(value, str) and len(value) <= 1024:
            found[name] = displayable(value)
        elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 62):
            found[name] = value
    return found


def settled(stage: Mapping[str, Any], status: str | None) -> bool:
    """Whether later stages may begin when a stage has this status."""
    tolerated = status == statuses.FAILED and stage.get("onFailure") == "continue"
    return tolerated or status in (statuses.DONE, statuses.SKIPPED)


def order_key(owner: str, order: str) -> str:
    """Return the key that lists an owner's jobs in time order."""
    return f"{owner}:{order}"


def new_job(
    *,
    job_id: str,
    order: str,
    owner: str,
    workflow: Mapping[str, Any],
    arguments: Mapping[str, Any],
    files: list[str],
    error: str | None,
    data_directory: str | None,
    priority: int = 0,
) -> dict[str, Any]:
    """Return the document of a job just submitted.

    :param error: why its input specification is no good; the engine then fails it.
    """
    stages = list(workflow["stages"])
    return {
        "_id": job_id,
        "order": order,
        "ownerOrder": order_key(owner, order),
        "active": 1,
        "owner": owner,
        "status": statuses.PENDING,
        "submissionTime": time.time(),
        "countFiles": len(files),
        "workflowName": workflow["name"],
        "workflowOwner": workflow["owner"],
        "workflow": json.dumps(workflow),
        "stageNames": json.dumps(stages),
        "arguments": json.dumps(dict(arguments)),
        "captured": "{}",
        "values": searchable(arguments),
        "files": json.dumps(files),
        "inputError": error,
        "dataDirectory": data_directory,
        "priority": priority,
        "maxConcurrentJobs": int(workflow.get("maxConcurrentJobs") or 0),
        "nextChild": 0,
        "stages": {},
        "children": {},
    }


def record(
    document: Mapping[str, Any],
    keys: str | list[str] | None = "ALL",
    further: Iterable[Mapping[str, Any]] = (),
    output: int = RECORD_OUTPUT,
) -> dict[str, Any]:
    """Return the published record of a job.

    :param keys: ``"ALL"``, ``"DEFAULT"`` (what the engine knows, without arguments and workflow), or names.
    :param further: processes stored outside the document.
    :param output: most characters of all outputs together.
    """
    names = _names(keys)
    result: dict[str, Any] = {"id": document["_id"], "owner": document["owner"], "status": document["status"]}
    if document.get("stage") is not None:
        result["stage"] = document["stage"]
    for name in ("submission", "start", "end"):
        moment = document.get(f"{name}Time")
        if moment is not None:
            result[f"{name}Time"] = moment
            result[f"{name}Timestamp"] = timestamps.text(moment)
    if document.get("startTime") is not None:
        result["runTime"] = max(0.0, (document.get("endTime") or time.time()) - document["startTime"])
    result["countFiles"] = document["countFiles"]
    if document.get("errorMessage"):
        result["errorMessage"] = document["errorMessage"]
    for name in ("priority", "restarts"):
        if document.get(name):
            result[name] = document[name]
    if names is None or not ENGINE_KEYS.issuperset(names):
        free = {**json.loads(document["arguments"]), **json.loads(document["captured"])}
        result.update({name: value for name, value in free.items() if name not in ENGINE_KEYS})
    if names is None or "workflow" in names:
        result["workflow"] = _workflow(document, further, output)
    return result if names is None else {name: result[name] for name in names if name in result}


def _names(keys: str | list[str] | None) -> list[str] | None:
    """Return the names a key list asks for; ``None`` for all."""
    if isinstance(keys, str):
        word = keys.strip().upper()
        if word == "ALL":
            return None
        keys = None if word in ("DEFAULT", "") else [name.strip() for name in keys.split(",")]
    return list(keys) if keys else list(DEFAULT_KEYS)


def unneeded(keys: str | list[str] | None) -> list[str]:
    """Return the large fields of a document that a record of these keys does not need."""
    names = _names(keys)
    fields = ["files", "values"]
    if names is not None and "workflow" not in names:
        fields += ["workflow", "children", "stages"]
    if names is not None and ENGINE_KEYS.issuperset(names):
        fields += ["arguments", "captured"]
    return fields


def _workflow(document: Mapping[str, Any], further: Iterable[Mapping[str, Any]], output: int) -> dict[str, Any]:
    workflow = json.loads(document["workflow"])
    names = list(workflow["stages"])
    children = [Child.from_document(entry) for entry in [*document["children"].values(), *further]]
    children = sorted((child for child in children if child.ended), key=lambda child: child.number)
    share = max(256, output // (2 * len(children) or 1))
    for index, name in enumerate(names):
        stage = workflow["stages"][name]
        state = document["stages"].get(f"s{index}", {})
        if state.get("status"):
            stage["status"] = state["status"]
        if state.get("artefacts"):
            stage["artefacts"] = json.loads(state["artefacts"])
        stage["childProcesses"] = {
            str(child.number): child.record(name, share) for child in children if child.stage == index
        }
        stage.update({counter: state[counter] for counter in COUNTERS if counter in state})
    return dict(workflow)
