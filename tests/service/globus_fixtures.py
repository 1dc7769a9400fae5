"""A storage service whose Globus is the stand-in."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.service import storage_fixtures as fx
from tests.service.globus_stand_in import CLIENT, GlobusStandIn, over_http

COLLECTION = str(uuid.UUID(int=9))
HEAD = "head@lab.example.org"


def identity(username: str) -> str:
    """Return the Globus identity of a test user."""
    return f"{username}@example.org"


STAFF = {HEAD: "manager", identity(fx.MANAGER): "manager"}


@contextmanager
def running_globus_site(
    database_url: str, certificates: Path, directory: Path, **changes: Any
) -> Iterator[tuple[fx.Site, GlobusStandIn]]:
    """Run a storage service with a stand-in for Globus, which knows some of its people.

    :param changes: of the settings ``[storage.globus]``.
    """
    secret = directory / "secret"
    secret.write_text("a secret\n")
    secret.chmod(0o600)
    settings = {
        "client_id": CLIENT,
        "client_secret_file": secret,
        "identity": "{username}@example.org",
        "managers": [HEAD],
        "collection": COLLECTION,
        "collection_paths": {str(directory / "storage"): "/dm"},
        "sync_seconds": 0.1,
    }
    globus = GlobusStandIn({})
    globus.groups.know(identity(fx.ALICE), identity(fx.BOB), HEAD, identity(fx.MANAGER))
    with pytest.MonkeyPatch.context() as patch, over_http(globus) as variables:
        for name, value in variables.items():
            patch.setenv(name, value)
        with fx.running_site(database_url, certificates, directory, globus=settings | changes) as site:
            yield site, globus
