"""``dm-zmq-keys``"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dm.common import curve, environment, settings
from dm.common.command import DmGroup, print_records
from dm.common.errors import ConfigurationError
from dm.common.settings import StationSettings
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.zeromq import keys
from dm.station.processing.zeromq.client import KEY_FILE

main = DmGroup("dm-zmq-keys", "Make keys for ZeroMQ clients, and say which of them the Processing Service lets in.")


def _service_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--keys`` and ``--config``: where the service has its keys."""
    path = click.Path(path_type=Path)
    config = "Settings file that names it; default DM_CONFIG_FILE or $DM_ETC_DIR/dm.toml."
    function = click.option("--config", type=path, help=config)(function)
    return click.option("--keys", "directory", type=path, help="Directory of the service's keys.")(function)


def _directory(given: Path | None, config: Path | None) -> Path:
    if given is not None:
        return given
    own = settings.load(ProcessingSettings, "processing", config)
    return own.zeromq_keys or settings.load(StationSettings, "station", config).var_dir / "zeromq"


@main.command("make")
@click.option(
    "--file", type=click.Path(path_type=Path), help=f"File of the secret key; default: {KEY_FILE}, or below ~/.dm."
)
def make(file: Path | None) -> None:
    """Make a key pair for yourself: a secret file, mode 0600, and beside it a .key file to have authorised."""
    named = os.environ.get(KEY_FILE)
    path = file or (Path(named) if named else environment.home() / f"zeromq{curve.SECRET}")
    path = path.expanduser().absolute()
    if path.suffix != curve.SECRET:
        raise ConfigurationError(f"File {path} must be named *{curve.SECRET}.")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    public, secret = curve.make(path.parent, path.name.removesuffix(curve.SECRET))
    print_records({"keyFile": str(secret), "publicKeyFile": str(public)}, "ALL")


@main.command("authorise")
@click.option("--account", required=True, help="Whose key it is.")
@click.option("--key", required=True, type=click.Path(path_type=Path), help="The .key file of the client.")
@click.option("--name", help="Name to keep it under; default: the account and the beginning of the key.")
@click.option("--all-events", is_flag=True, help="It sees the events of everybody's jobs, not only of the account's.")
@_service_options
def authorise(  # noqa: PLR0917 - given by name
    account: str, key: Path, name: str | None, all_events: bool, directory: Path | None, config: Path | None
) -> None:
    """Let a client's key in, at once. What a key may do is what its account may do, after a login."""
    print_records(_shown(keys.authorise(_directory(directory, config), key, account, name, all_events)), "ALL")


@main.command("list")
@_service_options
def list_(directory: Path | None, config: Path | None) -> None:
    """List the keys that are let in; what is wrong with others goes to standard error."""
    found = keys.ClientKeys(_directory(directory, config))
    print_records([_shown(key) for key in sorted(found.all().values(), key=lambda key: key.name)], "ALL")
    for problem in found.problems:
        click.echo(problem, err=True)


@main.command("revoke")
@click.option("--name", required=True, help="Name of the key, as listed.")
@_service_options
def revoke(name: str, directory: Path | None, config: Path | None) -> None:
    """Let a key in no longer, also not on the connections it has."""
    keys.revoke(_directory(directory, config), name)


def _shown(key: keys.ClientKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "account": key.account,
        "events": keys.ALL if key.all_events else "own",
        "publicKey": key.public,
    }
