"""The words and exit statuses of ``dm-control ... backup`` and ``restore``."""

from __future__ import annotations

from pathlib import Path

import click

from dm.common.errors import ConfigurationError, DmException, InvalidArgument, InvalidObjectState

DONE, FAILED, WRONG, REFUSED, NOT_CONFIGURED = 0, 1, 2, 3, 6


def run(  # noqa: PLR0917
    what: str, action: str, config: Path, target: Path, quiet: bool, keep: int | None, force: bool, settings: bool
) -> int:
    """Make or restore a backup, say so, and return the exit status (see :mod:`dm.deploy.control`)."""
    if (keep is not None and action != "backup") or ((force or settings) and action != "restore"):
        raise click.UsageError("--keep is for backup, --force and --settings are for restore.")
    try:
        if action == "backup":
            _backup(what, config, target, quiet, keep)
        else:
            _restore(what, config, target, quiet, force, settings)
    except (DmException, OSError) as error:
        named = f"{error.filename}: {error.strerror}." if isinstance(error, OSError) and error.filename else str(error)
        click.echo(f"Error: {named}", err=True)
        statuses = {InvalidArgument: WRONG, InvalidObjectState: REFUSED, ConfigurationError: NOT_CONFIGURED}
        return next((status for kind, status in statuses.items() if isinstance(error, kind)), FAILED)
    return DONE


def _backup(what: str, config: Path, target: Path, quiet: bool, keep: int | None) -> None:
    from dm.deploy import backup

    made, manifest = backup.make(what, config, target, keep)
    if quiet:
        return
    documents = sum(part.about["count"] for part in manifest.of("mongo"))
    experiments = sum(part.about.get("experiments", 0) for part in manifest.of("postgres"))
    click.echo(f"{made}: {made.stat().st_size} bytes, written and read back")
    files = len(manifest.of("file"))
    counts = [f"{experiments} experiments"] if manifest.of("postgres") else []
    counts += [f"{documents} documents"] if manifest.of("mongo") else []
    click.echo(f"in it: {', '.join([*counts, f'{files} files'])}")
    click.echo("It holds private keys, passwords and password hashes; only you can read it (mode 0600): keep it so.")
    for sentence in manifest.missing:
        click.echo(f"not in it: {sentence}")


def _restore(  # noqa: PLR0917
    what: str, config: Path, source: Path, quiet: bool, force: bool, settings: bool
) -> None:
    from dm.deploy import restore

    done = restore.restore(what, config, source, force=force, settings=settings)
    if quiet:
        return
    click.echo(f"restored: backup of {done.manifest.what} at {done.manifest.host}, {done.manifest.created}")
    for line in done.databases:
        click.echo(f"database {line}")
    for file in done.files:
        click.echo(f"file {file}")
    for file in done.kept:
        click.echo(f"kept {file}: differs from the backup (--settings replaces it)")
    click.echo(f"nothing was started; start with: dm-control {what} start")
