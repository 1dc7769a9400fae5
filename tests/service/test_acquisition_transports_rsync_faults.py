"""rsync when something is killed, stopped, refused or full: real rsync, sshd and rsync daemon."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dm.common.errors import CommunicationError, DmException, InvalidArgument, ServiceUnavailable, TransferError
from dm.station.acquisition.transports.base import FileOutcome, Source, TransferBatch, TransferFile
from dm.station.acquisition.transports.rsync import Rsync
from dm.station.acquisition.transports.rsync_command import Caller, DaemonSettings, RsyncSettings
from tests.service.acquisition_hosts import free_port, may_mount, small_disk

SLOW = 0.5  # megabytes per second, so that a file of some megabytes is on its way for seconds
DAEMON = "storage.test"


@pytest.fixture
def make(ssh: list[str], daemon: tuple[int, Path, Path]) -> Iterator[Callable[..., Rsync]]:
    port, directory, password = daemon
    made: list[Rsync] = []

    def build(**more: Any) -> Rsync:
        known = DaemonSettings(
            url=f"rsync://station@127.0.0.1:{port}/dm", directory=str(directory), password_file=password
        )
        values = {"ssh": ssh, "daemons": {DAEMON: known, "127.0.0.1": known}, "io_timeout": 30, **more}
        made.append(Rsync(RsyncSettings(**values)))
        return made[-1]

    yield build
    for transport in made:
        transport.close()


@pytest.fixture
def root(daemon: tuple[int, Path, Path], tmp_path: Path) -> Path:
    """A directory that the daemon shows too, under the test's own name."""
    place = daemon[1] / tmp_path.name
    (place / "data").mkdir(parents=True)
    (place / "staging").mkdir(mode=0o700)
    (place / "data" / "big").write_bytes(os.urandom(4 << 20))
    (place / "data" / "small").write_bytes(b"small")
    return place


def pushed(root: Path, host: str | None, **more: Any) -> TransferBatch:
    files = [TransferFile(b"big", 0, 0, "f000000"), TransferFile(b"small", 0, 0, "f000001")]
    source = Source(str(root / "data"), os.fsencode(root / "data"))
    return TransferBatch("b1", source, files, os.fsencode(root / "staging"), host, **more)


def pulled(root: Path, daemon: tuple[int, Path, Path], scheme: str) -> TransferBatch:
    if scheme == "rsync":
        url = f"/dm/{root.name}/data".encode()
        source = Source(f"rsync://127.0.0.1/dm/{root.name}/data", url, "station@127.0.0.1", "rsync", daemon[0])
    else:
        source = Source(f"@localhost:{root}/data", os.fsencode(root / "data"), "localhost", "ssh")
    return TransferBatch("b1", source, pushed(root, None).files, os.fsencode(root / "staging"), None)


@contextmanager
def moving(transport: Rsync, batch: TransferBatch) -> Iterator[list[list[FileOutcome] | DmException]]:
    """Move a batch beside the test; at the end of the block it has ended, and its result is in the list."""
    found: list[list[FileOutcome] | DmException] = []

    def run() -> None:
        try:
            found.append(transport.move(batch))
        except DmException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield found
    finally:
        thread.join(60)
        assert not thread.is_alive()


def processes(word: str, parent: psutil.Process | None = None) -> list[psutil.Process]:
    """Return the children of a process whose command line has a word."""
    found = []
    for child in (parent or psutil.Process()).children(recursive=True):
        try:
            if word in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def on_its_way(root: Path) -> bool:
    """Whether some, not all, of the big file is in staging."""
    partial = [path for path in (root / "staging").rglob("*") if path.is_file() and path.name.startswith(".")]
    partial += (root / "staging").glob(".rsync-*/*big*")
    return any(path.stat().st_size for path in partial)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def assert_arrives(transport: Rsync, root: Path, batch: TransferBatch) -> None:
    outcomes = transport.move(batch)
    assert all(outcome.ok for outcome in outcomes), [outcome.error for outcome in outcomes]
    for name, staged in (("big", "f000000"), ("small", "f000001")):
        assert (root / "staging" / staged).read_bytes() == (root / "data" / name).read_bytes()


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "way",
    [
        "push to ssh",
        "pull from a daemon",
        pytest.param("push to a daemon", marks=LONG),
        pytest.param("pull from ssh", marks=LONG),
    ],
)
def test_a_killed_mover_leaves_nothing_at_a_staged_name(
    make: Callable[..., Rsync], root: Path, daemon: tuple[int, Path, Path], way: str
) -> None:
    """F-04: kill -9 of the rsync child in the middle of a file."""
    places = {
        "push to ssh": lambda: pushed(root, "localhost"),
        "push to a daemon": lambda: pushed(root, DAEMON),
        "pull from ssh": lambda: pulled(root, daemon, "ssh"),
        "pull from a daemon": lambda: pulled(root, daemon, "rsync"),
    }
    with moving(make(megabytes_per_second=SLOW), places[way]()) as found:
        until(lambda: on_its_way(root))
        for process in processes("--secluded-args"):
            process.kill()
    (error,) = found
    assert isinstance(error, CommunicationError | TransferError), error
    assert not list((root / "staging").glob("f0*0"))
    assert_arrives(make(), root, places[way]())


