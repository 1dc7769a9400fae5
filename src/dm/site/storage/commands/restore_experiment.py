"""``dm-restore-experiment``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Operation
from dm.site.storage.commands.options import experiment_option, finished, station_option


@command("dm-restore-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_option
@option("--wait", is_flag=True, help="Wait until it is done.")
@station_option
def main(api: ExperimentDsApi, experiment: str, wait: bool, station: str | None) -> Operation:
    """Bring files back that the archive has and the experiment has not; prints the task.

    What is there stays as it is. Deleted experiments come back with dm-restore-deleted-experiment.
    """
    task = api.restoreArchivedExperiment(experiment, station)
    return finished(api, task, f"Task of experiment {experiment} failed") if wait else task
