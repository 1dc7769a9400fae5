"""``dm-add-dataset``."""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.catalog.api import DatasetCatApi, DatasetMetadata
from dm.station.catalog.commands.words import as_metadata, as_object


@command("dm-add-dataset", api="dm.station.catalog.api:DatasetCatApi", keyvalue_arguments=True)
@option("--experiment", required=True, help="Experiment name.")
@option("--dataset", required=True, help="Dataset name, unique in the experiment.")
@option("--file-path", "file_paths", multiple=True, help="A file of the dataset; may be given several times.")
@option("--query", help="Query that finds the dataset's files, as JSON.", metavar="JSON")
@option("--json", "as_json", is_flag=True, help="Values that are JSON (7, true, [1,2]) are stored as such.")
def main(
    api: DatasetCatApi,
    *,
    experiment: str,
    dataset: str,
    file_paths: tuple[str, ...],
    query: str | None,
    as_json: bool,
    words: dict[str, str],
) -> DatasetMetadata:
    """Add a dataset with metadata given as KEY:VALUE words.

    Without --file-path and --query its files are those whose metadata datasetName is the dataset's name.
    """
    info = {**as_metadata(words, as_json), "experimentName": experiment, "datasetName": dataset}
    if file_paths:
        info["experimentFilePathList"] = list(file_paths)
    if query:
        info["fileQueryDict"] = as_object(query, "--query")
    return api.addExperimentDataset(info)
