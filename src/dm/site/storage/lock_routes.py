"""The routes about accounts locked after too many failed logins."""

from __future__ import annotations

from typing import Any

from dm.common.web.routes import ADMIN, NoArguments, Request, Route
from dm.site.identity.lockout import Lockouts
from dm.site.storage import arguments as a


def routes(lockouts: Lockouts) -> list[Route]:
    """Return the rows."""

    def locks(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return lockouts.all()

    def unlock(request: Request, arguments: a.Username) -> dict[str, Any]:
        return lockouts.lift(arguments.username)

    return [
        Route("GET", "/loginLocks", locks, ADMIN, "List accounts that are locked after too many failed logins."),
        Route("DELETE", "/loginLocks/{username}", unlock, ADMIN, "Let an account log in again at once.", a.Username),
    ]
