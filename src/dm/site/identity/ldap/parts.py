"""Everything of the directory that a service needs, put together from the settings."""

from __future__ import annotations

from dataclasses import dataclass

from dm.common.errors import InvalidObjectState
from dm.common.health import Health
from dm.site.database.store import Store
from dm.site.identity.ldap import ldap_store
from dm.site.identity.ldap.connection import Directory
from dm.site.identity.ldap.keeper import DirectoryKeeper
from dm.site.identity.ldap.login import DirectoryLogin
from dm.site.identity.ldap.settings import LdapSettings
from dm.site.identity.ldap.worker import DirectoryWorker, watch


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
