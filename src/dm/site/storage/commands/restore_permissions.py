"""``dm-restore-permissions``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.site.storage.api import ExperimentDsApi
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-restore-permissions", api="dm.site.storage.api:ExperimentDsApi")
@experiment_option
@option("--relative-path", default="", help="Only this path below the experiment's directory, e.g. data/run1.")
@station_option
def main(api: ExperimentDsApi, experiment: str, relative_path: str, station: str | None) -> DmObject:
    """Give files and directories of an experiment their owner and mode again."""
    return api.restorePermissions(experiment, relative_path, station)
