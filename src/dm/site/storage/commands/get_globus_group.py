"""``dm-get-globus-group``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import GlobusDsApi, GlobusGroup
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-get-globus-group", api="dm.site.storage.api:GlobusDsApi")
@experiment_option
@station_option
def main(api: GlobusDsApi, experiment: str, station: str | None) -> GlobusGroup:
    """Show the Globus group of an experiment."""
    return api.getGlobusGroup(experiment, station)
