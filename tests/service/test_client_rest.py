"""The REST client against a real service on the web kit, over real HTTPS."""

import hashlib
import os
import threading

import pytest

from dm.common.client import ApiClient, RestClient, segment
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    InternalError,
    InvalidRequest,
    InvalidSession,
    ObjectNotFound,
    TransferError,
)
from dm.common.web.sessions import MemorySessionStore
from tests.service.web_fixtures import CONTENT, USERS, application, running

USER = "d123456"


class CountingSessions(MemorySessionStore):
    """The real store, which also counts logins."""

    def __init__(self):
        super().__init__()
        self.logins = 0
        self.alive = []

    def __bool__(self):
        return True

    def create(self, principal):
        self.logins += 1
        session = super().create(principal)
        self.alive.append(session)
        return session

    def end_all(self):
        while self.alive:
            self.delete(self.alive.pop())


@pytest.fixture(scope="module")
def sessions():
    return CountingSessions()


@pytest.fixture(scope="module")
def server(certificates, sessions):
    with running(certificates, application(sessions=sessions)) as started:
        yield started


@pytest.fixture
def make(server, certificates):
    made = []

    def client(username=USER, password=None, **options):
        options.setdefault("ca_file", certificates / "ca.pem")
        made.append(RestClient(server.url, username, password or USERS.get(username), **options))
        return made[-1]

    yield client
    for one in made:
        one.close()


def test_the_login_happens_when_it_is_needed(make, sessions):
    client, before = make(), sessions.logins
    assert client.get("/status")["service"] == "echo"
    assert sessions.logins == before, "public routes need none"
    assert client.get("/echo/x")["caller"] == USER
    assert client.get("/echo/y")["caller"] == USER
    assert sessions.logins == before + 1
    assert client.cookie


@pytest.mark.parametrize("name", ["run 7", "a/b", "..", "ä日", "x\udcff", "%41", "'q'"])
def test_arguments_arrive_as_they_were(make, name):
    client = make()
    arguments = {"limit": 3, "queryDict": {"a": {"b": [1, None]}}, "keyList": ["id"], "flag": True}
    found = client.get(f"/echo/{segment(name)}", **arguments)
    assert found == {"name": name, **arguments, "caller": USER}
    assert client.post(f"/echo/{segment(name)}", arguments) == found
    assert client.post(f"/echo/{segment(name)}", body=arguments, limit=4)["limit"] == 4


def test_errors_are_the_service_s_own(make):
    client = make()
    with pytest.raises(ObjectNotFound, match="Experiment 'other' does not exist"):
        client.get("/experiments/other")
    with pytest.raises(AuthorizationError, match=USER):
        client.delete("/admin/x")
    with pytest.raises(InvalidRequest, match="limit"):
        client.get("/echo/x", limit="many")
    with pytest.raises(InternalError, match="under request"):
        client.get("/fail")


def test_a_wrong_password_is_said_in_the_service_s_words(make, sessions):
    client, before = make(password="wrong"), sessions.logins
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="Incorrect username or password"):
            client.get("/echo/x")
    assert sessions.logins == before


def test_without_a_password_the_refusal_stands(make):
    with pytest.raises(AuthenticationError, match="log in first"):
        make(username=None).get("/echo/x")


def test_an_ended_session_is_replaced_and_the_call_repeated(make, sessions):
    client = make()
    client.get("/echo/x")
    first, before = client.cookie, sessions.logins
    sessions.end_all()
    assert client.get("/echo/x")["caller"] == USER
    assert client.cookie != first
    assert sessions.logins == before + 1


def test_an_ended_session_without_a_password_is_an_error(make, sessions):
    client = make(username=None, session="A" * 43)
    with pytest.raises(InvalidSession):
        client.get("/echo/x")


def test_many_threads_log_in_once(make, sessions):
    client, before = make(), sessions.logins
    failures, barrier = [], threading.Barrier(8)

    def work(number):
        barrier.wait()
        for turn in range(5):
            if client.get(f"/echo/{number}-{turn}")["name"] != f"{number}-{turn}":
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sessions.logins == before + 1


def test_large_bodies_find_a_session_first(make, sessions):
    client, body = make(), {"queryDict": {"text": "x" * (1 << 20)}}
    assert client.put("/echo/x", body)["caller"] == USER
    for _ in range(3):
        sessions.end_all()
        assert client.put("/echo/x", body)["caller"] == USER


def test_a_session_can_be_forwarded(make, sessions):
    client, before = make(), sessions.logins
    client.login()
    other = make(username=None, session=client.cookie)
    assert other.get("/session")["username"] == USER
    third = make(username=None)
    third.cookie = f"SESSIONID={client.cookie}; Path=/; Secure"
    assert third.get("/session")["username"] == USER
    assert sessions.logins == before + 1


