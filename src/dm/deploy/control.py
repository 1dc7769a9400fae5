"""``dm-control``: start, stop, restart, status, backup and restore, with the exit statuses init scripts have (LSB).

* start, stop, restart: 0 done (also: was so already), 1 failed, 2 wrong arguments, 6 not configured.
* backup, restore: 0 done, 1 failed, 2 wrong arguments, 3 refused as it runs or is not empty, 6 not configured.
* status: 0 running, 1 dead but its pid file is there, 3 not running, 4 unknown (settings unusable).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dm.common.errors import ConfigurationError, DmException
from dm.common.settings import default_path
from dm.deploy import components

RUNNING, DEAD, NOT_RUNNING, UNKNOWN = 0, 1, 3, 4
FAILED, NOT_CONFIGURED = 1, 6


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("component")
@click.argument("action", type=click.Choice(["start", "stop", "restart", "status", "backup", "restore"]))
@click.argument("target", required=False, type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (default: as dm.setup.sh says).")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--keep", type=click.IntRange(1), help="backup into a directory: keep so many, the newest ones.")
@click.option("--force", is_flag=True, help="restore: stop what runs, replace what is there.")
@click.option("--settings", is_flag=True, help="restore: also replace settings and certificates.")
def main(  # noqa: PLR0917
    component: str,
    action: str,
    target: Path | None,
    config: Path | None,
    quiet: bool,
    keep: int | None,
    force: bool,
    settings: bool,
) -> None:
    """Control COMPONENT: a service (storage, facility, catalog, acquisition, processing), an embedded database
    (site-database, station-database), one side (site, station) or all.

    backup TARGET (a directory or a new file) and restore TARGET (the file) are for site, station or all.
    """
    if (target is not None) != (action in ("backup", "restore")):
        raise click.UsageError("backup and restore take a TARGET, the other actions none.")
    if target is not None:
        from dm.deploy import backup_command

        where = (config or _default()).absolute()
        sys.exit(backup_command.run(component, action, where, target.absolute(), quiet, keep, force, settings))
    try:
        parts = components.chosen(component, (config or default_path()).absolute())
    except ConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(UNKNOWN if action == "status" else NOT_CONFIGURED)
    if action == "status":
        sys.exit(status(parts, quiet))
    try:
        if action in ("stop", "restart"):
            components.stop(parts)
            _say(quiet or action == "restart", [f"{part.name} is stopped" for part in parts])
        if action in ("start", "restart"):
            for part in parts:
                part.start()
                _say(quiet, [f"{part.name} is running (pid {part.pid_file.alive()})"])
    except (DmException, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(FAILED)


def _default() -> Path:
    try:
        return default_path()
    except ConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(NOT_CONFIGURED)


def status(parts: list[components.Component], quiet: bool = False) -> int:
    """Print a line per component and return the exit status: the worst of them."""
    codes = set()
    for part in parts:
        pid = part.pid_file.alive()
        if pid is not None:
            health = part.health()
            codes.add(RUNNING)
            _say(quiet, [f"{part.name} is running (pid {pid})" + (f", {health}" if health else "")])
        elif part.pid_file.path.exists():
            codes.add(DEAD)
            _say(quiet, [f"{part.name} is dead; its pid file {part.pid_file.path} remains"])
        else:
            codes.add(NOT_RUNNING)
            _say(quiet, [f"{part.name} is not running"])
    return next((code for code in (DEAD, NOT_RUNNING) if code in codes), RUNNING)


def _say(quiet: bool, lines: list[str]) -> None:
    if not quiet:
        for line in lines:
            click.echo(line)


if __name__ == "__main__":
    main()
