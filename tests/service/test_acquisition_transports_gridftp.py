"""The gridftp transport against real servers on loopback: anonymous, with GSI, and with a MyProxy credential."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import xxhash

from dm.common.errors import CommunicationError, ConfigurationError, InvalidArgument, ServiceUnavailable, TransferError
from dm.station.acquisition.transports.base import FileOutcome, FileStamp, Source, TransferBatch, TransferFile
from dm.station.acquisition.transports.gridftp import GridFtp
from dm.station.acquisition.transports.gridftp_credentials import Credentials, ends
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings, MyProxySettings
from dm.station.acquisition.transports.offering import OPEN_FILES
from tests.faults.namespace import namespace
from tests.service.acquisition_hosts import free_port
from tests.service.gridftp_server import GridAuthority, GridFtpServer, MyProxyServer, running

PLAIN = [
    b"plain.h5", b" lead", b"trail ", b"%41", b"%2F", b"%00", b"#", b"?", b"'q\"", b"$(id)", b";", b"-rf", b"--delete",
    b"*", b"[x]", b"{a,b}", b"back\\slash", b"c\\#012", b"a:b", b"tab\tx", b"~x", b"@x", b"a&b=c+d", b"n" * 255,
]  # fmt: skip
WITH_GSI = [
    b"new\nline", b"cr\rx", b"\x01\x1b", b"\xff\xfe", "é".encode(), "e\u0301".encode(), "日本😀".encode(),
    "üñï-日本.h5".encode(),
]  # fmt: skip
NEW = FileStamp(0, 0)
NEVER = [b"end\r\nx", b"last\n"]
PASSWORD = "pass phrase of the station"


@pytest.fixture(scope="module")
def credential(authority: GridAuthority) -> dict[str, Any]:
    """Settings that prove who we are."""
    certificate, key = authority.issue("station")
    return {"certificate": certificate, "key": key, "certificates": authority.certificates}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "staging").mkdir(mode=0o700)
    return tmp_path


@contextmanager
def transport(*servers: GridFtpServer | str, **settings: Any) -> Iterator[GridFtp]:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    values = {"servers": {"storage.test": {"urls": urls}} if urls else {}, "io_timeout": 30} | settings
    gridftp = GridFtp(GridFtpSettings.model_validate(values))
    try:
        yield gridftp
    finally:
        gridftp.close()


def local(root: Path) -> Source:
    return Source(str(root / "data"), os.fsencode(root / "data"))


def at(server: GridFtpServer, directory: Path | bytes) -> Source:
    parts = urlsplit(server.url)
    path = os.fsencode(directory)
    return Source(f"{server.url}{os.fsdecode(path)}", path, parts.hostname, parts.scheme, parts.port)


def batch(source: Source, root: Path, *paths: bytes, host: str | None = "storage.test") -> TransferBatch:
    files = [TransferFile(path, 0, 0, f"f{number:06d}") for number, path in enumerate(paths)]
    return TransferBatch("b1", source, files, os.fsencode(root / "staging"), host)


def write(root: Path, path: bytes, content: bytes) -> None:
    target = os.path.join(os.fsencode(root / "data"), path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as stream:
        stream.write(content)


def fill(root: Path, names: list[bytes]) -> list[bytes]:
    paths = names + [b"deep/er/" + name for name in names]
    for path in paths:
        write(root, path, b"content of " + path)
    return paths


def assert_moved(outcomes: list[FileOutcome], root: Path, paths: list[bytes]) -> None:
    staging = root / "staging"
    assert len(outcomes) == len(paths)
    for outcome in outcomes:
        content = b"content of " + paths[int(outcome.staged_name[1:])]
        assert outcome.ok, outcome.error
        assert (staging / outcome.staged_name).read_bytes() == content
        assert outcome.digests == {"xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        assert outcome.md5 == hashlib.md5(content).hexdigest()
        assert outcome.mode & 0o644 == 0o644
    assert sorted(os.listdir(staging)) == sorted(outcome.staged_name for outcome in outcomes)


# --- sending -------------------------------------------------------------------------------------------------------
def test_push_takes_every_name(plain: GridFtpServer, root: Path) -> None:
    paths = fill(root, PLAIN + WITH_GSI + NEVER)
    with transport(plain) as gridftp:
        assert_moved(gridftp.move(batch(local(root), root, *paths)), root, paths)


def test_push_with_a_host_certificate(secure: GridFtpServer, root: Path, credential: dict[str, Any]) -> None:
    paths = fill(root, PLAIN[:2])
    with transport(secure, data_channel="private", **credential) as gridftp:
        assert_moved(gridftp.move(batch(local(root), root, *paths)), root, paths)


def test_push_without_a_server_where_staging_is_here(root: Path) -> None:
    paths = fill(root, PLAIN[:4])
    with transport() as gridftp:
        assert_moved(gridftp.move(batch(local(root), root, *paths, host=None)), root, paths)
        with pytest.raises(TransferError, match=r"No GridFTP server of storage host 'storage\.test' is known"):
            gridftp.move(batch(local(root), root, *paths))


def test_push_of_more_files_than_descriptors_through_several_servers(
    plain: GridFtpServer, place: Path, root: Path
) -> None:
    paths = [f"f{number}".encode() for number in range(OPEN_FILES + 50)]
    for path in paths:
        write(root, path, b"content of " + path)
    dead = f"ftp://127.0.0.1:{free_port()}"
    with (
        running(GridFtpServer(place / "second")) as second,
        transport(plain, dead, second, concurrency=4) as gridftp,
    ):
        assert_moved(gridftp.move(batch(local(root), root, *paths)), root, paths)
        assert b"New connection" in second.log.read_bytes(), "both of the others are used"
        assert gridftp._fleet._resting, "the dead one is left out"


def test_push_through_servers_that_show_a_part_of_the_disk(place: Path, plain: GridFtpServer, root: Path) -> None:
    paths = fill(root, PLAIN[:2])
    shown = {"storage.test": {"urls": [plain.url], "directory": str(root / "other")}}
    with transport(servers=shown) as gridftp, pytest.raises(TransferError, match="is not below"):
        gridftp.move(batch(local(root), root, *paths))


def test_one_bad_file_does_not_hold_back_the_others(plain: GridFtpServer, root: Path) -> None:
    paths = [f"good{number}".encode() for number in range(20)]
    for path in paths:
        write(root, path, b"content of " + path)
    os.mkfifo(root / "data" / "pipe")
    os.symlink("/etc/passwd", root / "data" / "link")
    # a staged name that cannot be written makes globus-url-copy fail in the middle of its list
    (root / "staging" / "f000005").mkdir()
    with transport(plain, concurrency=2) as gridftp:
        outcomes = gridftp.move(batch(local(root), root, *paths, b"pipe", b"link", b"gone"))
    pipe, link, gone = outcomes[-3:]
    assert "not a regular file" in pipe.error and "link" in link.error and gone.vanished
    assert not pipe.transient and not link.transient
    assert [outcome.staged_name for outcome in outcomes[:20] if not outcome.ok] == ["f000005"]
    assert "storage host 'storage.test'" in outcomes[5].error and "directory" in outcomes[5].error.lower()


def test_source_that_changes_under_a_push(plain: GridFtpServer, root: Path) -> None:
    write(root, b"f", b"x" * (4 << 20))
    write(root, b"quiet", b"content of quiet")
    stop = threading.Event()

    def grow() -> None:
        with open(root / "data" / "f", "ab", buffering=0) as stream:
            while not stop.is_set():
                stream.write(b"y" * 512)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with transport(plain) as gridftp:
            grown, quiet = gridftp.move(batch(local(root), root, b"f", b"quiet"))
    finally:
        stop.set()
        writer.join()
    assert not grown.ok and grown.transient and "changed" in grown.error
    assert quiet.ok


def test_what_globus_url_copy_is_given(plain: GridFtpServer, root: Path) -> None:
    """No name and no secret in its arguments, and next to nothing of our environment."""
    seen = root / "seen"
    wrapper = root / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nenv > {seen}\necho "$@" >> {seen}\nexec globus-url-copy "$@"\n')
    wrapper.chmod(0o700)
    paths = fill(root, [b"$(touch pwned)"])
    with transport(plain, program=str(wrapper), parallel=2, tcp_buffer=131072) as gridftp:
        assert_moved(gridftp.move(batch(local(root), root, *paths)), root, paths)
    text = seen.read_text()
    names = {line.partition("=")[0] for line in text.splitlines() if "=" in line}
    assert names <= {"PATH", "TMPDIR", "LC_ALL", "TZ", "X509_CERT_DIR", "PWD", "_", "SHLVL", "OLDPWD"}
    assert "-fast -c -f" in text and "-cc 2" in text and "-p 2" in text and "-tcp-bs 131072" in text
    assert "pwned" not in text and str(root / "data") not in text


def test_programs_that_are_missing(root: Path, plain: GridFtpServer) -> None:
    paths = fill(root, PLAIN[:1])
    with (
        transport(plain, program="no-such-url-copy") as gridftp,
        pytest.raises(ConfigurationError, match="install the package globus-gass-copy-progs"),
    ):
        gridftp.move(batch(local(root), root, *paths))


def test_a_disk_that_is_full_is_named_and_later_taken(root: Path, place: Path) -> None:
    small = root / "staging"
    write(root, b"big", b"b" * (6 << 20))
    write(root, b"little", b"content of little")
    with namespace() as inside:
        inside.mount(small, "size=4m,mode=0700")
        server = GridFtpServer(place / "small-disk", account="root", prefix=inside.prefix)
        with running(server), transport(server) as gridftp:
            big = gridftp.move(batch(local(root), root, b"big", b"little"))[0]
            assert "No space left on device" in big.error and "'storage.test'" in big.error and big.transient
            inside.run("rm", "-f", small / "f000000")
            inside.remount(small, "size=64m")
            again = gridftp.move(batch(local(root), root, b"big", b"little"))
            assert [outcome.ok for outcome in again] == [True, True], again


# --- fetching ------------------------------------------------------------------------------------------------------
def test_pull_from_an_anonymous_server(plain: GridFtpServer, root: Path) -> None:
    paths = fill(root, PLAIN)
    with transport() as gridftp:
        gridftp.check(at(plain, root / "data"))
        assert_moved(gridftp.move(batch(at(plain, root / "data"), root, *paths, host=None)), root, paths)
        for name in os.listdir(root / "staging"):
            assert stat.S_IMODE((root / "staging" / name).stat().st_mode) == 0o600


def test_pull_refuses_names_an_anonymous_server_would_take_for_others(plain: GridFtpServer, root: Path) -> None:
    # without their special characters, these are the names of other files
    for path in (b"e", b"new", b"line", b"newline", b".h5", b"-.h5", b"good"):
        write(root, path, b"content of another file")
    paths = fill(root, WITH_GSI + NEVER)
    with transport() as gridftp:
        source = at(plain, root / "data")
        listed = {entry.path for entry in gridftp.walk(source)}
        assert set(WITH_GSI) - {b"cr\rx"} <= listed
        outcomes = gridftp.move(batch(source, root, *paths, b"good", host=None))
    assert outcomes[-1].ok
    for outcome in outcomes[:-1]:
        assert "characters that anonymous GridFTP cannot carry" in outcome.error and not outcome.transient
    assert os.listdir(root / "staging") == [outcomes[-1].staged_name]


def test_pull_with_gsi_takes_every_name_but_line_ends(
    secure: GridFtpServer, root: Path, credential: dict[str, Any]
) -> None:
    paths = fill(root, PLAIN + WITH_GSI)
    fill(root, NEVER)
    with transport(**credential) as gridftp:
        source = at(secure, root / "data")
        gridftp.check(source)
        assert {entry.path for entry in gridftp.walk(source)} >= set(paths)
        assert_moved(gridftp.move(batch(source, root, *paths, host=None)), root, paths)
        for outcome in gridftp.move(batch(source, root, *NEVER, host=None)):
            assert "a line end that GridFTP cannot carry" in outcome.error and not outcome.transient


def test_from_server_to_server(
    secure: GridFtpServer, plain: GridFtpServer, root: Path, credential: dict[str, Any]
) -> None:
    paths = fill(root, PLAIN + WITH_GSI)
    with transport(plain, **credential) as gridftp:
        outcomes = gridftp.move(batch(at(secure, root / "data"), root, *paths))
    for outcome, path in zip(outcomes, paths, strict=True):
        content = b"content of " + path
        assert outcome.ok, outcome.error
        assert (root / "staging" / outcome.staged_name).read_bytes() == content
        assert outcome.digests == {"sha256": hashlib.sha256(content).hexdigest()}, "read by the source's server"
        assert outcome.md5 == hashlib.md5(content).hexdigest()


def test_pull_one_bad_file_does_not_hold_back_the_others(plain: GridFtpServer, root: Path) -> None:
    for path in (b"good", b"last", b"d/e/deep"):
        write(root, path, b"content of " + path)
    os.mkfifo(root / "data" / "pipe")
    os.symlink("/etc/passwd", root / "data" / "link")
    (root / "outside").mkdir()
    (root / "outside" / "f").write_bytes(b"x")
    os.symlink("../outside", root / "data" / "sub")
    (root / "staging" / "f000001").mkdir()
    paths = [b"good", b"last", b"pipe", b"link", b"sub/f", b"gone", b"d/gone", b"d/e/deep"]
    with transport() as gridftp:
        outcomes = gridftp.move(batch(at(plain, root / "data"), root, *paths, host=None))
    good, last, pipe, link, sub, gone, deep_gone, deep = outcomes
    assert good.ok and deep.ok and not last.ok, [outcome.error for outcome in outcomes]
    assert "not a regular file" in pipe.error and "a link" in link.error and "is a link" in sub.error
    assert not (pipe.transient or link.transient or sub.transient)
    assert gone.vanished and deep_gone.vanished


@pytest.mark.parametrize("asked", [True, False])
def test_source_that_changes_under_a_pull(plain: GridFtpServer, root: Path, asked: bool) -> None:
    write(root, b"f", b"x" * (8 << 20))
    write(root, b"quiet", b"content of quiet")
    stop = threading.Event()

    def rewrite() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            os.utime(root / "data" / "f", (number, number))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        with transport(source_digests=asked) as gridftp:
            changed, quiet = gridftp.move(batch(at(plain, root / "data"), root, b"f", b"quiet", host=None))
    finally:
        stop.set()
        writer.join()
    assert not changed.ok and changed.transient and "changed" in changed.error
    assert quiet.ok and os.listdir(root / "staging") == ["f000001"]


def test_bytes_that_differ_from_what_the_server_reads_are_refused(plain: GridFtpServer, root: Path) -> None:
    """A mover that corrupts: the size is right, the digest is not the one that the source's server reads."""
    write(root, b"f", b"content of f")
    wrapper = root / "wrapper"
    wrapper.write_text(
        f'#!/bin/sh\nglobus-url-copy "$@"; code=$?\nprintf C | dd of={root}/staging/f000000 conv=notrunc status=none\n'
        "exit $code\n"
    )
    wrapper.chmod(0o700)
    with transport(program=str(wrapper)) as gridftp:
        outcome = gridftp.move(batch(at(plain, root / "data"), root, b"f", host=None))[0]
    assert not outcome.ok and outcome.transient and "arrived with MD5" in outcome.error
    assert os.listdir(root / "staging") == []


