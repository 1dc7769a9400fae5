"""``dm-config``: check, show and document the settings file."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dm.common import plugins, settings, settings_docs
from dm.common.command import DmGroup
from dm.common.errors import ConfigurationError, DmException

# section, its model, and whether it needs the [station] section too
TABLE: tuple[tuple[str, str, bool], ...] = (
    ("site", "dm.common.settings:SiteSettings", False),
    ("storage", "dm.site.storage.settings:StorageSettings", False),
    ("station", "dm.common.settings:StationSettings", False),
    ("catalog", "dm.station.catalog.settings:CatalogSettings", True),
    ("acquisition", "dm.station.acquisition.settings:AcquisitionSettings", True),
    ("processing", "dm.station.processing.settings:ProcessingSettings", True),
)
_READ_AT_START = ("certificate", "key", "ca_file", "service_password_file")

main = DmGroup("dm-config", "Check, show and document the settings file.")


def models() -> dict[str, type[settings.ServiceSettings]]:
    """Return section -> settings model, in the order of the file."""
    return {section: plugins.resolve(reference, f"settings of [{section}]") for section, reference, _ in TABLE}


def check(file: Path) -> list[str]:
    """Return what is wrong with a settings file, one sentence each; empty when services can start with it.

    :raises ConfigurationError: the file cannot be read at all.
    """
    present = settings.read(file)
    known = models()
    problems = [f"Settings file {file}: section [{name}] has no settings." for name in present if name not in known]
    wanted = {section for section in known if section in present}
    if any(section in wanted and station for section, _, station in TABLE):
        wanted.add("station")
    if not wanted:
        problems.append(f"Settings file {file} has no sections; make one with dm-config sample.")
    ports: dict[tuple[str, int], str] = {}
    for section in (name for name in known if name in wanted):
        try:
            loaded = settings.load(known[section], section, file)
        except ConfigurationError as error:
            problems.append(str(error))
            continue
        problems += _unreadable(section, loaded) + _port_taken_twice(section, loaded, ports)
    return problems


def _unreadable(section: str, loaded: settings.ServiceSettings) -> list[str]:
    problems = []
    for name in _READ_AT_START:
        path = getattr(loaded, name, None)
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            reason = "cannot be read" if path.exists() else "does not exist"
            problems.append(f"{section}.{name}: file {path} {reason}.")
    return problems


def _port_taken_twice(section: str, loaded: settings.ServiceSettings, ports: dict[tuple[str, int], str]) -> list[str]:
    port, host = getattr(loaded, "port", 0), getattr(loaded, "host", "")
    if not port:
        return []
    for (other_host, other_port), other in ports.items():
        if other_port == port and (other_host == host or {"0.0.0.0", "::", ""} & {host, other_host}):  # noqa: S104
            return [f"{section}.port = {port} is the port of [{other}] too; give one of them another."]
    ports[(host, port)] = section
    return []


def _file_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--config", "file", type=click.Path(path_type=Path), help="Settings file; default DM_CONFIG_FILE."
    )(function)


def _section_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--section", "sections", multiple=True, help="Only this section; may be repeated.")(function)


@main.command("check")
@_file_option
def _check(file: Path | None) -> None:
    """Tell whether services can start with the settings file; exit status 4 when not."""
    path = file or settings.default_path()
    problems = check(path)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise ConfigurationError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {path}.")
    click.echo(f"{path} is in order on {socket.gethostname()}.")


@main.command("show")
@_file_option
@_section_option
def _show(file: Path | None, sections: tuple[str, ...]) -> None:
    """Show the settings in effect, defaults and environment included, secrets hidden."""
    path = file or settings.default_path()
    present = settings.read(path)
    for name, model in _chosen(sections or tuple(present)).items():
        click.echo(f"[{name}]")
        for key, value in settings.shown(settings.load(model, name, path)).items():
            click.echo(f"{key} = {json.dumps(value, ensure_ascii=False)}")


@main.command("schema")
@_section_option
def _schema(sections: tuple[str, ...]) -> None:
    """Print the JSON schema of the settings file."""
    click.echo(json.dumps(settings_docs.schema(_chosen(sections)), indent=2))


@main.command("sample")
@_section_option
def _sample(sections: tuple[str, ...]) -> None:
    """Print a sample settings file with every key explained."""
    click.echo(settings_docs.sample(_chosen(sections)), nl=False)


@main.command("reference")
@_section_option
def _reference(sections: tuple[str, ...]) -> None:
    """Print the reference page (Markdown)."""
    click.echo(settings_docs.reference(_chosen(sections)), nl=False)


def _chosen(sections: tuple[str, ...]) -> dict[str, type[settings.ServiceSettings]]:
    known = models()
    for section in sections:
        if section not in known:
            raise DmException(
                f"Section {section!r} has no settings; known are {', '.join(known)}.", ConfigurationError.code
            )
    return {name: model for name, model in known.items() if not sections or name in sections}
