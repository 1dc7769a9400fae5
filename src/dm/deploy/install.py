"""``dm-install``: a whole installation below one directory, ready to start; run again, it only adds what is missing.

Directories, a certificate authority and a certificate, settings, accounts with random passwords in login files, the
setup file users source, command wrappers, and the contents of the site database (station, storage, accounts).
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from dm.common import curve, environment, setupfile, tls
from dm.common.embedded import EmbeddedPostgres
from dm.common.errors import ConfigurationError, DmException
from dm.common.hosting import free_port
from dm.common.settings import SiteSettings, StationSettings, load, read
from dm.deploy import runtime, tomlwriter
from dm.deploy.layout import Layout

PORTS = {"storage": 22236, "facility": 11236, "acquisition": 33336, "catalog": 44436, "processing": 55536}
ZEROMQ_PORTS = {"zeromq_port": 55537, "zeromq_events_port": 55538}
MONGO_PORT = 27027
ADMINISTRATOR = "dmadmin"
STAGE_ACCOUNT = "nobody"


@dataclass
class Plan:
    """What to install.

    :param root: directory of the installation. :param station: station name, e.g. ``25IDC``.
    :param storage: directory of the storage; default ``<root>/storage``. :param storage_name: e.g. ``LOCAL``.
    :param host: name under which clients reach the services. :param listen: address the services listen on.
    :param free_ports: free ports instead of the usual ones. :param experiment_types: beside ``TEST`` and the station.
    :param stage_account: account of processing stages when the services run as root.
    :param settings: more settings: section -> key -> value.
    """

    root: Path
    station: str
    storage: Path | None = None
    storage_name: str = "LOCAL"
    host: str = "localhost"
    listen: str = "0.0.0.0"  # noqa: S104
    free_ports: bool = False
    experiment_types: tuple[str, ...] = ()
    stage_account: str = STAGE_ACCOUNT
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def service_account(self) -> str:
        """The account of the station's services."""
        return f"dm{self.station.lower()}"

    @property
    def manager_account(self) -> str:
        """The account of the people who run the beamline; its login file is the one ``dm.setup.sh`` names."""
        return f"user{self.station.lower()}"


@dataclass
class Installed:
    """The outcome: where things are, and what this run did, in words."""

    layout: Layout
    plan: Plan
    done: list[str] = field(default_factory=list)


def install(plan: Plan, say: Callable[[str], None] = lambda line: None) -> Installed:
    """Carry out a plan; idempotent.

    Settings, passwords and certificates that are there stay as they are. The site database is started for the
    bootstrap, and stopped again unless it was running.

    :param say: called with a line for each thing done.
    :raises DmException: something that cannot be.
    """
    from dm.site.rules import object_name

    object_name(plan.station, "Station name")  # before anything is made
    layout = Layout.at(plan.root)
    result = Installed(layout, plan)

    def did(what: str) -> None:
        result.done.append(what)
        say(what)

    for directory in layout.make():
        did(f"directory {directory}")
    _certificates(plan, layout, did)
    passwords = _accounts(plan, layout, did)
    if not layout.settings.exists():
        _write(layout.settings, tomlwriter.dumps(settings(plan, layout)))
        did(f"settings {layout.settings}")
    _facility(plan, layout, did)
    zeromq = _zeromq(plan, layout, did)
    _commands(plan, layout, did)
    _setup_file(layout, plan, zeromq, did)
    _bootstrap(plan, layout, passwords, did)
    return result


def settings(plan: Plan, layout: Layout) -> dict[str, dict[str, Any]]:
    """Return the sections of a new settings file, ports chosen."""
    ports = {name: free_port() if plan.free_ports else port for name, port in PORTS.items()}
    mongo = free_port() if plan.free_ports else MONGO_PORT
    root = os.geteuid() == 0
    stage = runtime.account(plan.stage_account) if root else None

    def service(name: str, database: str) -> dict[str, Any]:
        return {
            "host": plan.listen,
            "port": ports[name],
            "certificate": layout.certificates / "server.pem",
            "key": layout.certificates / "server.key",
            "database_url": database,
            "log_file": layout.log / f"{name}.log",
        }

    def documents(name: str) -> str:
        return f"mongodb://127.0.0.1:{mongo}/dm_{name}?directConnection=true"

    sections: dict[str, dict[str, Any]] = {
        "site": {"var_dir": layout.var, "database_directory": layout.site_database},
        "storage": service("storage", EmbeddedPostgres(layout.site_database).url())
        | {"storage_host": socket.gethostname(), "file_group": _group_name(stage.pw_gid) if stage else None},
        "facility": service("facility", EmbeddedPostgres(layout.site_database).url())
        | {"adapters": {"sample": {"adapter": "csv", "directory": layout.facility}}},
        "station": {
            "name": plan.station,
            "storage_service_url": f"https://{plan.host}:{ports['storage']}",
            "ca_file": layout.certificates / tls.CA_CERTIFICATE,
            "service_username": plan.service_account,
            "service_password_file": layout.login_file(plan.service_account),
            "var_dir": layout.var,
            "database_directory": layout.station_database,
        },
        "catalog": service("catalog", documents("catalog")),
        "acquisition": service("acquisition", documents("acquisition"))
        | {
            "plugins": {
                "metadata": {},
                "catalog": {"url": f"https://{plan.host}:{ports['catalog']}"},
                "workflow": {"url": f"https://{plan.host}:{ports['processing']}"},
            }
        },
        "processing": service("processing", documents("processing"))
        | {
            "stage_account": stage.pw_name if stage else None,
            "environment": layout.setup,
            # our wrappers first: the stage account may not reach the interpreter the service runs on
            "path": f"{layout.bin}:/usr/local/bin:/usr/bin:/bin",
            **{name: free_port() if plan.free_ports else port for name, port in ZEROMQ_PORTS.items()},
            "artefact_directory": layout.root / "artefacts",
            "artefact_login_file": layout.login_file(plan.manager_account),
            "acquisition_url": f"https://{plan.host}:{ports['acquisition']}",
            "catalog_url": f"https://{plan.host}:{ports['catalog']}",
        },
    }
    for section, values in plan.settings.items():
        sections.setdefault(section, {}).update(values)
    return sections


