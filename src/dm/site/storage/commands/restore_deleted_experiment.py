"""``dm-restore-deleted-experiment``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Operation
from dm.site.storage.commands.options import finished


@command("dm-restore-deleted-experiment", api="dm.site.storage.api:ExperimentDsApi")
@option("--id", "experiment_id", type=int, required=True, help="Its number, see dm-list-deleted-experiments.")
@option("--new-name", help="Another name, if its own is used by another experiment by now.")
def main(api: ExperimentDsApi, experiment_id: int, new_name: str | None) -> Operation:
    """Restore a deleted experiment with its files and members."""
    return finished(api, api.restoreDeletedExperiment(experiment_id, new_name), "Experiment is not restored")
