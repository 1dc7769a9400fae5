"""``dm-list-globus-groups``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import GlobusDsApi, GlobusGroup


@command("dm-list-globus-groups", api="dm.site.storage.api:GlobusDsApi")
def main(api: GlobusDsApi) -> list[GlobusGroup]:
    """List the Globus groups of one's stations, with members unknown to Globus and errors."""
    return api.getGlobusGroups()
