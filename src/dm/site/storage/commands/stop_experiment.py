"""``dm-stop-experiment``"""

from __future__ import annotations

from dm.common import timestamps
from dm.common.command import command
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import chosen_experiment, experiment_choice


@command("dm-stop-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_choice
def main(api: ExperimentDsApi, experiment: str | None, experiment_id: int | None, station: str | None) -> Experiment:
    """Set an experiment's end date to now; DAQs that run go on."""
    record = chosen_experiment(api, experiment, experiment_id, station)
    return api.updateExperiment(record["id"], endDate=timestamps.iso(timestamps.now()))
