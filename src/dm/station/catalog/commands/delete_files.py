"""``dm-delete-files``"""

from __future__ import annotations

import re
import time
from contextlib import suppress

import click

from dm.common.client import segment
from dm.common.command import command, confirm, option
from dm.common.errors import ObjectNotFound, ProcessingError
from dm.common.records import DmObject
from dm.site.storage.api import ExperimentDsApi, FileDsApi
from dm.station.catalog.api import FileCatApi

APIS = [
    "dm.site.storage.api:ExperimentDsApi",
    "dm.site.storage.api:FileDsApi",
    "dm.station.catalog.api:FileCatApi",
]
_AT_ONCE = 1000
_POLL_SECONDS = 0.2


class Deleted(DmObject):
    """What was deleted."""


@command("dm-delete-files", api=APIS)
@option("--experiment", required=True, help="Experiment name.")
@option("--path-pattern", required=True, metavar="REGEX", help="Regular expression for whole paths below the root.")
@option("--root", type=click.Choice(["data", "analysis"]), default="data", help="Root the paths are below.")
@option("--station", metavar="NAME", help="Station name; default: the station of the setup file.")
@option("-y", "--yes", is_flag=True, help="Do not ask.")
def main(
    experiments: ExperimentDsApi,
    files: FileDsApi,
    catalog: FileCatApi,
    *,
    experiment: str,
    path_pattern: str,
    root: str,
    station: str | None,
    yes: bool,
) -> Deleted:
    """Delete published files from storage, and their records from the catalog (managers).

    They are gone for good. Says how many they are and asks before it does anything.
    """
    try:
        wanted = re.compile(path_pattern, re.DOTALL)
    except re.error as error:
        raise click.UsageError(f"--path-pattern is no regular expression: {error}.") from None
    record = experiments.getExperimentByName(experiment, station)
    found = [
        (one["experimentFilePath"], int(one["fileSize"]))
        for one in files.getFiles(record["name"], record["stationName"], root)
        if wanted.fullmatch(one["experimentFilePath"])
    ]
    report = {"experimentName": record["name"], "countFiles": 0, "countBytes": 0, "nCatalog": 0}
    if not found:
        click.echo(f"No file below {root} of experiment {record['name']} has a path like that.", err=True)
        return Deleted(report)
    size = sum(size for _, size in found)
    shown = "\n".join(["", *(f"  {path!a}" for path, _ in found[:5]), *(["  ..."] if len(found) > 5 else [])])
    question = (
        f"{len(found)} files ({size} bytes) below {root} of experiment {record['name']} will be deleted from storage "
        f"for good, and their records from the catalog:{shown}\nDelete?"
    )
    if not yes and not confirm(question):
        click.echo("Nothing was deleted.", err=True)
        raise click.exceptions.Exit(1)
    for start in range(0, len(found), _AT_ONCE):
        part = found[start : start + _AT_ONCE]
        operation = files.deleteFiles([path for path, _ in part], record["name"], record["stationName"], root)
        while operation["status"] in ("pending", "running"):
            time.sleep(_POLL_SECONDS)
            operation = experiments.getOperation(operation["id"])
        if operation["status"] == "failed":
            raise ProcessingError(f"After {report['countFiles']} files: {operation['errorMessage']}")
        report["countFiles"] += operation["countFiles"]
        report["countBytes"] += sum(size for _, size in part)
        for path, _ in part:
            with suppress(ObjectNotFound):
                catalog.client.delete(f"/experimentFilesByPath/{segment(record['name'])}/{segment(path)}", root=root)
                report["nCatalog"] += 1
    return Deleted(report)
