"""The standard workflows: specifications that come with DM, each in a file of :mod:`dm.station.workflows.specs`."""

from __future__ import annotations

from importlib import resources
from typing import Any

from dm.common.errors import ObjectNotFound
from dm.station.processing import literals

_SPECS = "dm.station.workflows.specs"


def names() -> list[str]:
    """Return the names of the standard workflows, in alphabetical order."""
    files = (entry.name for entry in resources.files(_SPECS).iterdir())
    return sorted(_name(file) for file in files if file.endswith(".py") and not file.startswith("_"))


def spec(name: str) -> dict[str, Any]:
    """Return a standard workflow as its file has it: without ``owner``.

    :raises ObjectNotFound: none of that name.
    """
    return literals.read_python(text(name), f"Standard workflow {name!r}")


def text(name: str) -> str:
    """Return the file of a standard workflow, to be copied and changed. :raises ObjectNotFound: none of that name."""
    known = names()
    if name not in known:
        raise ObjectNotFound(f"Standard workflow {name[:80]!r} does not exist; there are: {', '.join(known)}.")
    return resources.files(_SPECS).joinpath(f"{name.replace('-', '_')}.py").read_text("utf-8")


def _name(file: str) -> str:
    return file.removesuffix(".py").replace("_", "-")
