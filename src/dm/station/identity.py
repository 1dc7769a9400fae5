"""Who a station's callers are and what they may: asked of the site, remembered for a few seconds.

A caller logs in at a station service with the password of the site; the station logs in there in the caller's name and
keeps that session with its own, on this side only. One who comes with an API token is asked about with the token. What
the caller may see is what the site shows to that session or token.

While the site does not answer, logins and questions about experiments are refused (``ServiceUnavailable``); who is
logged in keeps the roles known last, so that a station can be operated and a running DAQ be stopped.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cachetools import TTLCache

from dm.common import environment
from dm.common.caller import CALLER
from dm.common.client import RestClient, segment
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigurationError,
    DmException,
    InvalidSession,
    ServiceLimit,
    ServiceUnavailable,
)
from dm.common.settings import StationSettings
from dm.common.tokens import is_token
from dm.common.web.routes import Access, Arguments, Principal, Request, Route, Who
from dm.common.web.throttle import TooManyLogins
from dm.site.storage.api import Experiment, StorageServiceApi

LOG = logging.getLogger(__name__)

SITE_COOKIE, SITE_TOKEN = "siteCookie", "siteToken"
REMEMBER_SECONDS = 5.0
_OUTAGE_SECONDS = 2.0
_LIMIT_SECONDS = 60.0
_TOKEN_OUTAGE_SECONDS = 12 * 3600.0
_UNKNOWN_TOKENS = 4  # asked about at the same time
_PATIENCE = 1.0
_TIMEOUT = 10.0
_CAPACITY = 4096

OwnerRule = Callable[[Request, Arguments], str | None]


class SiteIdentity:
    """The site's word on users and experiments, for the services of one station.

    :param station: settings of the station.
    """

    def __init__(self, station: StationSettings) -> None:
        self._settings = station
        self._site = RestClient(station.storage_service_url, ca_file=station.ca_file, timeout=_TIMEOUT)
        self._lock = threading.Lock()
        self._experiments: TTLCache[tuple[str, str], dict[str, Any]] = TTLCache(_CAPACITY, REMEMBER_SECONDS)
        self._roles: TTLCache[str, Principal] = TTLCache(_CAPACITY, REMEMBER_SECONDS)
        # Tokens that were good lately, for when the site is away: as one who is logged in goes on then.
        self._unknown_tokens = threading.BoundedSemaphore(_UNKNOWN_TOKENS)
        self._good_tokens: TTLCache[str, Principal] = TTLCache(_CAPACITY, _TOKEN_OUTAGE_SECONDS)
        self._away_until = 0.0
        self._service: StorageServiceApi | None = None

    @property
    def station(self) -> str:
        """The station's name."""
        return self._settings.name

    def close(self) -> None:
        """Close the connections to the site."""
        self._site.close()
        if self._service is not None:
            self._service.close()

    def forget(self) -> None:
        """Forget all that is remembered, also that the site was away: the next questions go to the site."""
        with self._lock:
            self._experiments.clear()
            self._roles.clear()
            self._good_tokens.clear()
            self._away_until = 0.0

    # --- logins ------------------------------------------------------------------------------------------------

    def login(self, username: str, password: str) -> Principal:
        """Log in at the site in the caller's name (the web kit's authenticator).

        :param password: or an API token of theirs, with which the site is asked then.
        :returns: the caller with roles; ``attributes["siteCookie"]`` is the session at the site.
        :raises AuthenticationError: ``Incorrect username or password``. :raises ServiceUnavailable: no answer.
        """
        if is_token(password):
            try:
                principal = self.bearer(password)
            except InvalidSession:
                principal = None
            if principal is None or principal.username != username:
                raise AuthenticationError("Incorrect username or password.")
            return principal
        client = RestClient(
            self._settings.storage_service_url,
            username,
            password,
            ca_file=self._settings.ca_file,
            timeout=_TIMEOUT,
            forwarded_for=CALLER.get().remote,
        )
        try:
            client.login()
            described, cookie = client.get("/session"), client.cookie
        except CommunicationError as error:
            raise ServiceUnavailable(f"The site cannot check the password now: {error}") from error
        finally:
            client.close()
        return _principal(described, {SITE_COOKIE: str(cookie)})

    def bearer(self, token: str) -> Principal:
        """Return whose API token it is, at most 5 s old (the web kit's token checker).

        While the site is away, tokens it called good in the last hours stay good, as sessions do.

        :raises InvalidSession: no good token. :raises ServiceUnavailable: not known here, and the site does not answer.
        """
        if not is_token(token):
            raise InvalidSession("The API token is malformed; it looks like dmt_..., as dm-add-token showed it.")
        asking = Principal("", attributes={SITE_TOKEN: token})
        with self._lock:
            known = _key(site_headers(asking)) in self._good_tokens
        if known:
            return self.current(asking)
        # While the site is slow, tokens that strangers make up must not hold all threads.
        if not self._unknown_tokens.acquire(timeout=_PATIENCE):
            raise ServiceUnavailable("Too many unknown API tokens are being checked; try again in a moment.")
        try:
            return self.current(asking)
        finally:
            self._unknown_tokens.release()

    def current(self, principal: Principal) -> Principal:
        """Return the caller with the roles of now (at most 5 s old), or the given one while the site is away.

        :raises InvalidSession: the session at the site is over; log in again.
        """
        headers = site_headers(principal)
        key = _key(headers)
        with self._lock:
            known = self._roles.get(key)
        if known is not None:
            return known
        try:
            described = self._ask("/session", headers)
        except ServiceUnavailable:
            with self._lock:
                known = self._good_tokens.get(key)
            if known is None and not principal.username:
                raise
            return known or principal
        except InvalidSession:
            with self._lock:
                self._good_tokens.pop(key, None)
            raise
        fresh = _principal(described, principal.attributes)
        with self._lock:
            self._roles[key] = fresh
            if SITE_TOKEN in fresh.attributes:
                self._good_tokens[key] = fresh
        return fresh

    # --- experiments -------------------------------------------------------------------------------------------

    def experiment(self, principal: Principal, name: str) -> Experiment:
        """Return an experiment of this station as the caller sees it, at most 5 s old.

        :raises ObjectNotFound: ``... does not exist``, for this caller.
        :raises ServiceUnavailable: the site does not answer. :raises InvalidSession: log in again.
        """
        headers = site_headers(principal)
        key = (_key(headers), name)
        with self._lock:
            known = self._experiments.get(key)
        if known is None:
            known = dict(self._ask(f"/experimentsByName/{segment(name)}/{segment(self.station)}", headers))
            with self._lock:
                self._experiments[key] = known
        return Experiment(dict(known))

    # --- the station's own account -----------------------------------------------------------------------------

    def service_client(self) -> StorageServiceApi:
        """Return the API for grants and batches under the station's service account; one object, shared.

        The login file is read at each login, so that a changed password is picked up.
        """
        with self._lock:
            if self._service is None:
                self._service = StorageServiceApi(
                    self._settings.service_username or None,
                    url=self._settings.storage_service_url,
                    ca_file=self._settings.ca_file,
                    credentials=self._service_login,
                )
            return self._service

    def _service_login(self) -> tuple[str, str]:
        username, password = environment.read_login_file(self._settings.service_password_file)
        if self._settings.service_username and username != self._settings.service_username:
            raise ConfigurationError(
                f"Login file {self._settings.service_password_file} is of {username}, not of "
                f"{self._settings.service_username}, which the settings name."
            )
        return username, password

    # --- permissions -------------------------------------------------------------------------------------------

    def authorizer(self, owner_rule: OwnerRule | None = None) -> StationAuthorizer:
        """Return the web kit's authorizer for a service of this station.

        :param owner_rule: says who owns what a request speaks of, for routes ``Who.OWNER``; default: the argument the
            route names.
        """
        return StationAuthorizer(self, owner_rule)

    # --- the wire ----------------------------------------------------------------------------------------------

    def _ask(self, path: str, headers: Mapping[str, str]) -> Any:
        if time.monotonic() < self._away_until:
            raise ServiceUnavailable("The site's storage service does not answer; try again in a moment.")
        remote = CALLER.get().remote
        try:
            return self._site.get(path, headers={**headers, **({"X-Forwarded-For": remote} if remote else {})})
        except ServiceLimit as error:
            raise TooManyLogins(_LIMIT_SECONDS, "wrong API tokens") from error
        except (CommunicationError, ServiceUnavailable) as error:
            # For a moment nobody else waits for the time-out.
            self._away_until = time.monotonic() + _OUTAGE_SECONDS
            LOG.warning("the site does not answer: %s", error)
            raise ServiceUnavailable("The site's storage service does not answer; try again in a moment.") from error
        except (AuthenticationError, InvalidSession) as error:
            raise InvalidSession("The session at the site is over; log in again.") from error


