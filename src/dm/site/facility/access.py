"""Who may call which route of the facility service."""

from __future__ import annotations

from dm.common.errors import AuthorizationError
from dm.common.web.routes import Access, Arguments, Request, Route, Who

CONCERNED = Access(Who.CONCERNED)


class FacilityAuthorizer:
    """The web kit's authorizer. Records are chosen for the caller by :class:`~dm.site.facility.viewer.Viewer`."""

    def authorize(self, request: Request, access: Access, arguments: Arguments, route: Route) -> None:
        """Return when the caller may call the route. :raises AuthorizationError: otherwise."""
        principal = request.principal
        match access.who:
            case Who.USER | Who.CONCERNED:
                return
            case Who.ADMIN:
                allowed = principal.is_admin
            case Who.MANAGER:
                allowed = principal.is_admin or any(principal.manages(name) for name in principal.station_roles)
            case _:
                allowed = False
        if not allowed:
            raise AuthorizationError(f"User {principal.username!a} may not do this; it takes {access.who.value}.")
