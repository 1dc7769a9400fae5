"""The routes about the site's LDAP directory."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import ADMIN, Arguments, NoArguments, Request, Route
from dm.site.identity.ldap.parts import SiteDirectory


class SyncGroups(Arguments):
    """How to compare the directory with the database."""

    dry_run: bool = Field(default=False, description="Only say what differs; write nothing.")
    force: bool = Field(
        default=False, description="Also remove more groups, or people, than storage.ldap.most_removals."
    )


def routes(directory: SiteDirectory) -> list[Route]:
    """Return the rows."""

    def sync(request: Request, arguments: SyncGroups) -> dict[str, Any]:
        return directory.required().reconcile(arguments.dry_run, arguments.force)

    def state(request: Request, arguments: NoArguments) -> dict[str, Any]:
        return directory.required().state()

    return [
        Route("GET", "/groups/sync", state, ADMIN,
              "Say how far LDAP is behind, and what its last comparison with the database found."),
        Route("POST", "/groups/sync", sync, ADMIN,
              "Compare the groups (and people) in LDAP with the database and write the differences.", SyncGroups),
    ]  # fmt: skip
