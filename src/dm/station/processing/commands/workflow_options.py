"""What the commands that write workflows share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dm.common.command import option


def spec_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--py-spec`` and ``--json-spec``."""
    for name, what in (("--json-spec", "JSON"), ("--py-spec", "Python dictionary")):
        decorate = option(
            name, type=click.Path(dir_okay=False, path_type=Path), help=f"Workflow specification file ({what})."
        )
        function = decorate(function)
    return function


def read_spec(py_spec: Path | None, json_spec: Path | None) -> dict[str, Any]:
    """Return the specification of the one file that was named; it is read, never executed.

    :raises click.UsageError: none or both were named.
    """
    from dm.station.processing import literals, specs

    if (py_spec is None) == (json_spec is None):
        raise click.UsageError("Give either --py-spec=FILE or --json-spec=FILE.")
    if json_spec is not None:
        return specs.read(json_spec, literals.read_json)
    return specs.read(str(py_spec))
