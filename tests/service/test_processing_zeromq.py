"""The ZeroMQ interface over real CURVE sockets: what it does, for whom, and what it shows to whom."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from dm.common import curve
from dm.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigurationError,
    InvalidObjectState,
    InvalidRequest,
    ObjectNotFound,
    TaskTimeout,
)
from dm.station.processing.zeromq import keys
from dm.station.processing.zeromq.client import ProcZmqApi
from dm.station.processing.zeromq.messages import OPERATIONS, OWN_ARGUMENTS, topic
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Running, running_processing
from tests.service.zeromq_fixtures import Peers, client_key, peers

ECHO = {"1": {"command": "echo $x"}}
SLOW = {"1": {"command": "sleep 60"}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the service's keys."""
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def service(
    storage_site: storage.Site,
    mongo_url: str,
    certificates: Path,
    directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("processing")
    with running_processing(storage_site, mongo_url, certificates, place, zeromq_keys=str(directory)) as running:
        running.workflow(ECHO, "echo")
        running.workflow(SLOW, "slow")
        running.workflow(ECHO, "alices", storage.ALICE)
        yield running


@pytest.fixture(scope="module")
def key_of(service: Running, directory: Path) -> Callable[[str], Path]:
    """Keys of accounts, let in before the first question is asked."""
    made = {
        OWNER: client_key(directory, OWNER, "manager", all_events=True),
        storage.ALICE: client_key(directory, storage.ALICE, "alice"),
        storage.BOB: client_key(directory, storage.BOB, "bob"),
    }
    time.sleep(1.1)  # keys are read again after a second
    return made.__getitem__


@pytest.fixture
def people(service: Running, directory: Path, key_of: Callable[[str], Path]) -> Iterator[Peers]:
    assert service.processing is not None and service.processing.gateway is not None
    with peers(service.processing.gateway, directory) as found:
        yield found


@pytest.fixture
def api(people: Peers, key_of: Callable[[str], Path]) -> ProcZmqApi:
    return people.api(OWNER, key_of(OWNER))


# --- what it does ----------------------------------------------------------------------------------------------


def test_a_job_is_submitted_followed_and_listed(api: ProcZmqApi, service: Running) -> None:
    pong = api.ping()
    assert (pong["service"], pong["station"], pong["account"]) == ("processing", storage.STATION, OWNER)
    key = str(uuid.uuid4())
    job = api.submit(OWNER, "echo", {"filePath": "/dev/null", "x": "hello"}, key)
    assert api.submit(OWNER, "echo", {"filePath": "/dev/null", "x": "other"}, key)["id"] == job["id"]
    done = api.wait(job["id"], 60)
    assert done["status"] == "done" and done["x"] == "hello"
    assert done["workflow"]["stages"]["1"]["childProcesses"]["0"]["stdOut"].strip() == "hello"
    assert done.data == service.api().getProcessingJobById(OWNER, job["id"]).data
    assert job["id"] in [found["id"] for found in api.list(OWNER, limit=5)]
    assert [found.data for found in api.list(queryDict={"id": job["id"]}, keyList=["id", "x"])] == [
        {"id": job["id"], "x": "hello"}
    ]
    many = api.submitMany(OWNER, "echo", [{"argsDict": {"filePath": "/dev/null"}}, {"argsDict": {"id": "no"}}])
    assert many[0]["status"] == "pending" and many[1]["errorClass"] == "InvalidArgument"
    with pytest.raises(InvalidObjectState):
        api.abort(job["id"])
    api.logout()
    assert api.status(job["id"])["status"] == "done"  # logs in by itself


def test_a_job_is_aborted(api: ProcZmqApi) -> None:
    job = api.submit(OWNER, "slow", {"filePath": "/dev/null"})
    with pytest.raises(TaskTimeout):
        api.wait(job["id"], 0.2)
    assert api.abort(job["id"])["status"] in {"aborting", "aborted"}
    assert api.wait(job["id"], 60)["status"] == "aborted"


def test_errors_are_those_of_rest(api: ProcZmqApi) -> None:
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.submit(OWNER, "nothing")
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.abort("no-such-job")
    with pytest.raises(InvalidRequest, match="invalid owner name"):
        api.list("../x")
    with pytest.raises(InvalidRequest, match="'wrong' is unknown"):
        api._call("status", {"jobId": "x", "wrong": 1})


def test_waiting_holds_nobody_up(people: Peers, key_of: Callable[[str], Path], service: Running) -> None:
    peer, other = people.plain(key_of(OWNER)), people.plain(key_of(OWNER))
    session = peer.login(OWNER)
    job = service.start("slow")
    for number in range(20):  # more than there are threads
        peer.socket.send(
            json.dumps(
                {"id": f"w{number}", "op": "status", "session": session, "jobId": job["id"], "waitTime": 30}
            ).encode()
        )
    assert other.ask(op="status", session=session, jobId=job["id"])["result"]["status"] != "aborted"
    assert other.ask(op="abort", session=session, jobId=job["id"])["result"]["id"] == job["id"]
    answers = [peer.answer() for _ in range(20)]
    assert {answer["id"] for answer in answers} == {f"w{number}" for number in range(20)}
    assert {answer["result"]["status"] for answer in answers} == {"aborted"}
    began = time.monotonic()
    job = service.start("slow")
    status = peer.ask(op="status", session=session, jobId=job["id"], waitTime=0.5)["result"]["status"]
    assert status in {"pending", "running"} and time.monotonic() - began >= 0.5
    peer.ask(op="abort", session=session, jobId=job["id"])


def test_req_sockets_are_answered_too(people: Peers, key_of: Callable[[str], Path]) -> None:
    peer = people.plain(key_of(OWNER), zmq.REQ)
    assert peer.ask(op="ping")["result"]["account"] == OWNER
    assert peer.ask(op="status", jobId="x")["error"]["errorClass"] == "AuthenticationError"


def test_every_operation_has_a_route(service: Running) -> None:
    assert service.server is not None
    rows = {(route.method, route.path) for route in service.server.application.routes}
    for name, operation in OPERATIONS.items():
        assert (operation.route is None) == (name in OWN_ARGUMENTS)
        assert {route for route in (operation.route, operation.by_owner) if route} <= rows


def test_the_status_and_the_metrics_tell_of_it(api: ProcZmqApi, service: Running) -> None:
    api.ping()
    status = service.rest(None).get("/status")
    check = next(check for check in status["checks"] if check["name"] == "zeromq")
    assert check["status"] == "ok" and "keys are let in" in check["message"]
    assert service.processing is not None
    assert 'dm_zeromq_requests_total{op="ping",outcome="ok"}' in service.processing.health.metrics().decode()


# --- for whom --------------------------------------------------------------------------------------------------


def test_a_session_of_rest_is_as_good(people: Peers, key_of: Callable[[str], Path], service: Running) -> None:
    rest = service.rest()
    rest.login()
    peer = people.plain(key_of(OWNER))
    assert isinstance(peer.ask(op="list", session=rest.cookie, limit=1)["result"], list)
    rest.logout()
    assert peer.ask(op="list", session=rest.cookie or "x" * 43)["error"]["errorClass"] == "InvalidSession"


def test_key_and_session_belong_together(people: Peers, key_of: Callable[[str], Path], service: Running) -> None:
    manager, alice = people.plain(key_of(OWNER)), people.plain(key_of(storage.ALICE))
    session = manager.login(OWNER)
    stolen = alice.ask(op="list", session=session)
    assert stolen["error"]["errorClass"] == "AuthorizationError"
    refused = alice.ask(op="login", username=OWNER, password=storage.password_of(OWNER))
    assert refused["error"]["errorClass"] == "AuthorizationError" and "session" not in str(refused["error"])
    wrong = alice.ask(op="login", username=storage.ALICE, password="wrong")
    assert wrong["error"]["errorCode"] == AuthenticationError.code
    assert alice.login(storage.ALICE)


def test_who_may_not_by_rest_may_not_here(people: Peers, key_of: Callable[[str], Path], service: Running) -> None:
    alice = people.api(storage.ALICE, key_of(storage.ALICE))
    job = service.start("slow")
    for refused in (
        lambda: alice.status(job["id"]),
        lambda: alice.abort(job["id"]),
    ):
        with pytest.raises(ObjectNotFound):
            refused()
    with pytest.raises(AuthorizationError):
        alice.submit(OWNER, "echo", {"filePath": "/dev/null"})
    with pytest.raises(AuthorizationError):
        alice.list(OWNER)
    with pytest.raises(AuthorizationError):
        alice.submit(storage.ALICE, "alices", {"filePath": "/dev/null"}, jobOwner=OWNER)
    assert alice.list() == []
    mine = alice.submit(storage.ALICE, "alices", {"filePath": "/dev/null"})
    assert [found["id"] for found in alice.list()] == [mine["id"]]
    service.api().stopProcessingJob(OWNER, job["id"])
    alice.wait(mine["id"], 60)


def test_keys_are_let_in_and_revoked_while_it_runs(people: Peers, directory: Path, service: Running) -> None:
    secret = client_key(directory, OWNER, "new", let_in=False)
    api = people.api(OWNER, secret, timeout=10)
    with pytest.raises(CommunicationError, match="does not let this key in"):
        api.ping()
    keys.authorise(directory, secret.with_name("new.key"), OWNER, "new")
    time.sleep(1.1)
    assert api.ping()["account"] == OWNER
    subscriber = people.socket(secret, zmq.SUB)
    _until_published(service, subscriber, OWNER)
    keys.revoke(directory, "new")
    time.sleep(1.1)
    short = people.api(OWNER, secret, timeout=2)
    with pytest.raises(CommunicationError):
        short.ping()
    api._timeout = 2
    with pytest.raises(CommunicationError):  # also on the connection that was let in
        api.ping()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # subscribers are asked for their keys again
        _publish(service, OWNER)
        if not subscriber.poll(500):
            break
        subscriber.recv_multipart()
    else:
        pytest.fail("a revoked key still gets events")


def test_a_wrong_server_key_is_said(people: Peers, key_of: Callable[[str], Path]) -> None:
    foreign = zmq.curve_keypair()[0].decode()
    with (
        ProcZmqApi(OWNER, "x", address=people.address, server_key=foreign, key_file=key_of(OWNER), timeout=1) as api,
        pytest.raises(CommunicationError, match="No answer from"),
    ):
        api.ping()


def test_key_files_are_checked(directory: Path, tmp_path: Path) -> None:
    _, secret = curve.make(tmp_path, "mine")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert (directory / "server.key_secret").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="cannot be written"):
        curve.make(tmp_path, "mine")  # never over somebody's key
    secret.chmod(0o644)
    with pytest.raises(ConfigurationError, match="may be read by others"):
        curve.read_secret(secret)
    with pytest.raises(ConfigurationError, match="no secret key"):
        curve.read_secret(tmp_path / "mine.key")
    with pytest.raises(ConfigurationError, match="no public CURVE key"):
        curve.read(_junk(tmp_path))
    place = tmp_path / "service"
    keys.prepare(place)
    clients = keys.ClientKeys(place)
    (place / "clients" / "copied.key").write_text((tmp_path / "mine.key").read_text())
    assert clients.all() == {} and "names no account" in clients.problems[0]
    (place / "clients").chmod(0o777)
    with pytest.raises(ConfigurationError, match="written to by others"):
        keys.prepare(place)


