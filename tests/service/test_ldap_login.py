"""Logins that a real slapd checks: who may, what hostile names and passwords do, outages, false certificates."""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dm.common import tls
from dm.common.client import RestClient
from dm.common.errors import DmException, ServiceUnavailable
from dm.site.identity.ldap.login import Breaker
from tests.service import storage_fixtures as fx
from tests.service.ldap_fixtures import checking, settings, site_with_ldap
from tests.service.slapd_server import Slapd, running_slapd, until

ANNA, BERT = "d700001", "d700002"
SECRET = "directory-secret"
BAD = "Incorrect username or password."
AWAY = "directory does not answer"


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with running_slapd(tmp_path_factory.mktemp("ldap") / "slapd") as server:
        for number, name in enumerate((ANNA, BERT, "d700009", fx.ALICE)):
            server.add_person(name, SECRET, 50_000 + number)
        yield server


@pytest.fixture(scope="module")
def site(
    slapd: Slapd, new_postgres_database: Callable[[], str], certificates: Path, run_directory: Path
) -> Iterator[fx.Site]:
    directory = run_directory / "ldap-login"
    with site_with_ldap(
        new_postgres_database(), certificates, directory, slapd, login_timeout_seconds=2, login_connections=4
    ) as found:
        for name in (ANNA, BERT):
            found.service.use_cases.users.add(name)
        yield found


@contextmanager
def caller(site: fx.Site, username: str, password: str) -> Iterator[RestClient]:
    client = RestClient(site.url, username, password, ca_file=site.ca_file, timeout=30)
    try:
        yield client
    finally:
        client.close()


def login(site: fx.Site, username: str, password: str) -> str:
    """Try to log in and return what the service says: who it is, or the error's text."""
    with caller(site, username, password) as client:
        try:
            return str(client.get("/session")["username"])
        except DmException as error:
            return str(error)


def refused(site: fx.Site, username: str, password: str) -> type[DmException]:
    with caller(site, username, password) as client, pytest.raises(DmException) as caught:
        client.login()
    return type(caught.value)


def test_who_has_no_password_here_is_checked_at_the_directory(site: fx.Site) -> None:
    assert login(site, ANNA, SECRET) == ANNA
    assert login(site, ANNA, "wrong one") == BAD
    assert login(site, fx.BOB, fx.password_of(fx.BOB)) == fx.BOB  # a local account beside it
    assert login(site, fx.ALICE, SECRET) == BAD  # has a password here: the directory's is not taken
    assert login(site, fx.ALICE, fx.password_of(fx.ALICE)) == fx.ALICE


def test_who_the_site_does_not_know_is_refused_and_not_created(site: fx.Site) -> None:
    assert login(site, "d700009", SECRET) == BAD
    with caller(site, fx.ADMIN, fx.password_of(fx.ADMIN)) as client:
        assert "d700009" not in {user["username"] for user in client.get("/users")}


def test_who_is_not_active_is_refused_whatever_the_directory_says(site: fx.Site) -> None:
    assert login(site, BERT, SECRET) == BERT
    with site.service.store.transaction() as connection:
        connection.exec_driver_sql("UPDATE users SET active = false WHERE username = %s", (BERT,))
    assert login(site, BERT, SECRET) == BAD
    with site.service.store.transaction() as connection:
        connection.exec_driver_sql("UPDATE users SET active = true WHERE username = %s", (BERT,))


def test_a_password_of_the_directory_is_not_changed_here(site: fx.Site) -> None:
    with caller(site, ANNA, SECRET) as client, pytest.raises(DmException, match="facility's directory"):
        client.put(f"/usersByUsername/{ANNA}/password", {"oldPassword": SECRET, "newPassword": "another secret"})