class StationAuthorizer:
    """Decides who may call a station's routes.

    :param identity: the site's word. :param owner_rule: see :meth:`SiteIdentity.authorizer`.
    """

    def __init__(self, identity: SiteIdentity, owner_rule: OwnerRule | None = None) -> None:
        self._identity = identity
        self._owner_rule = owner_rule

    def authorize(self, request: Request, access: Access, arguments: Arguments, route: Route) -> None:
        """Return when the caller may.

        :raises AuthorizationError: may not do this. :raises ObjectNotFound: may not even know of the object.
        :raises InvalidSession: roles have changed, or the session at the site is over; log in again.
        """
        principal, station = request.principal, self._identity.station
        fresh = self._identity.current(principal)
        if _rights(fresh) != _rights(principal):
            # Handlers decide by the roles kept with the session; a new login brings the new ones.
            raise InvalidSession(f"The roles of {principal.username} have changed; log in again.")
        match access.who:
            case Who.USER:
                return
            case Who.OWNER:
                owner = self._owner_rule(request, arguments) if self._owner_rule else _named(arguments, access.argument)
                allowed = owner == principal.username or principal.manages(station)
            case Who.EXPERIMENT:
                name = _named(arguments, access.argument)
                if name:
                    self._identity.experiment(principal, name)
                allowed = bool(name) or principal.manages(station)
            case Who.MANAGER:
                allowed = principal.manages(station)
            case Who.ADMIN:
                allowed = principal.is_admin
            case Who.SERVICE:
                allowed = principal.serves(station)
            case _:
                allowed = False
        if not allowed:
            raise AuthorizationError(f"User {principal.username!a} may not do this; it takes {access.who.value}.")


