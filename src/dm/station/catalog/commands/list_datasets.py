"""``dm-list-datasets``."""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.catalog.api import DatasetCatApi, DatasetMetadata
from dm.station.catalog.commands.words import as_query


@command("dm-list-datasets", api="dm.station.catalog.api:DatasetCatApi", keyvalue_arguments=True)
@option("--experiment", help="Experiment name (default: all experiments you may see).")
@option("--skip", type=int, default=0, help="Datasets to leave out first.")
@option("--limit", type=int, default=5000, show_default=True, help="Most datasets to list.")
def main(
    api: DatasetCatApi, experiment: str | None, skip: int, limit: int, words: dict[str, str]
) -> list[DatasetMetadata]:
    """List datasets; KEY:VALUE words are filters on any key."""
    if experiment:
        return api.getExperimentDatasets(experiment, as_query(words), skip, limit)
    return api.getDatasets(as_query(words), skip, limit)
