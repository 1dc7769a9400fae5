"""A storage service with a real slapd beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dm.site.identity.ldap.connection import Directory
from dm.site.identity.ldap.login import DirectoryLogin
from dm.site.identity.ldap.settings import LdapSettings
from tests.service.slapd_server import Slapd
from tests.service.storage_fixtures import Site, running_site

GID_FIRST = 600_000


def settings(slapd: Slapd, **changes: Any) -> LdapSettings:
    """Return the settings of a directory for tests: numbers that no account of this machine has."""
    numbers = {"gid_first": GID_FIRST, "gid_last": 699_999, "uid_first": 600_000, "uid_last": 699_999}
    return LdapSettings(**{**slapd.settings(), **numbers, **changes})


@contextmanager
def site_with_ldap(
    database_url: str, certificates: Path, directory: Path, slapd: Slapd, **changes: Any
) -> Iterator[Site]:
    """Run a storage service whose directory is this slapd."""
    with running_site(database_url, certificates, directory, ldap=settings(slapd, **changes)) as site:
        yield site


@contextmanager
def checking(slapd: Slapd, **changes: Any) -> Iterator[DirectoryLogin]:
    """Yield the part that checks passwords at this slapd."""
    login = DirectoryLogin(Directory(settings(slapd, **changes)))
    try:
        yield login
    finally:
        login.close()
