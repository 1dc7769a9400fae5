"""``dm-control``: start, stop, restart and status, with the exit statuses init scripts have (LSB).

* start, stop, restart: 0 done (also: was so already), 1 failed, 2 wrong arguments, 6 not configured.
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
@click.argument("action", type=click.Choice(["start", "stop", "restart", "status"]))
@click.option("--config", type=click.Path(path_type=Path), help="Settings file (default: as dm.setup.sh says).")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
def main(component: str, action: str, config: Path | None, quiet: bool) -> None:
    """Control COMPONENT: a service (storage, facility, catalog, acquisition, processing), an embedded database
    (site-database, station-database), one side (site, station) or all.
    """
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
