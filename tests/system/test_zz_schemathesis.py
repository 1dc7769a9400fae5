"""Every service against its own OpenAPI document: no 5xx, and nothing accepted that the document does not allow.

Named so that it comes last: the users and stations it makes with random names would be in the way of other tests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dm.common.client import RestClient
from dm.common.environment import URL_VARIABLES
from tests.live import Suite
from tests.service.openapi_walk import Walk

SERVICES = ("storage", "facility", "catalog", "acquisition", "processing")
ENDS_THE_SESSION = ("POST /dm/logout", "DELETE /dm/sessions", "DELETE /dm/sessions/{username}")


def walk(suite: Suite, service: str, examples: int) -> Walk:
    environment = suite.environment
    authority = Path(environment["DM_CA_FILE"])
    account = suite.administrator if service in ("storage", "facility") else suite.manager
    with RestClient(environment[URL_VARIABLES[service]], *account, ca_file=authority) as client:
        made = Walk(client, authority, examples, ENDS_THE_SESSION, sparse=examples == 1)
        made.run()
        assert client.get("/session")["username"] == account[0]
    return made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_does_what_its_document_says(suite: Suite, service: str) -> None:
    done = walk(suite, service, 1)
    assert not done.found, "\n".join(done.found)
    assert done.seen[200] > 2
    assert done.seen[401] > 10


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_does_what_its_document_says_at_length(suite: Suite, service: str) -> None:
    done = walk(suite, service, 60)
    assert not done.found, "\n".join(done.found)
