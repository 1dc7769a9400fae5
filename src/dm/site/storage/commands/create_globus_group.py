"""``dm-create-globus-group``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import GlobusDsApi, GlobusGroup
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-create-globus-group", api="dm.site.storage.api:GlobusDsApi")
@experiment_option
@station_option
def main(api: GlobusDsApi, experiment: str, station: str | None) -> GlobusGroup:
    """Create the Globus group of an experiment, with its members.

    From then on the group has the members that the experiment has, and on sites with a guest collection they may read
    the experiment's files there.
    """
    return api.createGlobusGroup(experiment, station)