def test_walk_check_and_remove(plain: GridFtpServer, root: Path) -> None:
    paths = fill(root, PLAIN)
    os.utime(root / "data" / "plain.h5", ns=(0, 1_234_567_890_987_654_321))
    os.mkfifo(root / "data" / "pipe")
    os.symlink("deep", root / "data" / "link")
    (root / "data" / "empty").mkdir()
    (root / "data" / "unsaid \xe9").mkdir()
    source = at(plain, root / "data")
    with transport() as gridftp:
        found = {entry.path: entry for entry in gridftp.walk(source)}
        unsaid = "unsaid é".encode()
        assert set(found) == {*paths, b"pipe", b"link", unsaid}
        stamp = found[b"plain.h5"].stamp
        assert (stamp.size, stamp.mtime_ns) == (len(b"content of plain.h5"), 1_234_567_890_000_000_000)
        assert (found[b"pipe"].kind, found[b"link"].kind, found[b"plain.h5"].kind) == ("other", "link", "file")
        assert found[unsaid].kind == "file", "its content cannot be listed: that shall not go unseen"
        assert {entry.path for entry in gridftp.walk(source, b"deep")} == {b"deep/er/" + name for name in PLAIN}
        assert [entry.path for entry in gridftp.walk(source, b"[x]")] == [b"[x]"]
        assert list(gridftp.walk(source, b"none")) == []
        # what was moved carries the very stamp that was listed, so that the next scan finds nothing new
        outcome = gridftp.move(batch(source, root, b"plain.h5", host=None))[0]
        assert outcome.before == stamp
        assert not gridftp.remove(source, b"plain.h5", FileStamp(stamp.size, stamp.mtime_ns + 10**9))
        assert (root / "data" / "plain.h5").exists()
        assert gridftp.remove(source, b"plain.h5", FileStamp(stamp.size, stamp.mtime_ns))
        assert not (root / "data" / "plain.h5").exists()
        assert not gridftp.remove(source, b"plain.h5", stamp)
        write(root, b"file", b"x")
        for path, text in (
            ("gone", "does not exist"),
            ("data/file", "is not a directory"),
            ("data/é", "with GSI only"),
        ):
            with pytest.raises(InvalidArgument, match=text):
                gridftp.check(at(plain, root / path))
        with pytest.raises(InvalidArgument, match="names no GridFTP server"):
            gridftp.check(Source("x", b"/data", "user@host", "ftp"))