def site_headers(principal: Principal) -> dict[str, str]:
    """Return the headers with which the site is asked in the caller's name. :raises InvalidSession: there are none."""
    attributes = principal.attributes
    if token := attributes.get(SITE_TOKEN):
        return {"Authorization": f"Bearer {token}"}
    if cookie := attributes.get(SITE_COOKIE):
        return {"Cookie": f"SESSIONID={cookie}"}
    raise InvalidSession("The session knows no session at the site; log in again.")


def site_client(principal: Principal, station: StationSettings) -> RestClient:
    """Return a client of the site's storage service in the caller's name; the caller closes it."""
    return RestClient(
        station.storage_service_url,
        session=principal.attributes.get(SITE_COOKIE),
        token=principal.attributes.get(SITE_TOKEN),
        ca_file=station.ca_file,
    )


def _principal(described: dict[str, Any], attributes: Mapping[str, Any]) -> Principal:
    try:
        scopes = described.get("scopes")
        return Principal(
            str(described["username"]),
            frozenset(described["systemRoles"]),
            {name: frozenset(roles) for name, roles in described["stationRoles"].items()},
            dict(attributes),
            frozenset(scopes) if scopes is not None else None,
            described.get("onlyStation"),
        )
    except (KeyError, TypeError, AttributeError):
        raise DmException("The site's storage service describes its session in an unknown way.") from None


def _rights(principal: Principal) -> tuple[Any, ...]:
    roles = {name: given for name, given in principal.station_roles.items() if given}
    return principal.username, principal.system_roles, roles, principal.scopes, principal.only_station


def _named(arguments: Arguments, argument: str | None) -> str | None:
    value = getattr(arguments, argument, None) if argument else None
    return str(value) if value is not None else None


def _key(headers: Mapping[str, str]) -> str:
    return hashlib.sha256("\n".join(f"{name}: {value}" for name, value in headers.items()).encode()).hexdigest()
