"""``dm-get-experiment``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import station_option


@command("dm-get-experiment", api="dm.site.storage.api:ExperimentDsApi")
@option("--experiment", help="Experiment name.")
@option("--id", "experiment_id", type=int, help="Its number, instead of its name.")
@station_option
def main(api: ExperimentDsApi, experiment: str | None, experiment_id: int | None, station: str | None) -> Experiment:
    """Show an experiment."""
    if experiment_id is not None:
        return api.getExperimentById(experiment_id)
    if experiment is None:
        raise click.UsageError("Name the experiment by --experiment or --id.")
    return api.getExperimentByName(experiment, station)
