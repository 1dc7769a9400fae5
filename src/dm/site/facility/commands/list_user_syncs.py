"""``dm-list-user-syncs``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.facility.api import ApsUserDbApi, UserSync
from dm.site.facility.commands.sync_users import tell


@command("dm-list-user-syncs", api="dm.site.facility.api:ApsUserDbApi")
@option("--adapter", metavar="NAME", help="Only runs of this adapter.")
@option("--limit", type=int, default=20, show_default=True, help="So many of the last runs.")
@option("--id", "run_id", metavar="ID", help="This run, with everybody it changed or left out on standard error.")
def main(api: ApsUserDbApi, adapter: str | None, limit: int, run_id: str | None) -> list[UserSync]:
    """List the last runs of dm-sync-users and of the background, newest last (administrators)."""
    if run_id is None:
        return api.listUserSyncs(adapter, limit)
    run = api.getUserSync(run_id)
    tell(run)
    return [run]
