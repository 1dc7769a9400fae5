"""``dm-get-experiment-file``."""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.catalog.api import FileCatApi


@command("dm-get-experiment-file", api="dm.station.catalog.api:FileCatApi")
@option("--experiment", required=True, help="Experiment name.")
@option("--file-path", "--file", help="Path below the experiment's data (or analysis) directory.")
@option("--id", "file_id", help="Id of the file's record, instead of its path.")
def main(api: FileCatApi, experiment: str, file_path: str | None, file_id: str | None) -> DmObject:
    """Show a file's record with all its metadata."""
    if file_path:
        return DmObject(api.getExperimentFile(experiment, file_path).data)
    if file_id:
        return DmObject(api.getExperimentFileById(experiment, file_id).data)
    raise click.UsageError("Name the file by --file-path or --id.")