@pytest.mark.parametrize(
    "how",
    [
        lambda slapd: {"servers": [slapd.start_tls_url]},
        lambda slapd: {"servers": [slapd.start_tls_url], "allow_plain_loopback": True},
        lambda slapd: {"user_dn_template": f"uid={{username}},{slapd.people}"},
        lambda slapd: {"servers": ["ldaps://localhost:1", slapd.url]},
    ],
    ids=["StartTLS", "plain-loopback", "dn-template", "second-server"],
)
def test_ways_to_the_directory(slapd: Slapd, how: Callable[[Slapd], dict[str, object]]) -> None:
    before = slapd.log().count("STARTTLS")
    with checking(slapd, **how(slapd)) as directory:
        assert directory.matches(ANNA, SECRET, known=True)
        assert not directory.matches(ANNA, "wrong", known=True)
        assert not directory.matches(ANNA, SECRET, known=False)
        assert not directory.matches(ANNA, "", known=True)
    encrypted = how(slapd).get("servers") == [slapd.start_tls_url] and not how(slapd).get("allow_plain_loopback")
    assert (slapd.log().count("STARTTLS") > before) == encrypted


def test_settings_that_would_give_passwords_away_are_refused(slapd: Slapd) -> None:
    with pytest.raises(ValueError, match="of this machine only"):
        settings(slapd, servers=["ldap://ldap.example.org"], allow_plain_loopback=True)
    for key, value in (
        ("servers", ["http://localhost"]),
        ("servers", []),
        ("user_filter", "(uid=*)"),
        ("user_dn_template", "uid=x"),
        ("people_base", "nonsense"),
        ("extra_members", ["data mover"]),
        ("gid_last", 1000),
    ):
        with pytest.raises(ValueError, match=key if key != "gid_last" else "range"):
            settings(slapd, **{key: value})


HOSTILE = [
    ("", SECRET), ("*", SECRET), ("*)(uid=*", SECRET), ("*)(objectClass=*", SECRET), (f"{ANNA})(|(uid=*", SECRET),
    (f"uid={ANNA},ou=people", SECRET), ("uid=a,ou=b", SECRET), (f"{ANNA}\\2a", SECRET), (f"{ANNA}*", SECRET),
    (f" {ANNA}", SECRET), (f"{ANNA} ", SECRET), (f"{ANNA}\0", SECRET), (f"{ANNA}\n", SECRET), ("d70000é", SECRET),
    ("(" * 60, SECRET), ("a" * 300, SECRET), (ANNA, "x" * 1_000_000), (ANNA, f"{SECRET}\0"), (ANNA, "*"),
    (ANNA, f"{SECRET} "), ("cn=admin,dc=facility,dc=example", "slapd-admin-secret"),
]  # fmt: skip


def test_f34_hostile_names_and_passwords(site: fx.Site, slapd: Slapd) -> None:
    """The same refusal for all, and slapd itself never saw a wider filter, an empty password or another's DN."""
    begin = len(slapd.log())
    site.service.application.throttle = _Unthrottled()  # type: ignore[assignment]
    verified = tls.client_context(site.ca_file)
    with httpx.Client(verify=verified, timeout=30) as client:
        for name, password in [*HOSTILE, (ANNA, "")]:
            reply = client.post(
                f"{site.url.removesuffix('/dm')}/dm/login", data={"username": name, "password": password}
            )
            assert (reply.status_code, reply.json()["errorMessage"]) == (401, BAD), name
    seen = slapd.log()[begin:]
    filters = re.findall(r'base="ou=people[^"]*" .*filter="(.*)"', seen)
    assert filters
    narrow = re.compile(r"\(&\(objectClass=posixAccount\)\(uid=([^()*\\]|\\[0-9A-F]{2})+\)\)")
    assert [text for text in filters if not narrow.fullmatch(text)] == []
    binds = set(re.findall(r'BIND dn="([^"]*)" method', seen))
    assert "" not in binds
    decoys = {dn for dn in binds if re.fullmatch(rf"cn=[0-9a-f]{{16}},{slapd.people}", dn)}
    assert binds == {slapd.service_dn, f"uid={ANNA},{slapd.people}"} | decoys
    assert "nentries=2" not in seen


class _Unthrottled:
    @contextmanager
    def attempt(self, username: str, remote: str) -> Iterator[None]:
        yield


