"""``dm-start-experiment``"""

from __future__ import annotations

from dm.common import timestamps
from dm.common.command import command
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import chosen_experiment, experiment_choice


@command("dm-start-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_choice
def main(api: ExperimentDsApi, experiment: str | None, experiment_id: int | None, station: str | None) -> Experiment:
    """Set an experiment's start date to now; an end date that has passed becomes now, too."""
    record = chosen_experiment(api, experiment, experiment_id, station)
    now = timestamps.iso(timestamps.now())
    passed = timestamps.parse(record["endDate"]) < timestamps.parse(now)
    return api.updateExperiment(record["id"], startDate=now, endDate=now if passed else None)
