"""Hostile and broken peers at the ZeroMQ interface of a real service process: it stays alive, and nothing runs."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from dm.common import curve
from dm.common.errors import DmException
from dm.common.hosting import free_port
from dm.station.processing.zeromq.client import ProcZmqApi
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, Process, Running
from tests.service.zeromq_fixtures import Peers, Plain, client_key

MIB = 1 << 20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
WRONG: tuple[Any, ...] = (
    None, True, 7, "text", [], [{}], {}, {"op": None}, {"op": 7}, {"op": ["submit"]}, {"op": "no such"},
    {"op": "submit", "id": {}}, {"op": "submit", "id": "x" * 300}, {"op": "submit", "session": 5},
    {"op": "submit", "session": []}, {"op": "__class__"}, {"op": "ping", "extra": 1}, {"op": "login"},
    {"op": "login", "username": {}, "password": []}, {"op": "login", "username": OWNER, "password": "x" * 100_000},
    {"op": "login", "username": "\0", "password": "\0"},
)  # fmt: skip
WITH_SESSION: tuple[dict[str, Any], ...] = (
    {"op": "submit"}, {"op": "submit", "owner": 1, "workflow": [], "argsDict": "x"},
    {"op": "submit", "owner": OWNER, "workflow": "touch", "argsDict": [1]},
    {"op": "submit", "owner": OWNER, "workflow": "touch", "idempotencyKey": {"$ne": 1}},
    {"op": "submit", "owner": OWNER, "workflow": "touch", "priority": "high"},
    {"op": "submit", "owner": {"$ne": None}, "workflow": {"$ne": None}},
    {"op": "submitMany", "owner": OWNER, "workflow": "touch", "jobs": {"0": {}}},
    {"op": "submitMany", "owner": OWNER, "workflow": "touch", "jobs": [{}] * 501},
    {"op": "status"}, {"op": "status", "jobId": {"$ne": None}}, {"op": "status", "jobId": "x", "waitTime": 1e9},
    {"op": "status", "jobId": "x", "waitTime": -1}, {"op": "abort", "jobId": ["x"]}, {"op": "abort", "jobId": None},
    {"op": "list", "queryDict": {"$where": "1"}}, {"op": "list", "limit": -1}, {"op": "list", "skip": "x"},
    {"op": "list", "owner": "../.."}, {"op": "resume", "jobId": "\ud800"}, {"op": "logout", "x": 1},
)  # fmt: skip


@dataclass
class Bed:
    """A service process, its manager, and peers to trouble it with."""

    process: Process
    running: Running
    peers: Peers
    secret: Path

    @property
    def rss(self) -> int:
        """Resident bytes of the service."""
        assert self.process.process is not None
        return int(psutil.Process(self.process.process.pid).memory_info().rss)

    def works(self) -> None:
        """Another peer is served."""
        with contextlib.closing(self.peers.socket(self.secret)) as fresh:
            assert Plain(fresh).ask(op="ping")["result"]["account"] == OWNER

    def jobs(self) -> int:
        """How many jobs there are."""
        return len(self.running.api().listProcessingJobs(keyList=["id"]))

    def raw(self, events: bool = False) -> socket.socket:
        """A TCP connection."""
        address = self.peers.events_address if events else self.peers.address
        return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30)


def make_bed(
    storage_site: storage.Site, database: str, certificates: Path, directory: Path, **changes: Any
) -> tuple[Process, Running, Peers]:
    ports = {"zeromq_port": free_port(), "zeromq_events_port": free_port(), "zeromq_keys": str(directory / "keys")}
    process = Process(storage_site, database, certificates, directory, free_port(), **ports, **changes)
    process.start()
    addresses = [f"tcp://127.0.0.1:{ports[name]}" for name in ("zeromq_port", "zeromq_events_port")]
    return process, Running(storage_site, process.url), Peers(addresses[0], addresses[1], directory / "keys")


@pytest.fixture(scope="module")
def bed(
    storage_site: storage.Site, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bed]:
    process, running, peers = make_bed(storage_site, mongo_url, certificates, tmp_path_factory.mktemp("bed"))
    try:
        running.workflow({"1": {"command": "true"}}, "touch")
        secret = client_key(peers.directory, OWNER, "manager", all_events=True)
        time.sleep(1.1)
        yield Bed(process, running, peers, secret)
    finally:
        for api in peers.apis:
            api.close()
        peers.context.destroy(linger=0)
        running.close()
        assert process.stop() == 0, process.log.read_text()[-3000:]
    assert "met a defect" not in process.log.read_text()


def drained(connection: socket.socket) -> None:
    """Read until the other side closes."""
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


# --- below CURVE -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [False, True])
def test_random_bytes_on_the_wire(bed: Bed, events: bool) -> None:
    chance = random.Random(47)
    for _ in range(50):
        with bed.raw(events) as connection, contextlib.suppress(OSError):
            connection.sendall(chance.randbytes(chance.randrange(1, 4096)))
            connection.shutdown(socket.SHUT_WR)
            drained(connection)
    for greeting in (GREETING, NULL_GREETING, GREETING[:20], b""):
        with bed.raw(events) as connection, contextlib.suppress(OSError):
            connection.sendall(greeting + chance.randbytes(500))
            connection.shutdown(socket.SHUT_WR)
            drained(connection)
    bed.works()


@pytest.mark.parametrize("flags", [0x02, 0x06])  # a long message, a long command
def test_a_declared_gigabyte_before_the_handshake(bed: Bed, flags: int) -> None:
    before = bed.rss
    for _ in range(20):
        with bed.raw() as connection, contextlib.suppress(OSError):
            connection.sendall(GREETING + bytes([flags]) + struct.pack(">Q", 1 << 30))
            for _ in range(64):
                connection.sendall(bytes(65536))
            connection.shutdown(socket.SHUT_WR)
            drained(connection)
    assert bed.rss - before < 60 * MIB
    bed.works()


@pytest.mark.parametrize("kind", ["null", "foreign"])
def test_without_a_key_that_is_let_in_nothing_runs(bed: Bed, kind: str, tmp_path: Path) -> None:
    before = bed.jobs()
    secret = None if kind == "null" else curve.make(tmp_path, "foreign")[1]
    rest = bed.running.rest()
    rest.login()
    stranger = bed.peers.plain(secret)
    request = {"op": "submit", "session": rest.cookie, "owner": OWNER, "workflow": "touch"}
    with contextlib.suppress(zmq.Again):  # it may have been turned away already; a send would wait for ever
        stranger.socket.send(
            json.dumps({"id": 1, **request, "argsDict": {"filePath": "/dev/null"}}).encode(), zmq.NOBLOCK
        )
    subscriber = bed.peers.socket(secret, zmq.SUB)
    bed.works()
    job = bed.running.finished(bed.running.start("touch"))
    assert job["status"] == "done"
    assert not stranger.socket.poll(500) and not subscriber.poll(100)
    assert bed.jobs() == before + 1  # the one of REST


# --- with a key ------------------------------------------------------------------------------------------------


@pytest.fixture
def peer(bed: Bed) -> Iterator[Plain]:
    found = bed.peers.plain(bed.secret)
    yield found
    found.socket.close()


def test_valid_jobs_without_a_session_are_refused(bed: Bed, peer: Plain) -> None:
    before = bed.jobs()
    job = {"owner": OWNER, "workflow": "touch", "argsDict": {"filePath": "/dev/null"}}
    assert peer.ask(op="submit", **job)["error"]["errorClass"] == "AuthenticationError"
    assert peer.ask(op="submit", session="x" * 43, **job)["error"]["errorClass"] == "InvalidSession"
    assert peer.ask(op="submitMany", owner=OWNER, workflow="touch", jobs=[{}])["error"]["errorCode"] == 6
    session = peer.login(OWNER)
    assert peer.ask(op="submit", session=session + "x", **job)["error"]["errorClass"] == "InvalidSession"
    peer.ask(op="logout", session=session)
    answer = peer.ask(op="submit", session=session, **job)
    assert answer["error"]["errorClass"] == "InvalidSession" and answer["error"]["requestId"]
    assert bed.jobs() == before


def test_bytes_that_are_no_request(bed: Bed, peer: Plain) -> None:
    chance = random.Random(48)
    texts = [chance.randbytes(chance.randrange(0, 3000)) for _ in range(50)]
    texts += [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"op": "ping", "op": "ping"}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"NaN",
        b"1e999",
    ]
    texts += [b"9" * 100_000, b'"' + b"x" * 4 * MIB + b'"', b'{"op": "ping", "id": NaN}']
    for text in texts:
        peer.socket.send(text)
        answer = peer.answer()
        assert answer["id"] is None and answer["error"]["errorClass"] == "InvalidRequest", text[:80]
        assert len(answer["error"]["errorMessage"]) < 500
    bed.works()


def test_json_of_the_wrong_type(bed: Bed, peer: Plain) -> None:
    before = bed.jobs()
    for value in WRONG:
        peer.socket.send(json.dumps(value).encode())
        answer = peer.answer()
        assert answer["error"]["errorClass"] in {"InvalidRequest", "AuthenticationError", "AuthorizationError"}, value
    session = peer.login(OWNER)
    for request in WITH_SESSION:
        answer = peer.ask(session=session, **request)
        assert answer["error"]["errorCode"] in {7, 8, 14, 19}, (request, answer)
        assert "Internal error" not in answer["error"]["errorMessage"]
    assert bed.jobs() == before
    assert peer.ask(op="ping")["result"]


def test_frames_too_many(bed: Bed, peer: Plain) -> None:
    for frames in ([b"x"] * 1000, [b"", b""], [b"", b"", b"{}"], [b"{}", b"{}"], [b""] * 1000):
        peer.socket.send_multipart(frames)
        assert peer.answer()["error"]["errorClass"] == "InvalidRequest"
    bed.works()


def test_a_frame_too_large_costs_its_peer_the_connection(bed: Bed) -> None:
    before = bed.rss
    with contextlib.closing(bed.peers.socket(bed.secret)) as greedy:
        greedy.send(bytes(64 * MIB))
        assert not greedy.poll(1000)
    assert bed.rss - before < 60 * MIB
    bed.works()


def test_a_routing_id_of_ones_own_is_refused(bed: Bed) -> None:
    context: zmq.Context[Any] = bed.peers.context
    with contextlib.closing(context.socket(zmq.DEALER)) as named:
        named.setsockopt(zmq.LINGER, 0)
        named.setsockopt(zmq.ROUTING_ID, b"me")
        pair = curve.read_secret(bed.secret)
        named.curve_serverkey = curve.read(bed.peers.directory / "server.key").public
        named.curve_publickey, named.curve_secretkey = pair.public, pair.secret
        named.connect(bed.peers.address)
        named.send(b'{"op": "ping"}')
        assert "routing id" in Plain(named).answer()["error"]["errorMessage"]


def test_a_peer_that_never_reads(bed: Bed, peer: Plain) -> None:
    session = peer.login(OWNER)
    job = bed.running.finished(bed.running.start("touch", x="x" * MIB))  # its record is large
    before = bed.rss
    with contextlib.closing(bed.peers.context.socket(zmq.DEALER)) as slow:
        for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.SNDHWM, 0), (zmq.RCVBUF, 4096)):
            slow.setsockopt(option, value)
        pair = curve.read_secret(bed.secret)
        slow.curve_serverkey = curve.read(bed.peers.directory / "server.key").public
        slow.curve_publickey, slow.curve_secretkey = pair.public, pair.secret
        slow.connect(bed.peers.address)
        for number in range(3000):
            slow.send(json.dumps({"id": number, "op": "ping", "x": "x" * (number % 60_000)}).encode())
            if not number % 10:
                request = {"id": number, "op": "status", "session": session, "jobId": job["id"]}
                slow.send(json.dumps(request).encode())
        for _ in range(5):
            bed.works()
        assert peer.ask(op="status", session=session, jobId=job["id"])["result"]["x"] == "x" * MIB
    assert bed.rss - before < 150 * MIB


def test_a_subscriber_that_never_reads(bed: Bed) -> None:
    before = bed.rss
    slow = bed.peers.socket(bed.secret, zmq.SUB)
    slow.setsockopt(zmq.RCVHWM, 1)
    for _ in range(2000):  # subscriptions too cost little
        slow.subscribe(uuid.uuid4().hex.encode())
    slow.subscribe(b"x" * 100_000)  # more than a subscription may have
    jobs = bed.running.api().startProcessingJobs(
        OWNER, "touch", [{"argsDict": {"filePath": "/dev/null"}} for _ in range(20)]
    )
    for job in jobs:
        assert bed.running.finished(job)["status"] == "done"
    bed.works()
    assert bed.rss - before < 100 * MIB
    slow.close()


def test_a_thousand_peers(bed: Bed) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    context: zmq.Context[Any] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, 2000)
    pair = curve.read_secret(bed.secret)
    server = curve.read(bed.peers.directory / "server.key").public
    try:
        sockets = []
        for _ in range(1000):
            one = context.socket(zmq.DEALER)
            one.curve_serverkey, one.curve_publickey, one.curve_secretkey = server, pair.public, pair.secret
            one.connect(bed.peers.address)
            sockets.append(one)
        for number, one in enumerate(sockets):
            one.send(json.dumps({"id": number, "op": "ping"}).encode())
        for number, one in enumerate(sockets):
            assert one.poll(60_000), f"peer {number} got no answer"
            answer = json.loads(one.recv())
            assert answer["id"] == number and answer["result"]["account"] == OWNER
        bed.works()
    finally:
        context.destroy(linger=0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_requests_of_one_peer_are_limited(bed: Bed, peer: Plain) -> None:
    session = peer.login(OWNER)
    bed.running.workflow({"1": {"command": "sleep 60"}}, "slow")
    job = bed.running.start("slow")
    for number in range(100):
        request = {"id": number, "op": "status", "session": session, "jobId": job["id"], "waitTime": 30}
        peer.socket.send(json.dumps(request).encode())
    refused = [peer.answer() for _ in range(100 - 32)]
    assert {answer["error"]["errorClass"] for answer in refused} == {"ServiceLimit"}
    bed.works()
    bed.running.api().stopProcessingJob(OWNER, job["id"])
    for _ in range(32):
        assert peer.answer()["result"]["status"] == "aborted"


def test_idle_it_takes_no_time(bed: Bed) -> None:
    assert bed.process.process is not None
    process = psutil.Process(bed.process.process.pid)
    before = process.cpu_times()
    time.sleep(3)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.3


# --- the service dies ------------------------------------------------------------------------------------------


def kills(
    storage_site: storage.Site, database: str, certificates: Path, directory: Path, rounds: int, clients: int
) -> None:
    """Kill the service again and again while clients submit; every key must have made exactly one job."""
    process, running, peers = make_bed(storage_site, database, certificates, directory)
    keys_given: list[str] = []
    problems: list[str] = []
    done = threading.Event()
    secret = client_key(peers.directory, OWNER, "manager")
    lock = threading.Lock()
    answers: dict[str, str] = {}

    def submit(api: ProcZmqApi) -> None:
        while not done.is_set():
            key = str(uuid.uuid4())
            with lock:
                keys_given.append(key)
            try:
                job = api.submit(OWNER, "touch", {"filePath": "/dev/null", "key": key}, key)
                answers[key] = job["id"]
            except DmException as error:
                problems.append(f"{type(error).__name__}: {error}")
                return

    try:
        running.workflow({"1": {"command": "true"}}, "touch")
        time.sleep(1.1)
        threads = [threading.Thread(target=submit, args=(peers.api(OWNER, secret),)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for number in range(rounds):
            before = len(answers)
            deadline = time.monotonic() + 60
            while len(answers) < before + 5 and not problems and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.01 * (number % 3))
            process.kill()
            process.start()
        done.set()
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive()
        assert not problems
        with contextlib.closing(Running(storage_site, process.url)) as checking:
            api = checking.api()
            found = api.listProcessingJobs(OWNER, keyList=["id", "key"])
            assert sorted(job["key"] for job in found) == sorted(keys_given)
            assert {job["key"]: job["id"] for job in found} == answers
            for job in found:
                assert api.waitProcessingJob(OWNER, job["id"], 60)["status"] == "done"
    finally:
        done.set()
        for api in peers.apis:
            api.close()
        peers.context.destroy(linger=0)
        running.close()
        if process.process is not None and process.process.poll() is None:
            process.stop()


def test_killed_under_load_each_key_makes_one_job(
    storage_site: storage.Site, new_mongo_database: Any, certificates: Path, tmp_path: Path
) -> None:
    kills(storage_site, new_mongo_database(), certificates, tmp_path, 1, 3)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_under_load_many_times(
    storage_site: storage.Site, new_mongo_database: Any, certificates: Path, tmp_path: Path
) -> None:
    kills(storage_site, new_mongo_database(), certificates, tmp_path, 20, 8)
