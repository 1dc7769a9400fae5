"""``dm-list-runs``."""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.catalog.api import RunCatApi, RunMetadata
from dm.station.catalog.commands.words import as_query


@command("dm-list-runs", api="dm.station.catalog.api:RunCatApi", keyvalue_arguments=True)
@option("--experiment", required=True, help="Experiment name.")
@option("--skip", type=int, default=0, help="Runs to leave out first.")
@option("--limit", type=int, default=5000, show_default=True, help="Most runs to list.")
def main(api: RunCatApi, experiment: str, skip: int, limit: int, words: dict[str, str]) -> list[RunMetadata]:
    """List the runs of an experiment; KEY:VALUE words are filters on any key."""
    return api.getExperimentRuns(experiment, as_query(words), skip, limit)
