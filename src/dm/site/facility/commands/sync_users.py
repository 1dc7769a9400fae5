"""``dm-sync-users``"""

from __future__ import annotations

from dm.common.command import command, option, say
from dm.common.errors import ProcessingError
from dm.site.facility.api import ApsUserDbApi, UserSync

WAIT_SECONDS = 10.0


@command("dm-sync-users", api="dm.site.facility.api:ApsUserDbApi")
@option("--adapter", metavar="NAME", help="Adapter that gives the people; default: the only one.")
@option("--dry-run", is_flag=True, help="Only say what would be done.")
@option("--force", is_flag=True, help="Also where more would change than the settings allow.")
@option("--no-wait", is_flag=True, help="Do not wait for the end; see dm-list-user-syncs.")
def main(api: ApsUserDbApi, adapter: str | None, dry_run: bool, force: bool, no_wait: bool) -> UserSync:
    """Bring users up to date with a user directory of the facility (administrators).

    Everybody added, changed, deactivated or left out is listed on standard error, the counts are printed. Exit status
    11 when the run was refused or failed; nobody was changed then.
    """
    run = api.syncUsers(adapter, dry_run, force)
    while not no_wait and run["status"] == "running":
        run = api.getUserSync(run["id"], WAIT_SECONDS)
    tell(run)
    if run["status"] in ("refused", "failed"):
        raise ProcessingError(str(run["message"]))
    return run


def tell(run: UserSync) -> None:
    """Say on standard error what a run did, line by line."""

    def line(what: str, rest: object) -> None:
        say(f"{what} {rest}")

    for name in run.get("addedUsers", ()):
        line("added", name)
    for changed in run.get("updatedUsers", ()):
        line("updated", f"{changed['username']}: {', '.join(changed['keys'])}")
    for name in run.get("reactivatedUsers", ()):
        line("reactivated", name)
    for gone in run.get("deactivatedUsers", ()):
        line("deactivated", f"{gone['username']}: {gone['reason']}")
    for name in run.get("absentUsers", ()):
        line("absent", name)
    for left in run.get("skippedPersons", ()):
        line("skipped", f"{left['key']} ({left['username'] or 'no user name'}): {left['reason']}")
    for note in run.get("notes", ()):
        line("note", f"{note['username']}: {note['note']}")
    if run.get("remark"):
        line("note", run["remark"])
