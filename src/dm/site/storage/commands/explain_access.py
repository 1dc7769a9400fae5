"""``dm-explain-access``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.site.storage.api import InspectionDsApi
from dm.site.storage.commands.options import experiment_option, station_option


@command("dm-explain-access", api="dm.site.storage.api:InspectionDsApi")
@option("--username", "--user", help="Login name of whom it is about; default: oneself.")
@experiment_option
@option("--path", default="", help="Below the experiment's directory, e.g. data/run1; default: data.")
@option("--components", is_flag=True, help="Print also every directory on the way, with the rule that applies there.")
@station_option
def main(  # noqa: PLR0917 - one per option
    api: InspectionDsApi, username: str | None, experiment: str, path: str, components: bool, station: str | None
) -> Iterator[DmObject]:
    """Say whether somebody may read something of an experiment, over HTTPS and on the file system, and why.

    The file system follows what the storage host believes at this moment; where that differs from what DM has
    recorded, both are told.
    """
    told = api.explainAccess(username or api.username, experiment, path, station)
    yield told
    if components:
        yield from (DmObject(one) for one in told["components"])