# --- servers that are not what they should be ----------------------------------------------------------------------
def test_server_that_does_not_answer(root: Path) -> None:
    fill(root, PLAIN[:1])
    dead = f"ftp://127.0.0.1:{free_port()}"
    with transport(dead) as gridftp:
        with pytest.raises(CommunicationError, match="cannot be reached"):
            gridftp.move(batch(local(root), root, b"plain.h5"))
        source = Source("url", b"/data", "127.0.0.1", "ftp", free_port())
        for question in (
            gridftp.check,
            lambda one: list(gridftp.walk(one)),
            lambda one: gridftp.remove(one, b"f", NEW),
        ):
            with pytest.raises(CommunicationError, match="cannot be reached"):
                question(source)


def test_trust_is_needed_on_both_sides(
    secure: GridFtpServer, plain: GridFtpServer, root: Path, authority: GridAuthority, tmp_path: Path
) -> None:
    source = at(secure, root / "data")
    with transport() as gridftp, pytest.raises(CommunicationError, match="needs a credential"):
        gridftp.check(source)
    stranger = dict(zip(("certificate", "key"), authority.issue("stranger"), strict=True))
    with (
        transport(certificates=authority.certificates, **stranger) as gridftp,
        pytest.raises(CommunicationError, match=r"refuses|not accept"),
    ):
        gridftp.check(source)
    other = GridAuthority(tmp_path / "other")
    own = dict(zip(("certificate", "key"), other.issue("station"), strict=True))
    with (
        transport(certificates=other.certificates, **own) as gridftp,
        pytest.raises(CommunicationError, match=r"certificate of server .* is not accepted"),
    ):
        gridftp.check(source)
    # an anonymous server offers no GSI
    wrong = Source("url", b"/data", "127.0.0.1", "gsiftp", int(plain.url.rpartition(":")[2]))
    with (
        transport(certificates=authority.certificates, **stranger) as gridftp,
        pytest.raises(CommunicationError, match=r"offers no GSI|not accepted"),
    ):
        gridftp.check(wrong)


