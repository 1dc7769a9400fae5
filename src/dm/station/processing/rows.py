"""What the rows of this service's routes table have in common."""

from __future__ import annotations

from typing import Any

from dm.common.web.routes import Access, Route, Who

OWNER = Access(Who.OWNER, "owner")
SPEC_LIMIT = 4 << 20
ARGUMENTS_LIMIT = 5 << 20
_CODED = frozenset({"queryDict", "keyList", "name", "workflow", "argsDict", "jobs"})


def row(  # noqa: PLR0917 - one row of a table
    method: str, path: str, handler: Any, access: Access, summary: str, arguments: Any, body_limit: int = SPEC_LIMIT
) -> Route:
    """Return a route; which arguments published clients send as double base64 follows from their names."""
    names = {field.alias or name for name, field in arguments.model_fields.items()}
    return Route(method, path, handler, access, summary, arguments, _CODED & names, body_limit)
