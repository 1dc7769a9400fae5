"""The embedded databases: started once, found again, safe after kill -9, gone after stop."""

import os
import signal
import socket

import psutil
import psycopg2
import pytest
from pymongo import MongoClient
from sqlalchemy import create_engine, text

from dm.common.embedded import EmbeddedMongo, EmbeddedPostgres
from dm.common.errors import ServiceUnavailable
from dm.common.hosting import free_port


def _fetch(url, statement):
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def test_postgres_keeps_committed_rows_over_kill_and_is_found_again(open_directory):
    server = EmbeddedPostgres(open_directory / "pg")
    url = server.start()
    try:
        pid = server.running()
        assert EmbeddedPostgres(open_directory / "pg").start() == url
        assert EmbeddedPostgres(open_directory / "pg").running() == pid
        _fetch(url, "CREATE TABLE t AS SELECT 42 AS n")
        os.kill(pid, signal.SIGKILL)
        assert EmbeddedPostgres(open_directory / "pg").start() == url
        assert _fetch(url, "SELECT n FROM t") == 42
    finally:
        server.stop()
    assert server.running() is None
    server.stop()


def test_postgres_listens_on_a_private_socket_only_and_the_role_is_not_a_superuser(postgres_server):
    process = psutil.Process(postgres_server.running())
    assert not process.net_connections(kind="inet")
    assert process.uids().effective != 0
    assert postgres_server.socket_directory.stat().st_mode & 0o777 == 0o700
    assert postgres_server.data.stat().st_mode & 0o777 == 0o700
    assert _fetch(postgres_server.url(), "SELECT usesuper FROM pg_user WHERE usename = current_user") is False


def test_postgres_refuses_other_accounts_even_with_the_socket_in_reach(postgres_server):
    rules = (postgres_server.data / "pg_hba.conf").read_text()
    assert rules == "local  all  all  peer  map=dm\n"
    if os.geteuid() != 0:
        return  # only root can try it as somebody else
    directory = postgres_server.socket_directory
    socket_file = directory / ".s.PGSQL.5432"
    directory.chmod(0o755)
    socket_file.chmod(0o777)
    try:
        answers = {}
        for role in ("dm", "postgres"):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.setuid(65534)
                try:
                    psycopg2.connect(host=str(directory), user=role, dbname="dm")
                    os.write(writer, b"let in")
                except psycopg2.OperationalError as error:
                    os.write(writer, str(error).encode())
                os._exit(0)
            os.close(writer)
            os.waitpid(pid, 0)
            with os.fdopen(reader) as pipe:
                answers[role] = pipe.read()
    finally:
        socket_file.chmod(0o700)
        directory.chmod(0o700)
    assert all("Peer authentication failed" in answer for answer in answers.values()), answers


def test_postgres_with_a_path_too_long_for_a_socket(open_directory):
    deep = open_directory / ("d" * 60) / ("e" * 60)
    server = EmbeddedPostgres(deep, durable=False)
    try:
        assert _fetch(server.start(), "SELECT 1") == 1
        assert server.socket_directory.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()
    assert not server.socket_directory.exists()


def test_mongo_keeps_acknowledged_documents_over_kill_and_is_found_again(open_directory):
    server = EmbeddedMongo(open_directory / "mongo")
    url = server.start()
    try:
        assert EmbeddedMongo(open_directory / "mongo").start() == url
        with MongoClient(url, w="majority", journal=True) as client:
            client.get_default_database()["c"].insert_one({"_id": "a", "n": 42})
        os.kill(server.running(), signal.SIGKILL)
        assert EmbeddedMongo(open_directory / "mongo", server.port).start() == url
        with MongoClient(url) as client:
            assert client.get_default_database()["c"].find_one({"_id": "a"})["n"] == 42
        listening = {c.laddr.ip for c in psutil.Process(server.running()).net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
    finally:
        server.stop()
    assert server.running() is None


def test_mongo_on_a_port_of_somebody_else_says_so(open_directory):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServiceUnavailable, match="does not start"):
            EmbeddedMongo(open_directory / "mongo", port).start()


def test_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