@pytest.mark.parametrize("host", [DAEMON, pytest.param("localhost", marks=LONG)])
def test_a_server_killed_in_mid_file(
    make: Callable[..., Rsync], root: Path, daemon: tuple[int, Path, Path], host: str
) -> None:
    with moving(make(megabytes_per_second=SLOW), pushed(root, host)) as found:
        until(lambda: on_its_way(root))
        for process in served(daemon, host):
            process.kill()
    assert isinstance(found[0], CommunicationError), found
    assert not (root / "staging" / "f000000").exists()
    assert_arrives(make(), root, pushed(root, host))


def served(daemon: tuple[int, Path, Path], host: str) -> list[psutil.Process]:
    """Return the processes that serve a push on the other side."""
    everybody = processes("rsync --server") if host == "localhost" else processes("rsync --daemon")
    listening = int((daemon[1].parent / "pid").read_text())
    return [process for process in everybody if process.pid != listening and "ssh" not in process.name()]


@pytest.mark.parametrize("host", [DAEMON, pytest.param("localhost", marks=LONG)])
def test_a_stopped_server_ends_by_time_out_and_goes_on_later(
    make: Callable[..., Rsync], root: Path, daemon: tuple[int, Path, Path], host: str
) -> None:
    """F-05: SIGSTOP in mid-transfer, SIGCONT afterwards."""
    stopped: list[psutil.Process] = []
    try:
        with moving(make(megabytes_per_second=SLOW, io_timeout=1), pushed(root, host)) as found:
            until(lambda: on_its_way(root))
            stopped = served(daemon, host)
            assert stopped
            for process in stopped:
                process.suspend()
        assert isinstance(found[0], CommunicationError), found
        assert "timeout" in str(found[0]) or "timed out" in str(found[0])
    finally:
        for process in stopped:
            try:
                process.send_signal(signal.SIGCONT)
            except psutil.NoSuchProcess:
                continue
    assert_arrives(make(), root, pushed(root, host))


def test_what_nobody_wants_any_more_ends_at_once(make: Callable[..., Rsync], root: Path) -> None:
    unwanted = threading.Event()
    with moving(make(megabytes_per_second=SLOW), pushed(root, "localhost", aborted=unwanted.is_set)) as found:
        until(lambda: on_its_way(root))
        unwanted.set()
    assert isinstance(found[0], ServiceUnavailable) and "nobody wants" in str(found[0])
    assert not processes("--secluded-args")


def test_a_host_with_another_key_is_refused(
    make: Callable[..., Rsync], root: Path, ssh: list[str], tmp_path: Path
) -> None:
    """Both a host that is not known and one whose key has changed: nothing is sent, and the text says why."""
    known = next(word for word in ssh if word.startswith("UserKnownHostsFile="))
    host, kind, _key = Path(known.partition("=")[2]).read_text().split()[:3]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    changed = f"{host} {kind} {(tmp_path / 'other.pub').read_text().split()[1]}\n"
    for name, content in (("unknown", ""), ("changed", changed)):
        (tmp_path / name).write_text(content)
        command = [f"UserKnownHostsFile={tmp_path / name}" if word == known else word for word in ssh]
        with pytest.raises(CommunicationError, match="Host key verification failed"):
            make(ssh=command).move(pushed(root, "localhost"))
    assert os.listdir(root / "staging") == []


