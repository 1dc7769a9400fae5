"""``dm-list-audit-events``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import AuditEvent, TokenDsApi


@command("dm-list-audit-events", api="dm.site.storage.api:TokenDsApi")
@option("--since", metavar="DATE", help="Only from then on, e.g. 05-Mar-26 or 2026-03-05T12:00:00.")
@option("--until", metavar="DATE", help="Only before that.")
@option("--event", metavar="NAME", help="Only of this name, e.g. login.refused, or of this kind, e.g. login.")
@option("--username", "user", metavar="NAME", help="Only what this user did, or what concerns them.")
@option("--subject", metavar="NAME", help="Only about this, e.g. an experiment as name/station, or a token's id.")
@option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The newest so many.")
def main(  # noqa: PLR0917
    api: TokenDsApi,
    since: str | None,
    until: str | None,
    event: str | None,
    user: str | None,
    subject: str | None,
    limit: int,
) -> list[AuditEvent]:
    """List who did what: administrators everything, managers what concerns their stations. The newest comes last."""
    return api.getAuditEvents(event, user, subject, since, until, limit)