def _junk(directory: Path) -> Path:
    file = directory / "junk.key"
    file.write_bytes(b"\xff" * 100)
    return file


# --- what it shows to whom -------------------------------------------------------------------------------------


def _publish(service: Running, owner: str, job: str = "probe", **extra: Any) -> None:
    assert service.processing is not None and service.processing.gateway is not None
    service.processing.gateway.publish(
        {"event": "job", "id": job, "owner": owner, "status": "running", "time": 1.0, **extra}
    )


def _until_published(service: Running, socket: zmq.Socket[bytes], owner: str) -> None:
    """Publish until the subscription has come through."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        _publish(service, owner)
        if socket.poll(50):
            while socket.poll(50):
                socket.recv_multipart()
            return
    raise AssertionError("no event came through")


def test_events_are_shown_to_those_who_may_see_the_job(
    people: Peers, key_of: Callable[[str], Path], service: Running
) -> None:
    greedy = people.socket(key_of(storage.ALICE), zmq.SUB)  # subscribes to everything
    greedy.subscribe(f"job.{OWNER}.".encode())
    greedy.subscribe(b"job.")
    manager = people.socket(key_of(OWNER), zmq.SUB)
    _until_published(service, greedy, storage.ALICE)
    _until_published(service, manager, OWNER)
    secret = {"x": "password", "stdOut": "data", "errorMessage": "why"}
    for owner in (OWNER, storage.BOB, f"{storage.ALICE}.b", storage.ALICE):
        _publish(service, owner, f"of-{owner}", **secret)
    seen: dict[str, list[str]] = {"alice": [], "manager": []}
    for name, socket, count in (("alice", greedy, 1), ("manager", manager, 4)):
        for _ in range(count):
            assert socket.poll(10_000)
            shown, text = socket.recv_multipart()
            event = json.loads(text)
            assert shown.decode() == topic(event) and not set(event) & set(secret)
            seen[name].append(event["id"])
        assert not socket.poll(100)
    assert seen["alice"] == [f"of-{storage.ALICE}"] and len(seen["manager"]) == 4


def test_events_of_a_job_come_to_the_client(api: ProcZmqApi, service: Running) -> None:
    seen: list[Any] = []
    ready = threading.Event()

    def listen() -> None:
        for event in api.events(OWNER, timeout=20):
            ready.set()
            seen.append(event)
            if event["id"] == "last":
                return

    thread = threading.Thread(target=listen)
    thread.start()
    while not ready.is_set():
        _publish(service, OWNER)
        ready.wait(0.05)
    job = service.finished(service.start("echo", x="y"))
    _publish(service, OWNER, "last")
    thread.join()
    told = [event for event in seen if event["id"] == job["id"]]
    assert [event["status"] for event in told if event["event"] == "job"][-1] == "done"
    files = [event for event in told if event["event"] == "file"]
    assert [(event["filePath"], event["exitStatus"]) for event in files] == [("/dev/null", 0)]
    assert all("x" not in event and "stdOut" not in event for event in told)


def test_the_client_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="DM_ZMQ_ADDRESS is not set"):
        ProcZmqApi("u", "p").ping()
    monkeypatch.setenv("DM_ZMQ_ADDRESS", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DM_ZMQ_SERVER_KEY", str(tmp_path / "none.key"))
    monkeypatch.setenv("DM_ZMQ_KEY_FILE", str(tmp_path / "none.key_secret"))
    with pytest.raises(ConfigurationError, match=r"none\.key cannot be used"):
        ProcZmqApi("u", "p").ping()
