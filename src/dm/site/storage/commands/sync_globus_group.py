"""``dm-sync-globus-group``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import GlobusDsApi, GlobusGroup
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-sync-globus-group", api="dm.site.storage.api:GlobusDsApi")
@experiment_option
@option("--dry-run", is_flag=True, help="Only say what differs.")
@station_option
def main(api: GlobusDsApi, experiment: str, dry_run: bool, station: str | None) -> GlobusGroup:
    """Compare the Globus group of an experiment with its members, and put right what differs.

    That happens by itself, too; this says what differed.
    """
    return api.syncGlobusGroup(experiment, station, dry_run)