def test_a_wrong_daemon_password_is_told(
    make: Callable[..., Rsync], root: Path, daemon: tuple[int, Path, Path], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guess\n")
    wrong.chmod(0o600)
    url = f"rsync://station@127.0.0.1:{daemon[0]}/dm"
    known = DaemonSettings(url=url, directory=str(daemon[1]), password_file=wrong)
    transport = make(daemons={DAEMON: known, "127.0.0.1": known})
    with pytest.raises(CommunicationError, match="auth failed on module dm"):
        transport.move(pushed(root, DAEMON))
    with pytest.raises(CommunicationError, match="auth failed on module dm"):
        transport.check(pulled(root, daemon, "rsync").source)
    # none at all, and nobody to ask: an answer, not a wait
    known = DaemonSettings(url=url, directory=str(daemon[1]))
    with pytest.raises(CommunicationError, match="auth failed on module dm"):
        make(daemons={DAEMON: known}).move(pushed(root, DAEMON))


def test_daemon_sources_that_cannot_be(make: Callable[..., Rsync], daemon: tuple[int, Path, Path]) -> None:
    host, port = "station@127.0.0.1", daemon[0]
    with pytest.raises(InvalidArgument, match="names no module"):
        make().check(Source("rsync://127.0.0.1/", b"/", host, "rsync", port))
    with pytest.raises((InvalidArgument, CommunicationError), match="Unknown module 'none'"):
        make().check(Source("rsync://127.0.0.1/none/x", b"/none/x", host, "rsync", port))
    with pytest.raises(InvalidArgument, match="cannot be read"):
        make().check(Source("rsync://127.0.0.1/dm/missing", b"/dm/missing", host, "rsync", port))


def test_staging_beyond_the_daemons_directory(make: Callable[..., Rsync], root: Path) -> None:
    known = DaemonSettings(url="rsync://127.0.0.1/dm", directory="/elsewhere")
    with pytest.raises(InvalidArgument, match="is not below '/elsewhere'"):
        make(daemons={DAEMON: known}).move(pushed(root, DAEMON))


def test_a_daemon_that_never_answers(make: Callable[..., Rsync], root: Path) -> None:
    """The queue of those who wait to be accepted is full, so the kernel answers nothing: soon over, not in minutes."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        known = DaemonSettings(url=f"rsync://127.0.0.1:{full.getsockname()[1]}/dm", directory=str(root))
        with pytest.raises(CommunicationError, match="timeout waiting for daemon connection"):
            make(daemons={DAEMON: known}, io_timeout=60, connect_timeout=1).move(pushed(root, DAEMON))


def test_an_ssh_host_that_is_dead(make: Callable[..., Rsync], root: Path, ssh: list[str]) -> None:
    command = list(ssh)
    command[command.index("-p") + 1] = str(free_port())
    with pytest.raises(CommunicationError, match="Connection refused"):
        make(ssh=command).move(pushed(root, "localhost"))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        command[command.index("-p") + 1] = str(silent.getsockname()[1])
        with pytest.raises(CommunicationError, match="timed out"):
            make(ssh=command, connect_timeout=1).move(pushed(root, "localhost"))


# sshd and the daemon need more than the rights in a namespace of an ordinary account
FULL = ["ssh", "pull", pytest.param("here", marks=LONG), pytest.param("daemon", marks=LONG)]


@pytest.mark.parametrize("way", FULL if os.geteuid() == 0 else ["here"])
def test_a_full_disk_fails_what_does_not_fit_until_there_is_room(
    make: Callable[..., Rsync], root: Path, daemon: tuple[int, Path, Path], way: str, request: pytest.FixtureRequest
) -> None:
    """F-06: the error names the file system, the small file arrives, and the big one when space is freed."""
    if not may_mount(request):
        return
    host = {"here": None, "ssh": "localhost", "daemon": DAEMON, "pull": None}[way]
    batch = pulled(root, daemon, "ssh") if way == "pull" else pushed(root, host)
    with small_disk(root / "staging", megabytes=2) as grow:
        big, small = make().move(batch)
        assert not big.ok and big.transient and "No space left on device" in big.error, big
        assert host == DAEMON or host is not None or str(root / "staging") in big.error
        assert small.ok or small.transient
        assert not (root / "staging" / "f000000").exists()
        grow(64)
        assert_arrives(make(), root, batch)


def test_options_become_those_of_rsync() -> None:
    seen: list[list[str | bytes]] = []

    class Noted(Caller):
        def command(self, *arguments: str | bytes) -> list[str | bytes]:
            seen.append(list(arguments))
            return ["true"]

    settings = RsyncSettings(compress=True, megabytes_per_second=12.5, fsync=True, connect_timeout=7)
    Noted(settings).move(TransferBatch("b", Source("x", b"/x"), [], b"/s"), "-W", names=[])
    assert seen == [["-z", "--bwlimit=12500", "--fsync", "-W"]]
    assert "--contimeout=7" in Caller(settings).command("rsync://h/m/")
    assert "ConnectTimeout=7" in str(Caller(settings).command("h:/d"))


def test_with_all_options_bytes_are_the_same(make: Callable[..., Rsync], root: Path) -> None:
    transport = make(compress=True, megabytes_per_second=500, fsync=True)
    for host in ("localhost", DAEMON):
        assert_arrives(transport, root, pushed(root, host))
