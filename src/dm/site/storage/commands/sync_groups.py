"""``dm-sync-groups``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import GroupSync, UserDsApi


@command("dm-sync-groups", api="dm.site.storage.api:UserDsApi")
@option("--dry-run", is_flag=True, help="Only say what differs; write nothing.")
@option("--force", is_flag=True, help="Also remove more groups, or people, than storage.ldap.most_removals.")
def main(api: UserDsApi, dry_run: bool, force: bool) -> GroupSync:
    """Compare the experiments' groups in LDAP with the database and write the differences (administrators).

    The counts are shown; --display-keys ALL shows what differs as well.
    """
    return api.syncGroups(dryRun=dry_run, force=force)
