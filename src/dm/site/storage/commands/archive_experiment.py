"""``dm-archive-experiment``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Operation
from dm.site.storage.commands.options import experiment_option, finished, station_option


@command("dm-archive-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_option
@option("--wait", is_flag=True, help="Wait until it is done.")
@station_option
def main(api: ExperimentDsApi, experiment: str, wait: bool, station: str | None) -> Operation:
    """Copy an experiment into the site's archive; prints the task, see dm-get-archive-task.

    Every file is read back and compared. Again copies what is new or has changed.
    """
    task = api.archiveExperiment(experiment, station)
    return finished(api, task, f"Task of experiment {experiment} failed") if wait else task