def mover_of_ours() -> psutil.Process | None:
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name() == "globus-url-copy":
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def interfering(work: Callable[[], list[FileOutcome]], act: Callable[[psutil.Process], None]) -> list[FileOutcome]:
    """Do something to globus-url-copy as soon as it runs."""
    done = threading.Event()
    acted = threading.Event()

    def watch() -> None:
        while not done.is_set():
            found = mover_of_ours()
            if found is not None:
                act(found)
                acted.set()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcomes = work()
    finally:
        done.set()
        watcher.join()
    assert acted.is_set(), "it was too quick"
    return outcomes


def test_mover_that_is_killed_is_started_again(plain: GridFtpServer, root: Path) -> None:
    """F-04."""
    paths = [f"f{number}".encode() for number in range(8)]
    for path in paths:
        write(root, path, path * (4 << 20))
    with transport(plain) as gridftp:
        outcomes = interfering(lambda: gridftp.move(batch(local(root), root, *paths)), psutil.Process.kill)
    for outcome, path in zip(outcomes, paths, strict=True):
        assert outcome.ok, outcome.error
        assert (root / "staging" / outcome.staged_name).read_bytes() == path * (4 << 20)


def test_stop_ends_the_mover(plain: GridFtpServer, root: Path) -> None:
    write(root, b"f", b"x" * (64 << 20))
    with transport(plain) as gridftp:
        one = batch(local(root), root, b"f")

        def stop(process: psutil.Process) -> None:
            process.suspend()
            one.stop.set()

        with pytest.raises(ServiceUnavailable, match="service stops"):
            interfering(lambda: gridftp.move(one), stop)
    assert mover_of_ours() is None