def test_f34_unknown_names_and_wrong_passwords_cost_the_directory_the_same(slapd: Slapd) -> None:
    def operations(username: str, password: str, known: bool) -> list[str]:
        begin = len(slapd.log())
        assert not directory.matches(username, password, known)
        until(lambda: "UNBIND" in slapd.log()[begin:], what="unbind")
        return re.findall(r"op=\d+ (BIND|SRCH|UNBIND)(?= dn| base|$)", slapd.log()[begin:], re.MULTILINE)

    with checking(slapd) as directory:
        wrong = operations(ANNA, "wrong", True)
        assert wrong.count("BIND") >= 2
        assert wrong.count("SRCH") == 1
        assert operations("d799999", "wrong", False) == wrong  # unknown everywhere
        assert operations(fx.ALICE, SECRET, False) == wrong  # one the directory is not asked about
        assert operations("*)(uid=*", "wrong", False) == wrong


def test_f28_directory_down_and_back(site: fx.Site, slapd: Slapd) -> None:
    with caller(site, ANNA, SECRET) as session:
        session.get("/session")
        slapd.stop()
        try:
            for name, password in ((ANNA, SECRET), (ANNA, "wrong"), ("d799999", "wrong"), (fx.BOB, "wrong")):
                assert refused(site, name, password) is ServiceUnavailable, name  # nobody learns who exists
            assert login(site, fx.BOB, fx.password_of(fx.BOB)) == fx.BOB
            assert session.get("/session")["username"] == ANNA
        finally:
            slapd.start()
        until(lambda: login(site, ANNA, SECRET) == ANNA, what="a login after the outage")


def test_f28_directory_hangs(slapd: Slapd) -> None:
    """Nobody waits longer than the limit, and so many threads hang as there are places, however many come."""
    others = {thread for thread in threading.enumerate() if thread.name.startswith("ldap-login")}
    with checking(slapd, login_timeout_seconds=1, login_connections=3) as directory:
        directory.breaker = Breaker(pause=0.3)
        os.kill(slapd.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(12) as crowd:
                ends = list(crowd.map(lambda number: _ends(directory, f"d7{number:05d}"), range(36)))
            assert all(AWAY in end or "Too many logins" in end for end in ends)
            mine = {thread for thread in threading.enumerate() if thread.name.startswith("ldap-login")} - others
            assert len(mine) <= 3
            assert directory.breaker.open
        finally:
            os.kill(slapd.pid, signal.SIGCONT)
        until(lambda: _ends(directory, ANNA) == "True", what="a login after the outage")


@pytest.mark.long
def test_f28_directory_hangs_for_thirty_seconds(site: fx.Site, slapd: Slapd) -> None:
    with caller(site, ANNA, SECRET) as session:
        session.get("/session")
        os.kill(slapd.pid, signal.SIGSTOP)
        try:
            for _ in range(6):  # more guesses than ten would be limited
                began = time.monotonic()
                assert refused(site, ANNA, SECRET) is ServiceUnavailable
                assert time.monotonic() - began < 5
                assert session.get("/session")["username"] == ANNA
                time.sleep(max(began + 5 - time.monotonic(), 0))
        finally:
            os.kill(slapd.pid, signal.SIGCONT)
        until(lambda: login(site, ANNA, SECRET) == ANNA, what="a login after the outage")


def _ends(directory: object, username: str) -> str:
    try:
        return str(directory.matches(username, SECRET, known=True))  # type: ignore[attr-defined]
    except ServiceUnavailable as error:
        return str(error)


@contextmanager
def broken_peer(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Answer every request with these bytes, whatever it is; yield the URL and what was heard."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(2)
                    try:
                        while data := connection.recv(65536):
                            heard.append(data)
                            connection.sendall(answer)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"ldap://127.0.0.1:{listener.getsockname()[1]}", heard
        finally:
            stopped.set()
            thread.join()


def _message(operation: int, body: bytes) -> bytes:
    """Return an LDAP answer to the first message of a connection."""
    inner = b"\x02\x01\x01" + bytes([operation, len(body)]) + body
    return b"\x30" + bytes([len(inner)]) + inner


def _referral_to(url: str) -> bytes:
    encoded = url.encode()
    uris = b"\x04" + bytes([len(encoded)]) + encoded
    return _message(0x61, b"\x0a\x01\x0a\x04\x00\x04\x00\xa3" + bytes([len(uris)]) + uris)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x30\x84\x7f\xff\xff\xff" + b"\x00" * 64,
        b"\x00" * 4096,
        os.urandom(512),
        b"\x30\x03\x02\x01\x01",
        _message(0x61, b"\x0a\x01\x34\x04\x00\x04\x00"),
        b"",
    ],
    ids=["http", "endless", "zeros", "noise", "half", "unavailable", "silence"],
)
@pytest.mark.parametrize("plain", [True, pytest.param(False, marks=pytest.mark.long)], ids=["plain", "StartTLS"])
def test_f28_garbage(slapd: Slapd, answer: bytes, plain: bool) -> None:
    with (
        broken_peer(answer) as (url, heard),
        checking(slapd, servers=[url], allow_plain_loopback=plain, login_timeout_seconds=0.3) as directory,
    ):
        assert AWAY in _ends(directory, ANNA)
        assert heard
        assert SECRET.encode() not in b"".join(heard)


