"""The rsync transport against real rsync: local, a real daemon, and a real sshd, both on loopback."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from dm.common.errors import CommunicationError, ConfigurationError, DmException, InvalidArgument, TransferError
from dm.station.acquisition.transports import rsync_process
from dm.station.acquisition.transports.base import FileOutcome, FileStamp, Source, TransferBatch, TransferFile
from dm.station.acquisition.transports.offering import OPEN_FILES
from dm.station.acquisition.transports.rsync import Rsync
from dm.station.acquisition.transports.rsync_command import DaemonSettings, RsyncSettings
from tests.service.acquisition_hosts import free_port, running_rsync_daemon

NAMES = [
    b"plain.h5", b" lead", b"trail ", b"%41", b"#", b"?", b"new\nline", b"'q\"", b"$(id)", b";", b"-rf", b"--delete",
    b"*", b"[x]", b"back\\slash", b"c\\#012", b"a:b", b"\xff\xfe", "é".encode(), "e\u0301".encode(), "日本😀".encode(),
    b"n" * 255,
]  # fmt: skip


@pytest.fixture
def transport(ssh: list[str], daemon: tuple[int, Path, Path]) -> Iterator[Rsync]:
    port, directory, password = daemon
    known = DaemonSettings(url=f"rsync://station@127.0.0.1:{port}/dm", directory=str(directory), password_file=password)
    rsync = Rsync(RsyncSettings(ssh=ssh, daemons={"storage.test": known, "127.0.0.1": known}, io_timeout=30))
    yield rsync
    rsync.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "staging").mkdir(mode=0o700)
    return tmp_path


def local(root: Path) -> Source:
    return Source(str(root / "data"), os.fsencode(root / "data"))


def remote(root: Path) -> Source:
    host = f"{getpass.getuser()}@localhost"
    return Source(f"@{host}:{root / 'data'}", os.fsencode(root / "data"), host, "ssh")


def batch(source: Source, staging: Path, *paths: bytes, host: str | None = None) -> TransferBatch:
    files = [TransferFile(path, 0, 0, f"{number:06d}") for number, path in enumerate(paths)]
    return TransferBatch("b1", source, files, os.fsencode(staging), host)


def write(root: Path, path: bytes, content: bytes) -> None:
    target = os.path.join(os.fsencode(root / "data"), path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as stream:
        stream.write(content)


def assert_moved(outcomes: list[FileOutcome], staging: Path, paths: list[bytes]) -> None:
    assert len(outcomes) == len(paths)
    for outcome in outcomes:
        content = b"content of " + paths[int(outcome.staged_name)]
        assert outcome.ok, outcome.error
        assert (staging / outcome.staged_name).read_bytes() == content
        assert outcome.digests == {"xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        assert outcome.md5 == hashlib.md5(content).hexdigest()
        assert stat.S_IMODE((staging / outcome.staged_name).stat().st_mode) == 0o600
    assert sorted(os.listdir(staging)) == sorted(outcome.staged_name for outcome in outcomes)


def every_name(root: Path) -> list[bytes]:
    paths = NAMES + [b"deep/er/" + name for name in NAMES]
    for path in paths:
        write(root, path, b"content of " + path)
    return paths


def test_push_to_local_staging(transport: Rsync, root: Path) -> None:
    paths = every_name(root)
    assert_moved(transport.move(batch(local(root), root / "staging", *paths)), root / "staging", paths)


def test_push_over_ssh(transport: Rsync, root: Path) -> None:
    staging = root / "stag ing;*$(id)"
    staging.mkdir(mode=0o700)
    paths = every_name(root)
    assert_moved(transport.move(batch(local(root), staging, *paths, host="localhost")), staging, paths)


def test_push_to_daemon(transport: Rsync, root: Path, daemon: tuple[int, Path, Path]) -> None:
    staging = daemon[1] / "experiment" / ".staging" / "b1"
    staging.mkdir(parents=True)
    paths = every_name(root)
    assert_moved(transport.move(batch(local(root), staging, *paths, host="storage.test")), staging, paths)


def test_pull_over_ssh(transport: Rsync, root: Path) -> None:
    paths = every_name(root)
    assert_moved(transport.move(batch(remote(root), root / "staging", *paths)), root / "staging", paths)


def test_pull_from_daemon(transport: Rsync, root: Path, daemon: tuple[int, Path, Path]) -> None:
    (daemon[1] / "run 7" / "data").mkdir(parents=True)
    paths = every_name(Path(daemon[1] / "run 7"))
    source = Source("rsync url", b"/dm/run 7/data", "station@127.0.0.1", "rsync", daemon[0])
    transport.check(source)
    assert sorted(entry.path for entry in transport.walk(source)) == sorted(paths)
    assert_moved(transport.move(batch(source, root / "staging", *paths)), root / "staging", paths)


def test_progress_and_no_checksums_where_they_are_not_wanted(transport: Rsync, root: Path) -> None:
    write(root, b"f", b"content")
    for source in (local(root), remote(root)):
        told: list[int] = []
        files = [TransferFile(b"f", 7, 0, "000000")]
        place = os.fsencode(root / "staging")
        (outcome,) = transport.move(TransferBatch("b1", source, files, place, checksum=False, moved=told.append))
        assert outcome.ok and outcome.md5 == "" and outcome.digests["xxh3_128"]
        assert sum(told) == 7


def test_more_files_than_descriptors(transport: Rsync, root: Path) -> None:
    paths = [f"f{number}".encode() for number in range(2 * OPEN_FILES + 10)]
    for path in paths:
        write(root, path, b"content of " + path)
    assert_moved(transport.move(batch(local(root), root / "staging", *paths)), root / "staging", paths)


def test_push_one_bad_file_does_not_stop_the_others(transport: Rsync, root: Path) -> None:
    for path in (b"good", b"last"):
        write(root, path, path)
    os.mkfifo(root / "data" / "pipe")
    os.symlink("/etc/passwd", root / "data" / "link")
    (root / "outside").mkdir()
    (root / "outside" / "f").write_bytes(b"x")
    os.symlink("../outside", root / "data" / "sub")
    paths = [b"good", b"pipe", b"link", b"sub/f", b"gone", b"last"]
    for host in (None, "localhost"):
        good, pipe, link, sub, gone, last = transport.move(batch(local(root), root / "staging", *paths, host=host))
        assert good.ok and last.ok
        assert "not a regular file" in pipe.error and "link" in link.error and "link" in sub.error
        assert not (pipe.transient or link.transient or sub.transient) and gone.vanished
        assert sorted(os.listdir(root / "staging")) == ["000000", "000005"]


def test_pull_one_bad_file_does_not_stop_the_others(transport: Rsync, root: Path) -> None:
    for path in (b"good", b"last", b"d/e/deep"):
        write(root, path, path)
    os.mkfifo(root / "data" / "pipe")
    os.symlink("/etc/passwd", root / "data" / "link")
    (root / "outside").mkdir()
    (root / "outside" / "f").write_bytes(b"x")
    os.symlink("../outside", root / "data" / "sub")
    paths = [b"good", b"pipe", b"link", b"sub/f", b"gone", b"d/gone", b"d/e/deep", b"last"]
    outcomes = transport.move(batch(remote(root), root / "staging", *paths))
    good, pipe, link, sub, gone, deep_gone, deep, last = outcomes
    assert good.ok and last.ok and deep.ok, [outcome.error for outcome in outcomes]
    assert "not a regular file" in pipe.error and "not a regular file" in link.error and "is a link" in sub.error
    assert not (pipe.transient or link.transient or sub.transient)
    assert gone.vanished and deep_gone.vanished
    assert sorted(os.listdir(root / "staging")) == ["000000", "000006", "000007"]


def test_walk_lists_every_name_with_kind_and_stamp(transport: Rsync, root: Path) -> None:
    paths = every_name(root)
    os.utime(root / "data" / "plain.h5", ns=(0, 1_234_567_890_987_654_321))
    os.mkfifo(root / "data" / "pipe")
    os.symlink("deep", root / "data" / "link")
    found = {entry.path: entry for entry in transport.walk(remote(root))}
    assert set(found) == {*paths, b"pipe", b"link"}
    assert found[b"plain.h5"].stamp == FileStamp(len(b"content of plain.h5"), 1_234_567_890_000_000_000)
    assert (found[b"pipe"].kind, found[b"link"].kind, found[b"plain.h5"].kind) == ("other", "link", "file")
    assert {entry.path for entry in transport.walk(remote(root), b"deep")} == {b"deep/er/" + name for name in NAMES}
    assert [entry.path for entry in transport.walk(remote(root), b"[x]")] == [b"[x]"]
    # what was moved carries the very stamp that was listed, so that the next scan finds nothing new
    outcome = transport.move(batch(remote(root), root / "staging", b"plain.h5"))[0]
    assert outcome.before == found[b"plain.h5"].stamp


def test_data_directory_with_wildcards_in_its_name(transport: Rsync, root: Path) -> None:
    for name in ("a1", "a[1] b*"):
        (root / name).mkdir()
        (root / name / "f").write_text(name)
        host = f"{getpass.getuser()}@localhost"
        source = Source(name, os.fsencode(root / name), host, "ssh")
        transport.check(source)
        assert [entry.path for entry in transport.walk(source)] == [b"f"]
        assert transport.move(batch(source, root / "staging", b"f"))[0].ok
        assert (root / "staging" / "000000").read_text() == name


def test_check_remote(transport: Rsync, root: Path) -> None:
    transport.check(remote(root))
    write(root, b"file", b"x")
    for name in ("gone", "data/file"):
        source = remote(root)
        source = Source(source.text, os.fsencode(root / name), source.host, source.scheme)
        with pytest.raises(InvalidArgument, match="cannot be read"):
            transport.check(source)


def test_host_that_cannot_be_reached(transport: Rsync, root: Path) -> None:
    port = free_port()
    source = Source("rsync url", b"/dm", "127.0.0.1", "rsync", port)
    with pytest.raises(CommunicationError, match="rsync url"):
        transport.check(source)
    with pytest.raises(CommunicationError):
        list(transport.walk(source))
    with pytest.raises(CommunicationError):
        transport.move(batch(source, root / "staging", b"f"))
    assert os.listdir(root / "staging") == []


@pytest.mark.parametrize("host", ["-oProxyCommand=id", "a b", "h;id", "h:x", "", "u@-x", "h/x"])
def test_hosts_that_are_no_hosts_are_refused(transport: Rsync, root: Path, host: str) -> None:
    with pytest.raises(InvalidArgument, match="no host name"):
        transport.check(Source("@x", b"/data", host, "ssh"))
    write(root, b"f", b"x")
    with pytest.raises(InvalidArgument, match="no host name"):
        transport.move(batch(local(root), root / "staging", b"f", host=host))


def test_source_that_changes_under_a_push(transport: Rsync, root: Path) -> None:
    write(root, b"f", b"x" * (4 << 20))
    stop = threading.Event()

    def grow() -> None:
        with open(root / "data" / "f", "ab", buffering=0) as stream:
            while not stop.is_set():
                stream.write(b"y" * 512)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        outcome = transport.move(batch(local(root), root / "staging", b"f"))[0]
    finally:
        stop.set()
        writer.join()
    assert not outcome.ok and outcome.transient and "changed" in outcome.error


def test_source_that_changes_under_a_pull(transport: Rsync, root: Path) -> None:
    write(root, b"quiet", b"q")
    write(root, b"f", b"x" * (4 << 20))
    stop = threading.Event()

    def touch() -> None:
        moment = 10**18
        while not stop.is_set():
            moment += 1  # one nanosecond, same second, same size
            os.utime(root / "data" / "f", ns=(moment, moment))

    writer = threading.Thread(target=touch)
    writer.start()
    try:
        outcome, quiet = transport.move(batch(remote(root), root / "staging", b"f", b"quiet"))
    finally:
        stop.set()
        writer.join()
    assert quiet.ok
    assert not outcome.ok and outcome.transient and "changed" in outcome.error
    assert os.listdir(root / "staging") == ["000001"]


def test_full_target_names_the_file_system(transport: Rsync, root: Path) -> None:
    """A real full file system: a process limit on file size would not be the same error."""
    small = root / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        # an account that may not mount: the same texts from a program that says what rsync says
        result = rsync_process.Result(11, [], [b'rsync: write failed on "/x/000000": No space left on device (28)'])
        assert result.partial and result.full
        return
    try:
        write(root, b"small", b"s")
        write(root, b"big", os.urandom(4 << 20))
        for source in (local(root), remote(root)):
            outcomes = transport.move(batch(source, small, b"small", b"big"))
            assert not outcomes[1].ok and outcomes[1].transient
            assert "No space left on device" in outcomes[1].error and str(small) in outcomes[1].error
            assert "000001" not in os.listdir(small)
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_greeting_of_a_daemon_names_no_files(tmp_path: Path) -> None:
    """rsync prints it before the listing, so a hostile daemon could list what it likes."""
    greeting = "-rw-r--r--              5 2026/01/01 00:00:00 ../../../stolen\n"
    with running_rsync_daemon(tmp_path / "server", greeting) as (port, directory, password):
        (directory / "real").write_bytes(b"real")
        known = DaemonSettings(url=f"rsync://station@127.0.0.1:{port}/dm", directory="/", password_file=password)
        rsync = Rsync(RsyncSettings(daemons={"127.0.0.1": known}, io_timeout=30))
        source = Source("rsync url", b"/dm", "station@127.0.0.1", "rsync", port)
        assert [entry.path for entry in rsync.walk(source)] == [b"real"]
        rsync.close()


def test_stop_kills_the_process_group(transport: Rsync, root: Path, daemon: tuple[int, Path, Path]) -> None:
    write(root, b"f", b"x" * (64 << 20))
    stopped = batch(local(root), root / "staging", b"f", host="localhost")
    stopped.stop.set()
    with pytest.raises(DmException, match="service stops"):
        transport.move(stopped)
    assert os.listdir(root / "staging") == []


def test_silent_server_ends_by_time_out(ssh: list[str], root: Path) -> None:
    """F-05: the other side accepts and says nothing."""
    write(root, b"f", b"x")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"rsync://127.0.0.1:{silent.getsockname()[1]}/dm"
        quick = Rsync(RsyncSettings(io_timeout=1, daemons={"s": DaemonSettings(url=url, directory=str(root))}))
        try:
            with pytest.raises(CommunicationError, match="Staging on s"):
                quick.move(batch(local(root), root / "staging", b"f", host="s"))
        finally:
            quick.close()


def test_batch_timeout(root: Path) -> None:
    write(root, b"f", b"x")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"rsync://127.0.0.1:{silent.getsockname()[1]}/dm"
        daemons = {"s": DaemonSettings(url=url, directory=str(root))}
        quick = Rsync(RsyncSettings(batch_timeout=0.5, daemons=daemons))
        try:
            with pytest.raises(TransferError, match=r"did not end in 0\.5 s"):
                quick.move(batch(local(root), root / "staging", b"f", host="s"))
        finally:
            quick.close()


def test_remove_only_what_is_unchanged(transport: Rsync, daemon: tuple[int, Path, Path]) -> None:
    root = daemon[1] / "removing"
    source = Source("rsync url", b"/dm/removing/data", "station@127.0.0.1", "rsync", daemon[0])
    for path in (b"d/same", b"d/changed", b"[x]"):
        write(root, path, b"content")
    stamps = {entry.path: entry.stamp for entry in transport.walk(source)}
    write(root, b"d/changed", b"longer content")
    for path, removed in ((b"d/same", True), (b"d/changed", False), (b"[x]", True), (b"gone", False)):
        assert transport.remove(source, path, stamps.get(path, FileStamp(1, 1))) is removed
        assert os.path.lexists(os.path.join(os.fsencode(root / "data"), path)) is (path == b"d/changed")


def test_remove_keeps_a_file_of_the_same_size_and_another_time(
    transport: Rsync, daemon: tuple[int, Path, Path]
) -> None:
    root = daemon[1] / "keeping"
    source = Source("rsync url", b"/dm/keeping/data", "station@127.0.0.1", "rsync", daemon[0])
    write(root, b"f", b"content")
    (entry,) = transport.walk(source)
    os.utime(root / "data" / "f", ns=(0, entry.stamp.mtime_ns + 2 * 10**9))
    assert transport.remove(source, b"f", entry.stamp) is False
    assert (root / "data" / "f").read_bytes() == b"content"


def test_old_rsync_is_refused(tmp_path: Path, root: Path) -> None:
    program = tmp_path / "rsync"
    program.write_text("#!/bin/sh\necho 'rsync  version 3.4.1  protocol version 32'\n")
    program.chmod(0o755)
    old = Rsync(RsyncSettings(program=str(program)))
    try:
        with pytest.raises(ConfigurationError, match=r"3\.4\.1.*3\.4\.3 or newer"):
            old.move(batch(local(root), root / "staging", b"f"))
    finally:
        old.close()
    with pytest.raises(ConfigurationError, match="not installed"):
        rsync_process.require_version(str(tmp_path / "none"))


def test_both_ends_remote_is_refused(transport: Rsync, root: Path) -> None:
    with pytest.raises(InvalidArgument, match="both remote"):
        transport.move(batch(remote(root), root / "staging", b"f", host="localhost"))


def test_killed_mover_is_a_transient_failure(transport: Rsync, root: Path) -> None:
    """F-04: ended by a signal; nothing that was killed counts as moved."""
    result = rsync_process.Result(-9, [], [])
    assert isinstance(result.failure("x"), TransferError)
    assert "signal 9" in str(result.failure("x"))