def test_server_that_hangs_in_mid_transfer(place: Path, root: Path) -> None:
    """F-05: it times out, another server takes over, and the one that hung is used again when it answers."""
    paths = [f"f{number}".encode() for number in range(6)]
    for path in paths:
        write(root, path, path * (4 << 20))
    settings = {"io_timeout": 2, "connect_timeout": 1, "rest_seconds": 0.2}
    with (
        running(GridFtpServer(place / "hangs")) as hangs,
        running(GridFtpServer(place / "stands-by")) as other,
        transport(hangs, **settings) as alone,
        transport(hangs, other, **settings) as both,
    ):
        stopped = lambda _process: hangs.signal(signal.SIGSTOP)  # noqa: E731
        with pytest.raises(CommunicationError, match=r"does not answer|cannot be reached"):
            interfering(lambda: alone.move(batch(local(root), root, *paths)), stopped)
        outcomes = both.move(batch(local(root), root, *paths))
        assert [outcome.error for outcome in outcomes] == [""] * len(paths)
        hangs.signal(signal.SIGCONT)
        outcomes = alone.move(batch(local(root), root, *paths))
        assert [outcome.ok for outcome in outcomes] == [True] * len(paths), outcomes
    for outcome, path in zip(outcomes, paths, strict=True):
        assert (root / "staging" / outcome.staged_name).read_bytes() == path * (4 << 20)


