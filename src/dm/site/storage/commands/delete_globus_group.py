"""``dm-delete-globus-group``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import GlobusDsApi, GlobusGroup
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-delete-globus-group", api="dm.site.storage.api:GlobusDsApi")
@experiment_option
@station_option
def main(api: GlobusDsApi, experiment: str, station: str | None) -> GlobusGroup:
    """Delete the Globus group of an experiment and its access rule."""
    return api.deleteGlobusGroup(experiment, station)
