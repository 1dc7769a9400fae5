"""``dm-make-gridmap``"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from dm.common.command import command, option
from dm.common.errors import CommunicationError, InvalidObjectState, ServiceUnavailable
from dm.site.storage import gridmap
from dm.site.storage.api import UserDsApi


@command("dm-make-gridmap", api="dm.site.storage.api:UserDsApi")
@option("--file", required=True, type=click.Path(path_type=Path), help="The grid-mapfile to write.")
@option("--dn-template", default="", metavar="TEXT", help="Certificate subject of a user, like /DC=org/CN={username}.")
@option("--dn-file", metavar="FILE", help="Subjects that follow no rule: lines username,subject.")
@option("--account-template", default="{username}", show_default=True, metavar="TEXT", help="Unix account of a user.")
@option("--least-uid", type=int, default=1000, show_default=True, help="No lines for local accounts below this number.")
@option("--most-gone", type=click.FloatRange(0, 100), default=50, show_default=True, metavar="PERCENT",
        help="Leave the file as it is when more of its entries would go.")  # fmt: skip
@option("--force", is_flag=True, help="However many entries go.")
@option("--every", type=click.FloatRange(1), metavar="SECONDS", help="Go on until stopped; print changes.")
def main(  # noqa: PLR0917
    api: UserDsApi,
    file: Path,
    dn_template: str,
    dn_file: str | None,
    account_template: str,
    least_uid: int,
    most_gone: float,
    force: bool,
    every: float | None,
) -> Iterator[dict[str, Any]]:
    """Write the grid-mapfile of a GridFTP server from the site's active users.

    Whoever is deactivated has no line any more. The file is replaced in one step, and only when it changes; users
    without a line are named on standard error. Run it by cron, or with --every. While the site cannot be asked, the
    file stays as it is.
    """
    if not dn_template and not dn_file:
        raise click.UsageError("Say what certificates are called: --dn-template, --dn-file, or both.")
    gridmap.Rules(dn_template, account=account_template, least_uid=least_uid)
    return _records(api, file, dn_template, dn_file, account_template, least_uid, None if force else most_gone, every)


def _records(  # noqa: PLR0917
    api: UserDsApi,
    file: Path,
    template: str,
    dn_file: str | None,
    account: str,
    least_uid: int,
    most_gone: float | None,
    every: float | None,
) -> Iterator[dict[str, Any]]:
    told: list[str] = []
    first = True
    while True:
        try:
            rules = gridmap.Rules(template, gridmap.subjects_of(dn_file) if dn_file else {}, account, least_uid)
            new = gridmap.made(api.getUsers(), rules, gridmap.system_accounts(least_uid))
            changed = gridmap.write(file, new, most_gone)
            if new.skipped != told:
                for sentence in new.skipped:
                    click.echo(sentence, err=True)
            told = new.skipped
            if changed or first:
                counts = {"countLines": len(new.accounts), "countSkipped": len(new.skipped), "changed": changed}
                yield {"file": str(file), **counts}
            first = False
        except (CommunicationError, ServiceUnavailable, InvalidObjectState) as error:
            if every is None:
                raise
            click.echo(f"Error: {error}", err=True)
        if every is None:
            return
        sys.stdout.flush()
        time.sleep(every)