def test_server_that_dies_in_mid_transfer(place: Path, root: Path) -> None:
    paths = [f"f{number}".encode() for number in range(6)]
    for path in paths:
        write(root, path, path * (4 << 20))
    with (
        running(GridFtpServer(place / "dies")) as dies,
        running(GridFtpServer(place / "lives")) as lives,
        transport(dies, lives) as gridftp,
    ):
        outcomes = interfering(lambda: gridftp.move(batch(local(root), root, *paths)), lambda _process: dies.stop())
    for outcome, path in zip(outcomes, paths, strict=True):
        assert outcome.ok, outcome.error
        assert (root / "staging" / outcome.staged_name).read_bytes() == path * (4 << 20)


# --- credentials ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def myproxy(place: Path, authority: GridAuthority) -> Iterator[MyProxySettings]:
    with running(MyProxyServer(place / "myproxy", authority)) as server:
        server.keep("25idc", PASSWORD, *authority.issue("station"))
        secret = place / "pass phrase"
        secret.write_text(PASSWORD + "\n")
        secret.chmod(0o600)
        yield MyProxySettings(server="localhost", port=server.port, user="25idc", password_file=secret, hours=6)


def test_credential_from_myproxy(
    myproxy: MyProxySettings, secure: GridFtpServer, root: Path, authority: GridAuthority
) -> None:
    paths = fill(root, PLAIN[:3])
    with transport(secure, myproxy=myproxy.model_dump(), certificates=authority.certificates) as gridftp:
        source = at(secure, root / "data")
        gridftp.check(source)
        assert_moved(gridftp.move(batch(local(root), root, *paths)), root, paths)
        proxy = Path(gridftp._credentials.environment()["X509_USER_PROXY"])
        assert stat.S_IMODE(proxy.stat().st_mode) == 0o600 and stat.S_IMODE(proxy.parent.stat().st_mode) == 0o700
    assert not proxy.parent.exists(), "it vanishes with the transport"


