"""``dm-pin-experiment``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-pin-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_option
@option("--n-days", type=float, required=True, metavar="N", help="For so many days from now; 0: no longer.")
@station_option
def main(api: ExperimentDsApi, experiment: str, n_days: float, station: str | None) -> Experiment:
    """Keep an experiment from being deleted for some days."""
    return api.pinExperiment(experiment, n_days, station)
