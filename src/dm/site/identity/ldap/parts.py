"""Everything of the directory that a service needs, put together from the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dm.common.errors import InvalidObjectState
from dm.common.health import Health
from dm.site.database.store import Store
from dm.site.identity.ldap import ldap_store
from dm.site.identity.ldap.connection import Directory
from dm.site.identity.ldap.keeper import DirectoryKeeper
from dm.site.identity.ldap.login import DirectoryLogin
from dm.site.identity.ldap.settings import LdapSettings
from dm.site.identity.ldap.worker import DirectoryWorker, watch

if TYPE_CHECKING:
    from dm.site.identity.synchronisation import Told


@dataclass
class SiteDirectory:
    """The site's directory, or that it has none (everything ``None``)."""

    store: Store
    login: DirectoryLogin | None = None
    keeper: DirectoryKeeper | None = None
    worker: DirectoryWorker | None = None

    def start(self) -> None:
        """Begin to keep it up to date. :raises ConfigurationError: ``gid_first`` was changed."""
        if self.worker is not None:
            self.worker.start()
            return
        with self.store.transaction() as connection:
            ldap_store.stop_numbers(connection)

    def sweep(self) -> None:
        """Forget changes that nobody told a directory of for a day: there is none, or it is compared as a whole."""
        with self.store.transaction() as connection:
            ldap_store.sweep_marks(connection)

    def stop(self) -> None:
        """End within seconds."""
        if self.worker is not None:
            self.worker.stop()
        if self.login is not None:
            self.login.close()

    def push_people(self, told: Sequence[Told]) -> None:
        """Tell the directory of people that a synchronisation found, password hashes included.

        :raises ServiceUnavailable: it does not answer; part of it may be done, again is fine.
        """
        hashes = {one.username: one.person.password_hash for one in told}
        self.required().push_users(
            [one.user_id for one in told], {name: text for name, text in hashes.items() if text is not None}
        )

    @property
    def push(self) -> Callable[[Sequence[Told]], None] | None:
        """The way to tell it of people, where their entries are DM's to write."""
        return self.push_people if self.keeper is not None and self.keeper.writes_people else None

    def required(self) -> DirectoryKeeper:
        """Return who keeps it. :raises InvalidObjectState: the site has none."""
        if self.keeper is None:
            raise InvalidObjectState("This site has no LDAP directory; set [storage.ldap] to have one.")
        return self.keeper

    @property
    def checks_passwords(self) -> DirectoryLogin | None:
        """The part that checks passwords, if it is to."""
        return self.login if self.login is not None and self.login.enabled else None


def build(settings: LdapSettings | None, store: Store, health: Health) -> SiteDirectory:
    """Put it together; nothing is started. :raises ConfigurationError: a file of the settings cannot be read."""
    if settings is None:
        return SiteDirectory(store)
    directory = Directory(settings)
    login, keeper = DirectoryLogin(directory), DirectoryKeeper(store, directory)
    watch(health, keeper, login)
    return SiteDirectory(store, login, keeper, DirectoryWorker(keeper))


def of_other_service(settings: LdapSettings | None, store: Store) -> SiteDirectory:
    """Put together what a service needs that checks passwords and tells of people, but does not keep the groups."""
    if settings is None:
        return SiteDirectory(store)
    directory = Directory(settings)
    return SiteDirectory(store, DirectoryLogin(directory), DirectoryKeeper(store, directory))