def test_credential_is_renewed_in_time_and_kept_while_it_lasts(
    myproxy: MyProxySettings, authority: GridAuthority, tmp_path: Path
) -> None:
    now = time.time()
    settings = GridFtpSettings(myproxy=myproxy, certificates=authority.certificates)
    credentials = Credentials(settings, lambda: now)
    try:
        proxy = Path(credentials.environment()["X509_USER_PROXY"])
        first = proxy.read_bytes()
        end = ends(proxy)
        now += 3600
        credentials.environment()
        assert proxy.read_bytes() == first
        # a third of its life is left; no MyProxy server answers any more
        now += 4 * 3600
        port, myproxy.port = myproxy.port, free_port()
        credentials.environment()
        assert proxy.read_bytes() == first
        now += 30
        myproxy.port = port
        credentials.environment()
        assert proxy.read_bytes() == first, "not asked again at once"
        now += 60
        credentials.environment()
        assert proxy.read_bytes() != first
        myproxy.port = free_port()
        now = end + 86400
        with pytest.raises(CommunicationError, match="MyProxy server"):
            credentials.environment()
        myproxy.port = port
    finally:
        credentials.close()


def test_myproxy_that_refuses(myproxy: MyProxySettings, authority: GridAuthority, tmp_path: Path) -> None:
    def problem(text: str, mode: int = 0o600) -> str:
        secret = tmp_path / "secret"
        secret.write_text(text)
        secret.chmod(mode)
        mine = myproxy.model_copy(update={"password_file": secret})
        credentials = Credentials(GridFtpSettings(myproxy=mine, certificates=authority.certificates))
        try:
            with pytest.raises((CommunicationError, ConfigurationError)) as caught:
                credentials.environment()
        finally:
            credentials.close()
        return caught.value.message

    wrong = problem("a wrong pass phrase\n")
    assert "hands out no credential for '25idc'" in wrong and "wrong pass phrase" not in wrong
    assert "chmod 600" in problem(PASSWORD, 0o640)
    assert "is empty" in problem("\n")


def test_certificate_files_that_cannot_be_used(root: Path, secure: GridFtpServer, authority: GridAuthority) -> None:
    missing = {"certificate": root / "none", "key": root / "none", "certificates": authority.certificates}
    with transport(secure, **missing) as gridftp, pytest.raises(ConfigurationError, match="cannot be used"):
        gridftp.check(at(secure, root / "data"))
