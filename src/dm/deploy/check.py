"""``dm-check``: is this host's installation in order? One line a check, exit status as Nagios plug-ins have.

``sbin/dm-site check`` and ``sbin/dm-station check`` call it. It changes nothing.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click

from dm.common import secretfiles, settings
from dm.common.errors import ConfigurationError
from dm.common.settings import ServiceSettings, StationServiceSettings, StationSettings, WebSettings
from dm.deploy import components, config
from dm.deploy.checks import files
from dm.deploy.checks.findings import Check, Finding, Level, carried_out, error, ok, warning, worst

UNKNOWN = 3
SIDES = {"site": ("site", "storage", "facility"), "station": ("station", "catalog", "acquisition", "processing")}
_ANYWHERE = ("0.0.0.0", "::", "")  # noqa: S104


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("side", type=click.Choice(["site", "station", "all"]))
@click.option("--config", "file", type=click.Path(path_type=Path), help="Settings file (default: as dm.setup.sh says).")
@click.option("--quiet", is_flag=True, help="Show only what is not in order.")
def main(side: str, file: Path | None, quiet: bool) -> None:
    """Check the installation of a SIDE on this host: settings, secrets, certificates, databases, LDAP, storages.

    Exit status: 0 in order, 1 warnings, 2 errors, 3 nothing could be checked.
    """
    try:
        path = (file or settings.default_path()).absolute()
        findings = []
        for finding in check(path, tuple(SIDES) if side == "all" else (side,)):
            findings.append(finding)
            if finding.level or not quiet:
                click.echo(str(finding))
    except ConfigurationError as failure:
        click.echo(f"Error: {failure}", err=True)
        sys.exit(UNKNOWN)
    sys.exit(int(worst(findings)))


def check(path: Path, sides: tuple[str, ...]) -> Iterator[Finding]:
    """Yield what is found on this host.

    :param path: the settings file. :param sides: keys of :data:`SIDES`.
    :raises ConfigurationError: the settings file cannot be read, or has nothing of these sides.
    """
    sections = settings.read(path)
    wanted = [section for side in sides for section in SIDES[side] if section in sections]
    if not wanted:
        raise ConfigurationError(f"Settings file {path} has no section of {' or '.join(sides)}.")
    problems = config.check(path)
    for problem in problems:
        yield error("settings", problem)
    if not problems:
        yield ok("settings", f"{path} is in order")
    yield from carried_out("settings.mode", partial(files.settings_file, path, sections))
    loaded = _loaded(path, wanted)
    for section, values in loaded.items():
        yield from _secrets(section, values)
    station = loaded.get("station")
    if "station" in sections and station is None and "station" not in wanted:
        station = _loaded(path, ["station"]).get("station")
    yield from _web(loaded, station if isinstance(station, StationSettings) else None, path)
    for name, one in _of_sides(loaded):
        yield from carried_out(name, one)
    yield from carried_out("ports", partial(_running, path, sides))


def _loaded(path: Path, sections: list[str]) -> dict[str, ServiceSettings]:
    found: dict[str, ServiceSettings] = {}
    for section, model in config.models(sections).items():
        try:
            found[section] = settings.load(model, section, path)
        except ConfigurationError:
            continue  # said already by the check of the settings
    return found


def _secrets(section: str, values: ServiceSettings) -> Iterator[Finding]:
    for name, path in secretfiles.named(values, section):
        check = files.login_file if name.endswith(("service_password_file", "login_file")) else _private
        yield from carried_out(name, partial(check, name, path))


def _private(name: str, path: Path) -> Iterator[Finding]:
    yield files.private(name, path)


def _web(loaded: dict[str, ServiceSettings], station: StationSettings | None, path: Path) -> Iterator[Finding]:
    """Check the certificates of services; the same file is looked at once."""
    seen: set[tuple[Path, Path]] = set()
    for section, values in loaded.items():
        if not isinstance(values, WebSettings) or (values.certificate, values.key) in seen:
            continue
        seen.add((values.certificate, values.key))
        authority = station.ca_file if station is not None else None
        beside = path.parent / "certificates" / "ca.pem"
        if authority is None and beside.is_file():
            authority = beside
        hosts = {socket.getfqdn() if values.host in _ANYWHERE else values.host}
        url = urlsplit(station.storage_service_url).hostname if station is not None and section == "storage" else None
        hosts |= {url} if url else set()
        name = f"{section}.certificate"
        yield from carried_out(name, partial(files.certificate, name, values, authority, hosts))


def _of_sides(loaded: dict[str, ServiceSettings]) -> Iterator[tuple[str, Check]]:
    from dm.site.storage.settings import StorageSettings

    storage = loaded.get("storage")
    if isinstance(storage, StorageSettings):
        from dm.deploy.checks import site

        yield "storage.accounts", partial(site.accounts, storage)
        yield "storage.database", partial(site.database, storage)
        yield "storage.ldap", partial(site.ldap, storage)
    station = loaded.get("station")
    if isinstance(station, StationSettings):
        from dm.deploy.checks import station as checks

        urls: set[str] = set()
        for section, values in loaded.items():
            if isinstance(values, StationServiceSettings) and values.database_url not in urls:
                urls.add(values.database_url)
                name, embedded = f"{section}.database", station.database_directory is not None
                yield name, partial(checks.documents, name, values, embedded)
        yield "station.storage_service_url", partial(checks.site, station)


def _running(path: Path, sides: tuple[str, ...]) -> Iterator[Finding]:
    """Say of each service whether it runs, has its port and is well."""
    from dm.common.hosting import listens

    for name, part in components.components(path).items():
        if not isinstance(part, components.Service) or not any(name in SIDES[side] for side in sides):
            continue
        pid = part.pid_file.alive()
        if pid is None:
            yield warning(f"{name}.running", f"It does not run; start it with dm-control {name} start.")
        elif part.port and not listens(pid, part.port):
            yield error(f"{name}.running", f"It runs (pid {pid}), but port {part.port} is not its own; see {part.log}.")
        else:
            health = part.health()
            level = {"ok": Level.OK, "warning": Level.WARNING}.get(health, Level.ERROR)
            yield Finding(level, f"{name}.running", f"pid {pid}, port {part.port}, {health or 'no answer'}")


if __name__ == "__main__":
    main()
