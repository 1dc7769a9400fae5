"""``dm-get-file-collection-stats``."""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.catalog.api import CollectionMetadata, FileCatApi


@command("dm-get-file-collection-stats", api="dm.station.catalog.api:FileCatApi")
@option("--experiment", required=True, help="Experiment name.")
def main(api: FileCatApi, experiment: str) -> CollectionMetadata:
    """Show number and sizes (bytes) of an experiment's files."""
    return api.getExperimentFileCollectionStats(experiment)
