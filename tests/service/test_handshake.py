"""Releases that work together, and what those hear that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dm.common import interface
from dm.common.client import RestClient
from dm.common.errors import CommunicationError, InvalidRequest
from dm.common.web.server import Server
from tests.service.web_fixtures import running


@pytest.fixture(scope="module")
def server(certificates: Path) -> Iterator[Server]:
    with running(certificates) as made:
        yield made


@pytest.fixture
def client(server: Server, certificates: Path) -> Iterator[RestClient]:
    made = RestClient(server.url, "d123456", "right horse", ca_file=certificates / "ca.pem")
    yield made
    made.close()


def test_both_sides_introduce_themselves(client: RestClient) -> None:
    reply = client.send("GET", "/status")
    assert reply.headers["dm-interface"] == interface.INTERFACE == reply.json()["interface"]
    assert reply.headers["dm-version"] == interface.release() == reply.json()["version"]
    sent = reply.request.headers
    assert (sent["dm-interface"], sent["dm-version"]) == (interface.INTERFACE, interface.release())


@pytest.mark.parametrize("said", ["1.0", "1.99", f"{interface.MAJOR}.7", "rubbish", "1", "-3.1", "", "9" * 50 + ".1"])
def test_the_same_major_number_works(client: RestClient, said: str) -> None:
    assert client.get("/session", headers={"Dm-Interface": said})["username"] == "d123456"


def test_a_caller_without_headers_is_served(server: Server, certificates: Path) -> None:
    """Programs of other people, and releases that knew no headers."""
    import ssl

    with httpx.Client(verify=ssl.create_default_context(cafile=str(certificates / "ca.pem"))) as http:
        login = {"username": "d123456", "password": "right horse"}
        assert http.post(f"{server.url}/login", data=login).status_code == 200


@pytest.mark.parametrize(
    ("theirs", "upgrade"),
    [("2.0", "upgrade the echo service"), ("0.9", "upgrade the caller"), ("77.3", "echo service")],
)
def test_a_caller_of_another_interface_is_told_who_must_be_upgraded(
    client: RestClient, theirs: str, upgrade: str
) -> None:
    headers = {"Dm-Interface": theirs, "Dm-Version": "9.8.7"}
    for method, path in (("GET", "/session"), ("POST", "/login")):
        reply = client.send(method, path, headers=headers)
        body = reply.json()
        assert (reply.status_code, body["errorClass"]) == (400, InvalidRequest.__name__)
        assert "release 9.8.7" in body["errorMessage"] and upgrade in body["errorMessage"]
        assert body["errorMessage"].count(";") == 1
    assert client.send("GET", "/status", headers=headers).status_code == 200  # monitors are told in any case


def test_nothing_of_a_strange_header_is_repeated(client: RestClient) -> None:
    reply = client.send("GET", "/session", headers={"Dm-Interface": "2.0", "Dm-Version": "<script>"})
    assert "script" not in reply.text and "an unnamed release" in reply.text


@pytest.mark.parametrize(("theirs", "upgrade"), [("2.0", "upgrade this client"), ("0.9", "upgrade the service at")])
def test_a_service_of_another_interface(client: RestClient, server: Server, theirs: str, upgrade: str) -> None:
    before = dict(server.application._introduction)
    server.application._introduction.update({"Dm-Interface": theirs, "Dm-Version": "9.8.7"})
    try:
        with pytest.raises(CommunicationError, match=upgrade) as caught:
            client.get("/session")
        assert "release 9.8.7" in str(caught.value) and server.url in str(caught.value)
    finally:
        server.application._introduction.update(before)
    assert client.get("/session")["username"] == "d123456"  # after the upgrade, without a new client
