"""``dm-update-experiment-file``."""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.catalog.api import FileCatApi
from dm.station.catalog.commands.words import as_metadata


@command("dm-update-experiment-file", api="dm.station.catalog.api:FileCatApi", keyvalue_arguments=True)
@option("--experiment", required=True, help="Experiment name.")
@option("--file-path", "--file", required=True, help="Path below the experiment's data (or analysis) directory.")
@option("--json", "as_json", is_flag=True, help="Values that are JSON (7, true, [1,2]) are stored as such.")
def main(api: FileCatApi, experiment: str, file_path: str, as_json: bool, words: dict[str, str]) -> DmObject:
    """Set metadata of a file, given as KEY:VALUE words."""
    if not words:
        raise click.UsageError("Give the metadata to set as key:value words.")
    metadata = as_metadata(words, as_json)
    record = api.updateExperimentFile(
        {"experimentName": experiment, "experimentFilePath": file_path, "metadata": metadata}
    )
    return DmObject(record.data)
