"""What people are shown of a DAQ or upload: the info record, and the places it names."""

from __future__ import annotations

import json
from typing import Any

from dm.common import statuses, timestamps
from dm.common.paths import display
from dm.station.acquisition.store import Document
from dm.station.acquisition.transports.base import Source


def info(document: Document) -> dict[str, Any]:
    """Return the record of 6.3 of a task document."""
    request = json.loads(document["request"])
    experiment = json.loads(document["experiment"])
    echo = request["taskInfo"]
    counts = document.get("counts") or {}
    total = counts.get("countFiles", 0)
    status = document["status"]
    finished = status in statuses.INACTIVE
    percentage = 100.0 * counts.get("nProcessedFiles", 0) / total if total else (100.0 if finished else 0.0)
    start = float(document["startTime"])
    end = document.get("endTime")
    root = "analysis" if echo.get("useAnalysisDirectoryAsRoot") else "data"
    result = dict(echo)
    result.update(
        id=document["_id"],
        experimentId=int(experiment["id"]),
        experimentName=experiment["name"],
        experimentStationName=document["station"],
        dataDirectory=request["dataDirectory"],
        owner=document["owner"],
        status=status,
        percentageComplete=round(percentage, 2),
        errorMessage=document.get("errorMessage") or "",
        startTime=start,
        startTimestamp=timestamps.text(start),
        runTime=max(0.0, (float(end) if end else timestamps.now()) - start),
        storageDirectory=root_directory(experiment, root),
        storageHost=experiment.get("storageHost", ""),
        storageUrl=experiment.get("storageUrl", ""),
        workflowJobOwner=str(echo.get("workflowJobOwner") or echo.get("workflowOwner") or document["owner"]),
    )
    zero = {"countFiles", "nFiles", "nProcessedFiles", "nCompletedFiles", "nProcessingErrors", "nWaitingFiles"}
    result.update(dict.fromkeys(sorted(zero | {"nSkippedFiles", "countBytes", "completedBytes"}), 0))
    result["processingErrors"] = []
    result.update(fileRate=0.0, byteRate=0.0, movingBytes=0, alarms=[])
    result.update(counts)
    result.update(document.get("speed") or {})
    if document.get("runs"):
        result["reprocessRuns"] = int(document["runs"])
    if end:
        run_time = max(float(end) - start, 1e-3)  # the average of it all
        result.update(
            fileRate=round(result["nCompletedFiles"] / run_time, 3),
            byteRate=round(result["completedBytes"] / run_time, 1),
        )
        result.update(endTime=float(end), endTimestamp=timestamps.text(float(end)))
    return result


def root_directory(experiment: dict[str, Any], root: str) -> str:
    """Return the directory of an experiment for ``data`` or ``analysis``."""
    key = "analysisDirectory" if root == "analysis" else "dataDirectory"
    return str(experiment.get(key) or f"{experiment.get('storageDirectory', '')}/{root}")


def source_url(source: Source, path: bytes) -> str:
    """Return where a file came from, as valid text."""
    place = display(source.root.rstrip(b"/") + b"/" + path)
    if source.host is None:
        return f"file://{place}"
    port = f":{source.port}" if source.port else ""
    return f"{source.scheme}://{source.host}{port}{place}"
