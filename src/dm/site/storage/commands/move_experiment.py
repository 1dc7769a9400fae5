"""``dm-move-experiment``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Operation
from dm.site.storage.commands.options import experiment_option, finished, station_option


@command("dm-move-experiment", api="dm.site.storage.api:ExperimentDsApi")
@experiment_option
@option("--storage", required=True, metavar="NAME", help="Storage to move it to; see dm-list-storages.")
@option("--wait", is_flag=True, help="Wait until it is there.")
@station_option
def main(api: ExperimentDsApi, experiment: str, storage: str, wait: bool, station: str | None) -> Operation:
    """Move an experiment to another storage (administrators); prints the operation, see dm-get-operation.

    Its files are copied, read back and compared before the old ones go, and can be read meanwhile. Refused while DAQs,
    uploads or jobs run.
    """
    operation = api.moveExperiment(experiment, storage, station)
    return finished(api, operation, f"Experiment {experiment} is not moved") if wait else operation
