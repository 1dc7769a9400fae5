"""Write the generated pages of the reference: REST tables, commands, settings, Python API.

Run by ``make docs``; ``tests/unit/test_docs_drift.py`` fails when a committed page differs from what this makes.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import click

from dm.common import settings_docs
from dm.common.client import ApiClient
from dm.common.records import DmObject
from dm.common.web import openapi
from dm.deploy import config
from dm.station.processing import reference as workflow_language
from dm.station.workflows import reference as standard_workflows

REFERENCE = Path(__file__).parent / "reference"
SERVICES = {
    "storage": ("Storage Management Service", "dm.site.storage.routes"),
    "facility": ("Facility Service", "dm.site.facility.routes"),
    "acquisition": ("Data Acquisition Service", "dm.station.acquisition.routes"),
    "catalog": ("Catalog Service", "dm.station.catalog.routes"),
    "processing": ("Processing Service", "dm.station.processing.routes"),
}
APIS = {
    "dm.site.storage.api": "Storage",
    "dm.site.facility.api": "Facility data",
    "dm.station.acquisition.api": "Data acquisition",
    "dm.station.catalog.api": "Catalog",
    "dm.station.processing.api": "Processing",
}


def route_table(module: str) -> list[Any]:
    """Return a service's routes without the service: handlers are never called, so their objects may be anything."""
    factory = importlib.import_module(module).routes
    return factory(*(MagicMock() for _ in inspect.signature(factory).parameters))


def console_scripts() -> dict[str, click.Command]:
    """Return every ``dm-*`` command that is a click command, by name; the services' own mains are none."""
    scripts = {point.name: point.load() for point in entry_points(group="console_scripts") if point.name[:3] == "dm-"}
    return {name: command for name, command in sorted(scripts.items()) if isinstance(command, click.Command)}


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """Return the context a command makes for itself, at a fixed width."""
    fixed = {"info_name": name, "parent": parent, "terminal_width": 100, "max_content_width": 100}
    return click.Context(command, **(command.context_settings | fixed))


def commands_page() -> str:
    """Return the page of all commands: what ``--help`` prints."""
    lines = ["# Commands", ""]
    for name, command in console_scripts().items():
        with _context(command, name) as context:
            lines += [f"## {name}", "", "```text", command.get_help(context).rstrip(), "```", ""]
            if isinstance(command, click.Group):
                for inner_name, inner in sorted(command.commands.items()):
                    with _context(inner, inner_name, context) as below:
                        lines += [f"### {name} {inner_name}", "", "```text", inner.get_help(below).rstrip(), "```", ""]
    return "\n".join(lines)


def python_page() -> str:
    """Return the page of the published Python classes: signatures and docstrings."""
    lines = ["# Python API", "", "`from dm import DaqApiFactory, DsApiFactory, CatApiFactory, ProcApiFactory`", ""]
    for module_name, title in APIS.items():
        module = importlib.import_module(module_name)
        lines += [f"## {title}", ""]
        package = module_name.removesuffix("api")
        for class_name, cls in sorted(vars(module).items()):
            if not inspect.isclass(cls) or not cls.__module__.startswith(package) or class_name.startswith("_"):
                continue
            lines += [f"### {class_name}", "", inspect.cleandoc(cls.__doc__ or ""), ""]
            for name, method in published_methods(cls).items():
                first = inspect.cleandoc(method.__doc__ or "").partition("\n")[0]
                lines += [f"* `{name}{_signature(method)}`", f"  {first}", ""]
    return "\n".join(lines)


def published_methods(cls: type) -> dict[str, Any]:
    """Return a class's public methods, inherited ones too, but for those every record or client has anyway."""
    common = {name for base in (DmObject, ApiClient) for name in dir(base)}
    return {
        name: method
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and (name not in common or name in vars(cls))
    }


def _signature(method: Any) -> str:
    signature = inspect.signature(method)
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def rest_page(title: str, module: str) -> str:
    """Return the page of one service's routes."""
    return openapi.reference(title, route_table(module))


PAGES: dict[str, Callable[[], str]] = {
    **{f"rest-{key}.md": functools.partial(rest_page, *service) for key, service in SERVICES.items()},
    "commands.md": commands_page,
    "standard-workflows.md": standard_workflows.page,
    "settings.md": lambda: settings_docs.reference(config.models()),
    "python-api.md": python_page,
    "workflows.md": workflow_language.page,
}


def page(name: str) -> str:
    """Return the text of one generated page, by file name."""
    return PAGES[name]().rstrip() + "\n"


def main() -> int:
    """Write the pages."""
    for name in PAGES:
        (REFERENCE / name).write_text(page(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