def test_f28_referrals_are_not_followed(slapd: Slapd) -> None:
    with (
        broken_peer(_message(0x61, b"\x0a\x01\x00\x04\x00\x04\x00")) as (elsewhere, elsewhere_heard),
        broken_peer(_referral_to(elsewhere)) as (url, heard),
        checking(
            slapd, servers=[url], allow_plain_loopback=True, user_dn_template=f"uid={{username}},{slapd.people}"
        ) as directory,
    ):
        assert AWAY in _ends(directory, ANNA)
        assert heard
        assert not elsewhere_heard


def test_the_breaker_lets_one_in_after_a_while() -> None:
    breaker = Breaker(failures=2, pause=0.2)
    for _ in range(2):
        breaker.admit()
        breaker.note(good=False)
    with pytest.raises(ServiceUnavailable):
        breaker.admit()
    until(lambda: _admitted(breaker), what="an errand on trial")
    assert not _admitted(breaker)
    breaker.note(good=True)
    assert _admitted(breaker)
    assert _admitted(breaker)


def _admitted(breaker: Breaker) -> bool:
    try:
        breaker.admit()
    except ServiceUnavailable:
        return False
    return True


def _certificate(directory: Path, file: str, *, host: str, days: int = 1, self_signed: bool = False) -> None:
    """Issue a certificate for slapd, good or not."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    authority = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if self_signed else authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), False)
        .sign(key if self_signed else signer, hashes.SHA256())
    )
    (directory / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / f"{file}.key").write_bytes(encoded)


@pytest.mark.parametrize("scheme", ["ldaps", pytest.param("StartTLS", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("good", ""),
        ("other-host", "Hostname mismatch"),
        ("expired", "expired"),
        ("self-signed", "self-signed|unable to get local issuer"),
    ],
)
def test_f35_false_certificates_are_refused(
    tmp_path: Path, fault: str, what: str, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = tmp_path / "slapd" / "certificates"
    certificates.mkdir(parents=True)
    tls.make_authority(certificates)
    _certificate(
        certificates,
        fault,
        host="elsewhere.example.org" if fault == "other-host" else "localhost",
        days=-1 if fault == "expired" else 1,
        self_signed=fault == "self-signed",
    )
    with running_slapd(tmp_path / "slapd", certificate=fault) as slapd:
        slapd.add_person(ANNA, SECRET)
        begin = len(slapd.log())
        url = slapd.url if scheme == "ldaps" else slapd.start_tls_url
        with checking(slapd, servers=[url]) as directory:
            if fault == "good":
                assert directory.matches(ANNA, SECRET, known=True)
                return
            assert AWAY in _ends(directory, ANNA)
        assert " BIND dn" not in slapd.log()[begin:]
    assert re.search(what, caplog.text), caplog.text
