"""``dm-get-experiment``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import chosen_experiment, experiment_choice


@command("dm-get-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_choice
def main(api: ExperimentDsApi, experiment: str | None, experiment_id: int | None, station: str | None) -> Experiment:
    """Show an experiment."""
    return chosen_experiment(api, experiment, experiment_id, station)