def service_urls(layout: Layout, host: str) -> dict[str, str]:
    """Return service name -> base URL, with the ports the settings file has."""
    sections = read(layout.settings)
    return {name: f"https://{host}:{sections[name]['port']}" for name in PORTS if name in sections}


def _group_name(gid: int) -> str:
    import grp

    return grp.getgrgid(gid).gr_name


def _certificates(plan: Plan, layout: Layout, did: Callable[[str], None]) -> None:
    if not (layout.certificates / tls.CA_CERTIFICATE).exists():
        tls.make_authority(layout.certificates, f"DM {plan.station}")
        did(f"certificate authority {layout.certificates / tls.CA_CERTIFICATE}")
    if not (layout.certificates / "server.pem").exists():
        names = dict.fromkeys([plan.host, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1", "::1"])
        tls.issue(layout.certificates, [name for name in names if name])
        did(f"certificate {layout.certificates / 'server.pem'}")


def _accounts(plan: Plan, layout: Layout, did: Callable[[str], None]) -> dict[str, str]:
    """Return account -> password, from login files that are there, else new ones."""
    passwords = {}
    for username in (ADMINISTRATOR, plan.service_account, plan.manager_account):
        file = layout.login_file(username)
        if not file.exists():
            environment.write_login_file(file, username, secrets.token_urlsafe(24))
            did(f"login file {file}")
        found, passwords[username] = environment.read_login_file(file)
        if found != username:
            raise ConfigurationError(f"Login file {file} is of user {found!r}, not {username!r}; repair it.")
    return passwords


def _commands(plan: Plan, layout: Layout, did: Callable[[str], None]) -> None:
    copy = None
    if os.geteuid() == 0:
        user = runtime.account(plan.stage_account)
        if runtime.needs_copy(user):
            copy = layout.runtime
            if runtime.prepare(copy, user):
                did(f"interpreter {copy} (account {user.pw_name} cannot reach {sys.executable})")
    changed = runtime.write_wrappers(layout.bin, copy)
    if changed:
        did(f"{len(changed)} commands in {layout.bin}")


def _facility(plan: Plan, layout: Layout, did: Callable[[str], None]) -> None:
    """Add the facility service to settings of before there was one, and write the sample where they want it."""
    from dm.site.facility import sample

    sections = read(layout.settings)
    if "facility" not in sections and "storage" in sections:
        like = ("host", "certificate", "key", "database_url")
        values = {key: sections["storage"][key] for key in like if key in sections["storage"]} | {
            "port": free_port() if plan.free_ports else PORTS["facility"],
            "log_file": layout.log / "facility.log",
            "adapters": {"sample": {"adapter": "csv", "directory": layout.facility}},
        }
        _write(layout.settings, f"{layout.settings.read_text('utf-8')}\n{tomlwriter.dumps({'facility': values})}")
        did(f"section [facility] in {layout.settings}")
    adapters = read(layout.settings).get("facility", {}).get("adapters", {})
    wanted = str(adapters.get("sample", {}).get("directory", "")) == str(layout.facility)
    if wanted and sample.write(layout.facility, plan.station):
        did(f"sample of a facility {layout.facility}")


def _zeromq(plan: Plan, layout: Layout, did: Callable[[str], None]) -> dict[str, object]:
    """Make the keys of the ZeroMQ interface, one of them the station manager's; return the variables of clients."""
    from dm.station.processing.settings import ProcessingSettings
    from dm.station.processing.zeromq import client, keys

    settings = load(ProcessingSettings, "processing", layout.settings)
    if not settings.zeromq:
        return {}
    directory = settings.zeromq_keys or load(StationSettings, "station", layout.settings).var_dir / "zeromq"
    if keys.prepare(directory)[1]:
        did(f"ZeroMQ keys {directory}")
    secret = directory / f"{plan.manager_account}{curve.SECRET}"
    if not secret.exists():
        public, _ = curve.make(directory, plan.manager_account)
        keys.authorise(directory, public, plan.manager_account, plan.manager_account, all_events=True)
        did(f"ZeroMQ key {secret}")
    requests, events = settings.zeromq_ports.values()
    return {
        client.ADDRESS: f"tcp://{plan.host}:{requests}",
        client.EVENTS_ADDRESS: f"tcp://{plan.host}:{events}",
        client.SERVER_KEY: directory / f"{keys.SERVER}{curve.PUBLIC}",
        client.KEY_FILE: secret,
    }


def _setup_file(layout: Layout, plan: Plan, zeromq: dict[str, object], did: Callable[[str], None]) -> None:
    urls = service_urls(layout, plan.host)
    types = ",".join(dict.fromkeys([plan.station, "TEST", *plan.experiment_types]))
    variables: dict[str, object] = {
        environment.STATION_NAME: plan.station,
        environment.LOGIN_FILE: layout.login_file(plan.manager_account),
        **{environment.URL_VARIABLES[name]: url for name, url in urls.items()},
        environment.CA_FILE: layout.certificates / tls.CA_CERTIFICATE,
        **zeromq,
        "DM_ALLOWED_EXPERIMENT_TYPES": types,
        "DM_BEAMLINE_NAME": plan.station,
        **({"DM_ESAF_SECTOR": f"{int(sector.group()):02d}"} if (sector := re.match("[0-9]+", plan.station)) else {}),
        "DM_ROOT_DIR": layout.root,
        "DM_INSTALL_DIR": layout.root,
        "DM_ETC_DIR": layout.etc,
        "DM_VAR_DIR": layout.var,
        "DM_HOST_ARCH": f"{sys.platform}-{os.uname().machine}",
    }
    if layout.setup.exists() and setupfile.read_setup(layout.setup).items() >= _texts(variables).items():
        return
    setupfile.write_setup(layout.setup, variables, [layout.bin], runtime.commands())
    did(f"setup file {layout.setup}")


def _texts(variables: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in variables.items()}


def _bootstrap(plan: Plan, layout: Layout, passwords: dict[str, str], did: Callable[[str], None]) -> None:
    from dm.site.storage.bootstrap import Station, bootstrap
    from dm.site.storage.settings import StorageSettings

    site = load(SiteSettings, "site", layout.settings)
    server = EmbeddedPostgres(site.database_directory) if site.database_directory else None
    was_running = server is None or server.running() is not None
    if server is not None:
        server.start()
    try:
        summary = bootstrap(
            load(StorageSettings, "storage", layout.settings),
            admin_username=ADMINISTRATOR,
            admin_password=passwords[ADMINISTRATOR],
            storage_name=plan.storage_name,
            storage_directory=(plan.storage or layout.root / "storage").absolute(),
            stations=[
                Station(
                    load(StationSettings, "station", layout.settings).name,
                    plan.service_account,
                    passwords[plan.service_account],
                    plan.manager_account,
                    passwords[plan.manager_account],
                    experiment_types=plan.experiment_types,
                )
            ],
        )
    finally:
        if server is not None and not was_running:
            server.stop()
    for what in summary.made:
        did(what)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, "utf-8")
    temporary.chmod(0o644)
    temporary.replace(path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", required=True, type=click.Path(path_type=Path), help="Directory of the installation.")
@click.option("--station", required=True, help="Station name, e.g. 25IDC.")
@click.option("--storage", type=click.Path(path_type=Path), help="Storage directory (default: ROOT/storage).")
@click.option("--storage-name", default="LOCAL", show_default=True, help="Name of the storage.")
@click.option("--host", default=socket.gethostname, help="Name under which clients reach this host.")
@click.option("--listen", default="0.0.0.0", show_default=True, help="Address the services listen on.")  # noqa: S104
@click.option("--free-ports", is_flag=True, help="Take free ports instead of the usual ones.")
@click.option("--experiment-type", multiple=True, help="An experiment type beside TEST and the station (repeatable).")
@click.option("--stage-account", default=STAGE_ACCOUNT, show_default=True, help="Account of processing stages (root).")
def main(
    *,
    root: Path,
    station: str,
    storage: Path | None,
    storage_name: str,
    host: str,
    listen: str,
    free_ports: bool,
    experiment_type: tuple[str, ...],
    stage_account: str,
) -> None:
    """Install DM below a directory: site and station on this host, with embedded databases.

    Run again, it adds what is missing and changes nothing else.
    """
    plan = Plan(
        root, station, storage, storage_name, host, listen, free_ports, tuple(experiment_type), stage_account
    )  # fmt: skip
    try:
        result = install(plan, click.echo)
    except DmException as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.getErrorCode() or 1)
    except OSError as error:
        click.echo(f"Error: {error.filename or root}: {error.strerror}.", err=True)
        sys.exit(1)
    layout = result.layout
    if not result.done:
        click.echo("everything was there")
    click.echo(f"start:  {layout.bin}/dm-control all start --config {layout.settings}\nuse:    . {layout.setup}")


if __name__ == "__main__":
    main()
