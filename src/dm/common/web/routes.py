"""The routes table's vocabulary: what a service declares once and everything else is derived from.

Dispatch, argument checks, permissions, the OpenAPI document, the reference page and the test that no route is open
by accident all read the same list of :class:`Route`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Arguments(BaseModel):
    """Base of every route's argument model.

    Fields are PEP 8 inside and camelCase outside; unknown arguments are refused by name. Path segments, query string
    and JSON body are merged before validation (path wins, then query, then body).
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    ANY_TEXT: ClassVar[bool] = False
    """Whether text with NUL characters reaches the handler, which says itself what it makes of it."""


class NoArguments(Arguments):
    """A route without arguments."""


class Who(enum.Enum):
    """Who may call a route. The service's authorizer decides for the concrete caller and object."""

    PUBLIC = "anybody, without a session"
    USER = "any logged-in user"
    OWNER = "the user named by the owner argument, or a manager of the station"
    EXPERIMENT = "a member of the experiment, or a manager of its station"
    CONCERNED = "any logged-in user, for records that name their badge or are of a station they manage"
    PI = "a manager of the experiment's station, or, where the site says so, a principal investigator of it for users"
    MANAGER = "a manager of the station, a system administrator, or the station's service account"
    ADMIN = "a system administrator"
    SERVICE = "a station's service account"


@dataclass(frozen=True)
class Access:
    """A route's permission.

    :param who: the rule.
    :param argument: the field of the argument model that names the object the rule speaks of (experiment, owner,
        station), where it has one; the authorizer reads it.
    """

    who: Who
    argument: str | None = None


PUBLIC = Access(Who.PUBLIC)
USER = Access(Who.USER)

READ, ALL = "read", "all"
SCOPES = (READ, "storage", "facility", "catalog", "acquisition", "processing", ALL)
ANY_SCOPE = frozenset(SCOPES)
# What a station service asks and does at the site in the name of the one who called it.
STATION_SCOPES = frozenset({"catalog", "acquisition", "processing"})
MANAGER = Access(Who.MANAGER)
ADMIN = Access(Who.ADMIN)
SERVICE = Access(Who.SERVICE)


@dataclass(frozen=True)
class Principal:
    """Who is calling.

    :param username: the login name.
    :param system_roles: e.g. ``{"administrator"}``.
    :param station_roles: station name -> roles, e.g. ``{"25IDC": {"manager"}}``; the service account of a station has
        the role ``service``.
    :param attributes: what a service keeps with the session and never shows (e.g. the user's site session).
    :param scopes: of the API token the caller uses, see :data:`SCOPES`; ``None`` for one who gave a password.
    :param only_station: the token is for this station only: experiments of others do not exist for it.
    """

    username: str
    system_roles: frozenset[str] = frozenset()
    station_roles: Mapping[str, frozenset[str]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    scopes: frozenset[str] | None = None
    only_station: str | None = None

    def reaches(self, station: str) -> bool:
        """Whether a token of the caller, if there is one, is good for objects of the station."""
        return self.only_station is None or self.only_station == station

    @property
    def is_admin(self) -> bool:
        """Whether this is a system administrator."""
        return "administrator" in self.system_roles

    def manages(self, station: str) -> bool:
        """Whether this principal manages the station: its manager, its service account, or an administrator."""
        return self.is_admin or bool(self.station_roles.get(station, frozenset()) & {"manager", "service"})

    def serves(self, station: str | None = None) -> bool:
        """Whether this is the service account of the station (or, without an argument, of any station)."""
        if station is not None:
            return "service" in self.station_roles.get(station, frozenset())
        return any("service" in roles for roles in self.station_roles.values())


@dataclass(frozen=True)
class Request:
    """What a handler may know of the request besides its arguments.

    :param id: request id, also in the reply header ``Dm-Request-Id`` and in every log line of the request.
    :param principal: the caller; for public routes an anonymous principal with an empty user name.
    :param headers: lower-case header name -> value.
    :param remote: the peer's address.
    :param session_id: the raw session id of the cookie, or ``None``.
    :param interface: what it came by, for logs.
    """

    id: str
    principal: Principal
    headers: Mapping[str, str]
    remote: str
    session_id: str | None = None
    interface: str = "REST"


@dataclass(frozen=True)
class Stream:
    """A reply that is bytes rather than JSON.

    :param read: called as ``read(first, length)`` and yields chunks of exactly ``length`` bytes in total.
    :param length: total size in bytes, known beforehand so that ranges work; ``None`` where only the end will tell: the
        reply then has no length and no ranges, and ``read(0, 0)`` yields all of it.
    :param filename: suggested name for the client (bytes-safe text).
    :param etag: strong validator, changes whenever the bytes change.
    :param modified: epoch seconds of the last change, or ``None``.
    """

    read: Callable[[int, int], Any]
    length: int | None
    filename: str
    etag: str
    modified: float | None = None
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Route:
    """One row of the routes table.

    :param method: ``GET``, ``POST``, ``PUT`` or ``DELETE``.
    :param path: below ``/dm``, e.g. ``/experimentsByName/{name}/{station}``; a segment in braces is an argument; an
        optional last segment is written ``[/{beamline}]``.
    :param handler: called as ``handler(request, arguments)``; returns a record, a dict, a list or a :class:`Stream`.
    :param access: who may call.
    :param summary: one line for the reference page.
    :param arguments: the argument model; its field names (snake_case) are used in ``path`` as camelCase.
    :param coded: camelCase names of arguments that published clients send as double base64; plain text and JSON are
        accepted for them just the same.
    :param body_limit: largest accepted request body in bytes.
    :param scopes: API tokens with one of these may call it too, besides those with scope ``all``, with the service's
        own name, or (``GET`` only) with ``read``.
    :param tokens: whether it may be called with an API token at all; making tokens and changing rights may not.
    """

    method: str
    path: str
    handler: Callable[[Request, Any], Any]
    access: Access
    summary: str
    arguments: type[Arguments] = NoArguments
    coded: frozenset[str] = frozenset()
    body_limit: int = 1 << 20
    scopes: frozenset[str] = frozenset()
    tokens: bool = True

    def suffices(self, service: str, scopes: frozenset[str] | None) -> bool:
        """Whether a caller with these scopes may try; what a caller without a token may is for the authorizer."""
        if scopes is None:
            return True
        enough = {ALL, service} | self.scopes | ({READ} if self.method == "GET" else set())
        return self.tokens and bool(enough & scopes)
