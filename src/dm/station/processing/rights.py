"""Who may do what with workflows and jobs.

A workflow is a list of shell commands that run under the stage account, so writing one is for managers of the station
(and for others only where the settings say so). Running it takes its owner or a manager. A job and its output are seen
by its owner and by managers; others are told that it does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from dm.common.errors import AuthorizationError
from dm.common.web.routes import Principal


@dataclass(frozen=True)
class Rights:
    """The rules of one station.

    :param station: its name. :param users_may_author: the setting of that name.
    """

    station: str
    users_may_author: bool = False

    def manages(self, principal: Principal) -> bool:
        """Whether the caller manages the station (its service account and administrators do)."""
        return principal.manages(self.station)

    def sees(self, principal: Principal, owner: str) -> bool:
        """Whether the caller may see and run what belongs to ``owner``."""
        return principal.username == owner or self.manages(principal)

    def check_owner(self, principal: Principal, owner: str) -> None:
        """Refuse callers who ask for somebody else's things. :raises AuthorizationError: naming both."""
        if not self.sees(principal, owner):
            raise AuthorizationError(f"User {principal.username!r} may not ask for what belongs to {owner!r}.")

    def check_account(self, principal: Principal, owner: str, user_account: str) -> None:
        """Refuse authors who may not say whose account stages run under: only managers of the station do.

        :raises AuthorizationError: with the rule.
        """
        if user_account != owner and not self.manages(principal):
            raise AuthorizationError(
                f"User {principal.username!r} may not write workflows with userAccount {user_account!r}; leave it out. "
                f"Managers of station {self.station} may name other accounts."
            )

    def check_author(self, principal: Principal, owner: str) -> None:
        """Refuse callers who may not write workflows of ``owner``. :raises AuthorizationError: with the rule."""
        if self.manages(principal) or (self.users_may_author and principal.username == owner):
            return
        raise AuthorizationError(
            f"User {principal.username!r} may not write workflows of {owner!r} at station {self.station}; "
            "its managers may."
        )
