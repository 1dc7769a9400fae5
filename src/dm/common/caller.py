"""On whose behalf this thread or task works just now: for the audit log, without every function passing it on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who asked.

    :param actor: user name, or the name of a background worker. :param remote: the peer's address, empty for none.
    :param request_id: of the request, empty for none. :param service: the service that works.
    :param token: id of the API token that was used, empty for none.
    """

    actor: str = ""
    remote: str = ""
    request_id: str = ""
    service: str = "site"
    token: str = ""


_BADGE = re.compile(r"d[0-9]{1,9}")
CALLER: ContextVar[Caller] = ContextVar("dm_caller", default=Caller())  # noqa: B039 - frozen


def typed_name(username: str) -> str:
    """Return a user name that was refused as it may be logged: empty unless it is ``d`` and a badge number.

    People type passwords into the field for the name; those that look like no user's are not written down.
    """
    return username if _BADGE.fullmatch(username) else ""


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Work on somebody's behalf inside the block."""
    token = CALLER.set(caller)
    try:
        yield
    finally:
        CALLER.reset(token)
