"""Ended jobs that are to go on: what changes in their documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from dm.common import statuses
from dm.common.errors import InvalidObjectState, ObjectNotFound
from dm.station.processing import documents, graph

Document = Mapping[str, Any]


def resumed(document: Document) -> dict[str, Any]:
    """Return the fields to set so that a job goes on where it stopped.

    Its stages that are done stay so. Of the stages that failed or were aborted, the processes that were successful
    count, the others are run again. Cleanup stages run again at the end.

    :raises InvalidObjectState: the job has not ended, or is done.
    """
    _check_ended(document)
    if document["status"] == statuses.DONE:
        raise InvalidObjectState(
            f"Processing job {document['_id']} is done, there is nothing to resume; restart it from a stage instead."
        )
    if document.get("inputError"):
        raise InvalidObjectState(f"Processing job {document['_id']} has no input files; submit another one.")
    workflow = json.loads(document["workflow"])
    names = list(workflow["stages"])
    values = _reopened()
    for index, name in enumerate(names):
        state = dict(document["stages"].get(f"s{index}", {}))
        if workflow["stages"][name].get("cleanup"):
            values[f"stages.s{index}"] = {"since": document["nextChild"]}
        elif state and not documents.settled(workflow["stages"][name], state.get("status")):
            kept = {key: state[key] for key in ("files", "inputs", "repeat", "since", "captured") if key in state}
            status = {"status": statuses.RUNNING} if "files" in state else {}
            values[f"stages.s{index}"] = {**kept, **status, "resumed": document["nextChild"]}
    return values


def restarted(document: Document, from_stage: str | None) -> dict[str, Any]:
    """Return the fields to set so that a job runs a stage and all that come after it anew.

    :param from_stage: name of the stage; ``None``: the whole job.
    :raises InvalidObjectState: the job has not ended. :raises ObjectNotFound: it has no such stage.
    """
    _check_ended(document)
    if document.get("inputError"):
        raise InvalidObjectState(f"Processing job {document['_id']} has no input files; submit another one.")
    stages = json.loads(document["workflow"])["stages"]
    if from_stage is not None and from_stage not in stages:
        raise ObjectNotFound(
            f"Stage {from_stage[:255]!r} does not exist in job {document['_id']}; its stages are {', '.join(stages)}."
        )
    main, cleanup = graph.dependencies(stages), graph.dependencies(stages, cleanup=True)
    if from_stage is None:
        anew = set(stages)
    elif from_stage in cleanup:
        raise InvalidObjectState(f"Stage {from_stage[:255]!r} is a cleanup stage; restart from another one.")
    else:
        anew = {*graph.following(main, from_stage), *cleanup}
        undone = [
            name for name in _before(main, anew) if not documents.settled(stages[name], _status(document, stages, name))
        ]
        if undone:
            raise InvalidObjectState(
                f"Stage {undone[0]!r}, which comes before {from_stage!r}, is not done in job {document['_id']}; "
                "restart from there, or resume the job."
            )
    values = _reopened()
    captured: dict[str, Any] = {}
    for index, name in enumerate(stages):
        if name in anew:
            values[f"stages.s{index}"] = {"since": document["nextChild"]}
        else:
            captured |= json.loads(document["stages"].get(f"s{index}", {}).get("captured") or "{}")
    arguments = json.loads(document["arguments"])
    values |= {"captured": json.dumps(captured), "values": documents.searchable(arguments | captured)}
    return values


def _status(document: Document, stages: Iterable[str], name: str) -> str | None:
    status = document["stages"].get(f"s{list(stages).index(name)}", {}).get("status")
    return str(status) if status else None


def _before(main: graph.Graph, anew: set[str]) -> list[str]:
    """Return the stages that others, which are to run anew, wait for."""
    return sorted({wanted for name in anew if name in main for wanted in main[name]} - anew)


def _reopened() -> dict[str, Any]:
    return {
        "status": statuses.PENDING,
        "abort": False,
        "outcome": None,
        "endTime": None,
        "errorMessage": None,
    }


def _check_ended(document: Document) -> None:
    if document.get("active"):
        raise InvalidObjectState(
            f"Processing job {document['_id']} is {document['status']}; it can go on only when it has ended."
        )
