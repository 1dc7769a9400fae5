"""Where experiments lie beneath a storage: ``{station}/{root_path}/{name}``, or as their station's template says.

A template is a text like ``{station}/{year}-{month}/{name}``. It begins with ``{station}``, so that stations never
meet, and ends with ``{name}``, so that renaming an experiment moves nothing else. Whatever is put in for a field is a
checked name: no template can lead out of the station's directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dm.common.errors import InvalidArgument
from dm.site import rules

DEFAULT = "{station}/{root_path}/{name}"
FIELDS = ("station", "root_path", "name", "type", "year", "month", "day")
_FIELD = re.compile(r"\{([^{}]*)\}")
_LEVELS = 10


@dataclass(frozen=True)
class Facts:
    """What a template may name. :param root_path: checked; may be empty. :param start: begin of the experiment."""

    station: str
    name: str
    type_name: str
    root_path: str
    start: datetime

    def value(self, field: str) -> str:
        """Return the text of a field of :data:`FIELDS`."""
        local = self.start.astimezone()
        match field:
            case "station" | "name" | "root_path":
                return str(getattr(self, field))
            case "type":
                return self.type_name
            case "year":
                return f"{local:%Y}"
            case "month":
                return f"{local:%m}"
            case _:
                return f"{local:%d}"


def checked(template: str) -> str:
    """Return a template in canonical form.

    :raises InvalidArgument: unknown field, a component that is no name, not ``{station}`` first and ``{name}`` last.
    """
    shown = ascii(template[:160])
    parts = [part for part in template.split("/") if part]
    if len(parts) < 2 or parts[0] != "{station}" or parts[-1] != "{name}":
        raise InvalidArgument(f"Path template {shown} must begin with {{station}}/ and end with /{{name}}.")
    if len(parts) > _LEVELS:
        raise InvalidArgument(f"Path template {shown} has {len(parts)} levels; {_LEVELS} is the limit.")
    for part in parts:
        for field in _FIELD.findall(part):
            if field not in FIELDS:
                raise InvalidArgument(
                    f"Path template {shown}: unknown field {{{field[:40]}}}; there are "
                    f"{', '.join('{' + name + '}' for name in FIELDS)}."
                )
        if part != "{root_path}" and "{root_path}" in part:
            raise InvalidArgument(f"Path template {shown}: {{root_path}} is a component of its own.")
        rules.object_name(_FIELD.sub("x", part), "Path template component")
    for field in ("station", "name", "root_path"):
        if sum(part.count("{" + field + "}") for part in parts) > 1:
            raise InvalidArgument(f"Path template {shown} has {{{field}}} twice.")
    return "/".join(parts)


def directory(storage_root: str, template: str | None, facts: Facts) -> str:
    """Return the absolute directory of an experiment.

    :raises InvalidArgument: there is a root path and the template has no place for it, or what results is no name.
    """
    chosen = template or DEFAULT
    if facts.root_path and "{root_path}" not in chosen:
        raise InvalidArgument(
            f"Root path {facts.root_path!a} cannot be had: station {facts.station!a} arranges its "
            f"experiments as {chosen}."
        )
    parts: list[str] = []
    for part in chosen.split("/"):
        if part == "{root_path}":
            parts += [below for below in facts.root_path.split("/") if below]
            continue
        text = _FIELD.sub(lambda match: facts.value(match.group(1)), part)
        parts.append(rules.object_name(text, "Directory name"))
    return str(Path(storage_root, *parts))