def test_logout(make):
    client = make()
    client.login()
    kept = client.cookie
    client.logout()
    assert client.cookie is None
    client.logout()
    with pytest.raises(InvalidSession):
        make(username=None, session=kept).get("/echo/x")


def test_certificates_are_verified(make, monkeypatch, certificates):
    monkeypatch.delenv("DM_CA_FILE", raising=False)
    with pytest.raises(CommunicationError, match=r"is not trusted: .*DM_CA_FILE"):
        make(ca_file=None).get("/status")
    monkeypatch.setenv("DM_CA_FILE", str(certificates / "ca.pem"))
    assert make(ca_file=None).get("/status")["service"] == "echo"


def test_a_forked_child_has_connections_of_its_own(make):
    client = make()
    client.get("/echo/x")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.get("/echo/child")["name"] == "child" else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert client.get("/echo/parent")["name"] == "parent"


def test_a_closed_client_opens_again(make):
    client = make()
    client.get("/echo/x")
    client.close()
    assert client.get("/echo/x")["name"] == "x"


def test_commands_keep_their_session(server, certificates, sessions, tmp_path, monkeypatch):
    class Api(ApiClient):
        URL_VARIABLE = "DM_ECHO_URL"

    monkeypatch.setenv("DM_HOME", str(tmp_path))
    monkeypatch.setenv("DM_ECHO_URL", server.url)
    before = sessions.logins
    for turn in range(3):
        api = Api(USER, USERS[USER], ca_file=certificates / "ca.pem", keep_session=True)
        assert api.client.get("/echo/x")["caller"] == USER
        api.close()
        if turn == 1:
            sessions.end_all()  # the kept one is then useless, and replaced
    assert sessions.logins == before + 2
    api = Api(USER, USERS[USER], ca_file=certificates / "ca.pem")
    api.client.get("/echo/x")
    api.close()
    assert sessions.logins == before + 3, "scripts log in by themselves"


# --- downloads -----------------------------------------------------------------------------------------------


def parts(directory):
    return [path for path in directory.iterdir() if path.name.endswith(".dmpart")]


def test_a_download_appears_complete(make, tmp_path):
    seen = []
    target = tmp_path / "x.h5"
    digests = {"md5": hashlib.md5(CONTENT).hexdigest()}
    found = make().download(
        "/files/x.h5", target, size=len(CONTENT), digests=digests, progress=lambda *n: seen.append(n)
    )
    assert found == target
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(tmp_path.iterdir()) == [target]


def test_a_download_goes_on_where_another_program_left_it(make, tmp_path):
    client, target = make(), tmp_path / "x.h5"

    class StopError(Exception):
        pass

    def stop(done, total):
        raise StopError

    with pytest.raises(StopError):
        client.download("/files/x.h5", target, progress=stop)
    (part,) = parts(tmp_path)
    assert not target.exists()
    left = part.stat().st_size
    part.write_bytes(CONTENT[: left // 2])
    seen = []
    client.download("/files/x.h5", target, progress=lambda done, total: seen.append(done))
    assert target.read_bytes() == CONTENT
    assert seen[0] > left // 2
    assert parts(tmp_path) == []


def test_a_complete_part_needs_only_its_name(make, tmp_path):
    client, target = make(), tmp_path / "x.h5"

    def stop(done, total):
        if done == total:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        client.download("/files/x.h5", target, progress=stop)
    client.download("/files/x.h5", target)
    assert target.read_bytes() == CONTENT


def test_a_wrong_digest_leaves_nothing(make, tmp_path):
    target = tmp_path / "x.h5"
    target.write_text("older")
    with pytest.raises(TransferError, match=r"md5 .* instead of 0000"):
        make().download("/files/x.h5", target, digests={"md5": "0000"})
    with pytest.raises(TransferError, match=f"has {len(CONTENT)} bytes instead of 7"):
        make().download("/files/x.h5", target, size=7)
    assert target.read_text() == "older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_refused_download_leaves_nothing(make, tmp_path):
    with pytest.raises(InvalidRequest, match="no path"):
        make().download("/nothing/x", tmp_path / "x")
    with pytest.raises(CommunicationError, match=r"broken|broke off|ended"):
        make().download("/broken", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_bad_target_is_refused_before_anything_is_fetched(make, tmp_path):
    with pytest.raises(InvalidRequest, match="is a directory"):
        make().download("/files/x", tmp_path)
    with pytest.raises(InvalidRequest, match="make it first"):
        make().download("/files/x", tmp_path / "no" / "x")
