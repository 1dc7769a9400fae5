"""Who may call which route of the storage service with which arguments."""

from __future__ import annotations

from sqlalchemy import RowMapping

from dm.common.errors import AuthorizationError, ObjectNotFound
from dm.common.web.routes import Access, Arguments, Principal, Request, Route, Who
from dm.site.database.store import Store
from dm.site.storage import experiment_store
from dm.site.storage.arguments import OfExperiment
from dm.site.storage.experiments import Reference, find_visible

_EXPERIMENT_ARGUMENTS = frozenset({"experiment_id", "experiment_name"})


def reference(arguments: Arguments) -> Reference:
    """Return the experiment the arguments name: by number if there is one, else by name and station.

    Where the caller's rights were asked of one, it is that one, whatever the name means by now.
    """
    settled = arguments.settled if isinstance(arguments, OfExperiment) else None
    return Reference(
        id=settled if settled is not None else getattr(arguments, "experiment_id", None),
        name=getattr(arguments, "experiment_name", None),
        station=getattr(arguments, "station_name", None),
    )


class SiteAuthorizer:
    """The web kit's authorizer: decides from the caller's roles and, for experiments, from membership.

    :param pi_manages_users: principal investigators add and remove users of their experiments.
    """

    def __init__(self, store: Store, pi_manages_users: bool = False) -> None:
        self._store = store
        self._pi_manages_users = pi_manages_users

    def authorize(self, request: Request, access: Access, arguments: Arguments, route: Route) -> None:
        """Return when the caller may.

        :raises AuthorizationError: may not do this. :raises ObjectNotFound: may not even know of the object.
        """
        principal = request.principal
        match access.who:
            case Who.USER:
                return
            case Who.ADMIN:
                allowed = principal.is_admin
            case Who.SERVICE:
                allowed = principal.serves()
            case Who.OWNER:
                self._owner(principal, str(getattr(arguments, access.argument or "", "")))
                return
            case Who.EXPERIMENT:
                self._settled(principal, arguments)
                return
            case Who.PI:
                allowed = self._manages(principal, access, arguments) or self._investigates(principal, arguments)
            case Who.MANAGER:
                allowed = self._manages(principal, access, arguments)
            case _:
                allowed = False
        if not allowed:
            raise AuthorizationError(f"User {principal.username!a} may not do this; it takes {access.who.value}.")

    def _investigates(self, principal: Principal, arguments: Arguments) -> bool:
        """Whether this is about the role ``User`` in an experiment the caller is principal investigator of."""
        if not self._pi_manages_users or getattr(arguments, "role_name", None) != "User":
            return False
        row = self._settled(principal, arguments)
        with self._store.transaction() as connection:
            return experiment_store.is_member(connection, row["id"], principal.username, "PI")

    def _settled(self, principal: Principal, arguments: Arguments) -> RowMapping:
        """Return the experiment, and have the handler work on this one and no other."""
        with self._store.transaction() as connection:
            row = find_visible(connection, reference(arguments), principal)
        if isinstance(arguments, OfExperiment):
            arguments.settle(row["id"])
        return row

    @staticmethod
    def _owner(principal: Principal, username: str) -> None:
        if username != principal.username and not manages_any(principal):
            raise ObjectNotFound(f"User {username[:80]!a} does not exist.")

    def _manages(self, principal: Principal, access: Access, arguments: Arguments) -> bool:
        if access.argument is None:
            return manages_any(principal)
        if access.argument in _EXPERIMENT_ARGUMENTS:
            return principal.manages(self._settled(principal, arguments)["station_name"])
        station = getattr(arguments, access.argument, None)
        return principal.manages(station) if station else manages_any(principal)


def manages_any(principal: Principal) -> bool:
    """Whether the caller is an administrator or manages some station."""
    return principal.is_admin or any(principal.manages(station) for station in principal.station_roles)
