"""``dm-list-dataset-files``."""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.catalog.api import DatasetCatApi, FileMetadata


@command("dm-list-dataset-files", api="dm.station.catalog.api:DatasetCatApi")
@option("--experiment", required=True, help="Experiment name.")
@option("--dataset", required=True, help="Dataset name.")
def main(api: DatasetCatApi, experiment: str, dataset: str) -> list[FileMetadata]:
    """List the files of a dataset."""
    return api.getExperimentDatasetFiles(experiment, dataset)
