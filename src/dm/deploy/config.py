"""``dm-config``: check, show and document the settings file."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from dm.common import plugins, settings, settings_docs
from dm.common.command import DmGroup
from dm.common.errors import ConfigurationError

# section, its model, and whether it needs the [station] section too
TABLE: tuple[tuple[str, str, bool], ...] = (
    ("site", "dm.common.settings:SiteSettings", False),
    ("storage", "dm.site.storage.settings:StorageSettings", False),
    ("facility", "dm.site.facility.settings:FacilitySettings", False),
    ("station", "dm.common.settings:StationSettings", False),
    ("catalog", "dm.station.catalog.settings:CatalogSettings", True),
    ("acquisition", "dm.station.acquisition.settings:AcquisitionSettings", True),
    ("processing", "dm.station.processing.settings:ProcessingSettings", True),
)
_READ_AT_START = ("certificate", "key", "ca_file", "service_password_file", "bind_password_file")

main = DmGroup("dm-config", "Check, show and document the settings file.")


def models(sections: Iterable[str] = ()) -> dict[str, type[settings.ServiceSettings]]:
    """Return section -> settings model, in the order of the file.

    :param sections: only these; default all. :raises ConfigurationError: one of them does not exist.
    """
    known = {section: reference for section, reference, _ in TABLE}
    chosen = set(sections) or set(known)
    for section in sorted(chosen - set(known)):
        raise ConfigurationError(f"Section {section!r} has no settings; known are {', '.join(known)}.")
    return {
        section: plugins.resolve(reference, f"settings of [{section}]")
        for section, reference in known.items()
        if section in chosen
    }


def check(file: Path) -> list[str]:
    """Return what is wrong with a settings file, one sentence each; empty when services can start with it.

    :raises ConfigurationError: the file cannot be read at all.
    """
    wanted = set(settings.read(file))
    if not wanted:
        return [f"Settings file {file} has no sections; make one with dm-config sample."]
    if any(section in wanted and station for section, _, station in TABLE):
        wanted.add("station")
    problems: list[str] = []
    ports: dict[tuple[str, int], str] = {}
    for section, model in models(wanted).items():
        try:
            loaded = settings.load(model, section, file)
        except ConfigurationError as error:
            problems.append(str(error))
            continue
        problems += _unreadable(section, loaded) + _port_taken_twice(section, loaded, ports)
        problems += _adapters(section, loaded, file)
    return problems


def _adapters(section: str, loaded: settings.ServiceSettings, file: Path) -> list[str]:
    """Return what is wrong with the adapters to the facility's systems; each has settings of its own."""
    from dm.site.facility.adapters.loading import load

    if section != "facility":
        return []
    try:
        load(loaded, file)  # type: ignore[arg-type]
    except ConfigurationError as error:
        return [str(error)]
    return []


def _unreadable(section: str, loaded: BaseModel) -> list[str]:
    problems = []
    for name in type(loaded).model_fields:
        if isinstance(inner := getattr(loaded, name), BaseModel):
            problems += _unreadable(f"{section}.{name}", inner)
    for name in _READ_AT_START:
        path = getattr(loaded, name, None)
        if isinstance(path, Path) and not os.access(path, os.R_OK):
            reason = "cannot be read" if path.exists() else "does not exist"
            problems.append(f"{section}.{name}: file {path} {reason}.")
    return problems


def _port_taken_twice(section: str, loaded: settings.ServiceSettings, ports: dict[tuple[str, int], str]) -> list[str]:
    host = getattr(loaded, "host", "")
    problems = []
    for name, port in ({"port": getattr(loaded, "port", 0)} | getattr(loaded, "zeromq_ports", {})).items():
        if not port:
            continue
        for (other_host, other_port), other in ports.items():
            if other_port == port and (other_host == host or {"0.0.0.0", "::", ""} & {host, other_host}):  # noqa: S104
                problems.append(f"{section}.{name} = {port} is the port of [{other}] too; give one of them another.")
                break
        else:
            ports[(host, port)] = section
    return problems


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
    for name, model in models(sections or present).items():
        click.echo(f"[{name}]")
        for key, value in settings.shown(settings.load(model, name, path)).items():
            click.echo(f"{key} = {json.dumps(value, ensure_ascii=False)}")


@main.command("schema")
@_section_option
def _schema(sections: tuple[str, ...]) -> None:
    """Print the JSON schema of the settings file."""
    click.echo(json.dumps(settings_docs.schema(models(sections)), indent=2))


@main.command("sample")
@_section_option
def _sample(sections: tuple[str, ...]) -> None:
    """Print a sample settings file with every key explained."""
    click.echo(settings_docs.sample(models(sections)), nl=False)


@main.command("reference")
@_section_option
def _reference(sections: tuple[str, ...]) -> None:
    """Print the reference page (Markdown)."""
    click.echo(settings_docs.reference(models(sections)), nl=False)
