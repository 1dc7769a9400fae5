"""Which transport moves a batch, and the command lines of rsync."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from dm.common.errors import CommunicationError, ConfigurationError, DmException, InvalidArgument, TransferError
from dm.station.acquisition.transports.base import (
    FileOutcome,
    FileStamp,
    NoSettings,
    Source,
    SourceEntry,
    TransferBatch,
    Transport,
)
from dm.station.acquisition.transports.choice import Choice, reachable
from dm.station.acquisition.transports.rests import Rests
from dm.station.acquisition.transports.rsync import _entry
from dm.station.acquisition.transports.rsync_command import Caller, DaemonSettings, RsyncSettings
from dm.station.acquisition.transports.rsync_process import Result, unescape


class Here(Transport):
    """Writes only where this machine can; tells which batch it was given."""

    name = "here"

    def __init__(self, problem: DmException | None = None) -> None:
        super().__init__(NoSettings())
        self.rests = Rests(0.05, 0.1)
        self.moved: list[TransferBatch] = []
        self.problem = problem

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        self.moved.append(batch)
        if self.problem is not None:
            raise self.problem
        return [FileOutcome("f000000")]


class Far(Here):
    """Writes anywhere and reads remote sources."""

    name = "far"
    schemes = frozenset({"file", "ssh"})
    remote_staging = True


class Served(Far):
    """Wants to go through a host's services even where its directory is here."""

    name = "served"

    def through_host(self, source: Source, staging_host: str) -> bool:
        return staging_host == "storage.example.org"


class Task(Far):
    """Goes on elsewhere after a failure."""

    name = "task"

    def holds(self, batch_id: str) -> bool:
        return bool(self.moved)


class Picky(Far):
    """Serves no data directory."""

    name = "picky"

    def serves(self, source: Source, staging_host: str | None) -> bool:
        return False


LOCAL = Source("/data", b"/data")
REMOTE = Source("@h:/data", b"/data", "h", "ssh")


def batch(source: Source, staging: str, host: str | None) -> TransferBatch:
    return TransferBatch("b", source, [], os.fsencode(staging), host)


def test_reachable_staging_is_written_directly_whatever_storage_calls_its_host(tmp_path: Path) -> None:
    here, far = Here(), Far()
    Choice([here, far]).move(batch(LOCAL, str(tmp_path), "storage.example.org"))
    assert [moved.staging_host for moved in here.moved] == [None] and not far.moved


def test_what_one_does_not_serve_is_left_to_the_next(tmp_path: Path) -> None:
    picky, here = Picky(), Here()
    choice = Choice([picky, here])
    assert choice.reader(LOCAL) is here
    assert choice.reader(REMOTE) is picky, "which then says why it cannot"
    choice.move(batch(LOCAL, str(tmp_path), None))
    assert here.moved and not picky.moved


def test_staging_elsewhere_falls_back(tmp_path: Path) -> None:
    here, far = Here(), Far()
    Choice([here, far]).move(batch(LOCAL, str(tmp_path / "none"), "storage.example.org"))
    assert [moved.staging_host for moved in far.moved] == ["storage.example.org"] and not here.moved


def test_remote_source_is_read_by_the_transport_that_can(tmp_path: Path) -> None:
    here, far = Here(), Far()
    choice = Choice([here, far])
    choice.move(batch(REMOTE, str(tmp_path), "localhost"))
    assert [moved.staging_host for moved in far.moved] == [None]
    assert choice.reader(REMOTE) is far and choice.reader(LOCAL) is here
    assert choice.schemes == {"file", "ssh"}


def test_another_stands_in_while_the_first_does_not_answer_and_gives_the_place_back() -> None:
    far, other = Far(CommunicationError("no answer")), Far()
    other.name = "other"  # type: ignore[misc]
    choice = Choice([far, other])
    there = batch(LOCAL, "/none", "s")
    for _ in range(3):
        assert [outcome.transport for outcome in choice.move(there)] == ["other"]
    assert len(far.moved) == 1, "left out while it rests"
    assert len(other.moved) == 3
    far.problem = None
    assert choice.move(batch(LOCAL, "/none", "t"))[0].transport == "far", "another host is another matter"
    while choice.move(there)[0].transport != "far":
        pass
    assert not far.rests.has(" s")


def test_the_first_problem_is_told_when_none_can(tmp_path: Path) -> None:
    missing, silent = Far(ConfigurationError("not installed")), Far(CommunicationError("no answer"))
    with pytest.raises(ConfigurationError, match="not installed"):
        Choice([missing, silent]).move(batch(LOCAL, "/none", "s"))
    assert silent.moved
    # what is wrong with the source or the staging directory is wrong for all
    gone, far = Far(TransferError("no such directory")), Far()
    with pytest.raises(TransferError, match="no such directory"):
        Choice([gone, far]).move(batch(LOCAL, "/none", "s"))
    task = Task(CommunicationError("no answer"))
    with pytest.raises(CommunicationError):
        Choice([task, far]).move(batch(LOCAL, "/none", "s"))
    task.problem = None
    Choice([far, task]).move(batch(LOCAL, "/none", "s"))
    assert len(task.moved) == 2
    assert not far.moved, "its batch may still be on its way, also while it rests"


def test_a_transport_that_is_named_first_may_keep_its_servers(tmp_path: Path) -> None:
    here, served = Here(), Served()
    Choice([served, here]).move(batch(LOCAL, str(tmp_path), "storage.example.org"))
    assert [moved.staging_host for moved in served.moved] == ["storage.example.org"]
    Choice([here, served]).move(batch(LOCAL, str(tmp_path), "storage.example.org"))
    assert [moved.staging_host for moved in here.moved] == [None]
    served.problem = CommunicationError("no answer")
    Choice([served, here]).move(batch(LOCAL, str(tmp_path), "storage.example.org"))
    assert len(here.moved) == 2


def test_pauses_double_and_batches_of_the_same_moment_count_once() -> None:
    rests = Rests(100, 300)
    assert [rests.begin("s") for _ in range(3)] == [100, 100, 100]
    assert rests.has("s") and not rests.has("t")
    rests.end("s")
    assert not rests.has("s")
    short = Rests(0.001, 0.003)
    pauses = []
    while len(pauses) < 4:
        if not short.has("s"):
            pauses.append(short.begin("s"))
    assert pauses == [0.001, 0.002, 0.003, 0.003]


def test_nothing_reaches_it(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"Staging on 's' is not reachable .* configure"):
        Choice([Here()]).move(batch(LOCAL, str(tmp_path / "none"), "s"))
    with pytest.raises(TransferError, match="does not exist"):
        Choice([Here()]).move(batch(LOCAL, str(tmp_path / "none"), None))
    with pytest.raises(InvalidArgument, match=r"No transport of this station reads 'ssh' .*known: file"):
        Choice([Here()]).reader(REMOTE)
    assert not reachable(os.fsencode(tmp_path / "none"))


def test_command_lines_hold_no_name_a_user_chose() -> None:
    caller = Caller(RsyncSettings(ssh=["ssh", "-i", "/k ey"]))
    line = caller.command(*caller.origin(Source("x", b"/-e sh;rm/", "u@h", "ssh")))
    assert line[1] == "--secluded-args" and line[-1] == b"u@h:/-e sh;rm/"
    assert str(line[2]).startswith("--rsh='ssh' '-i' '/k ey' '-o' 'BatchMode=yes'")
    assert caller.names(REMOTE, [b"-a", b"b\n"]) == [b"./-a", b"./b\n"]


def test_daemon_lines(tmp_path: Path) -> None:
    daemon = DaemonSettings(url="rsync://u@s:8730/dm/", directory="/srv/dm/", password_file=tmp_path / "p")
    caller = Caller(RsyncSettings(daemons={"s": daemon}))
    source = Source("x", b"/module/run 7/data", "u@s", "rsync", 8730)
    assert caller.origin(source) == [f"--password-file={tmp_path / 'p'}", b"rsync://u@s:8730/module/"]
    assert caller.names(source, [b"f"]) == [b"run 7/data/./f"]
    assert caller.names(Source("x", b"/module", "s", "rsync"), [b"f"]) == [b"./f"]
    assert not [word for word in caller.command(*caller.origin(source)) if b"--rsh" in os.fsencode(word)]
    target = caller.target(TransferBatch("b", LOCAL, [], b"/srv/dm/e1/.staging/b", "s"))
    assert target[-1] == b"rsync://u@s:8730/dm/e1/.staging/b/"
    with pytest.raises(InvalidArgument, match=r"'/srv/dmx/b/' is not below '/srv/dm/'"):
        caller.target(TransferBatch("b", LOCAL, [], b"/srv/dmx/b", "s"))


@pytest.mark.parametrize("words", [["ssh", "it's"], ["ssh", "a\nb"], [""], []])
def test_ssh_words_that_cannot_be_quoted_are_refused(words: list[str]) -> None:
    with pytest.raises(ValidationError):
        RsyncSettings(ssh=words)


def test_listing_lines() -> None:
    entry = _entry(unescape(rb"-rw-r--r--    1,234,567 2026/11/22 16:08:43  a\#012b -> c"))
    assert entry is not None
    assert entry.path == b" a\nb -> c" and entry.stamp.size == 1234567 and entry.kind == "file"
    assert entry.stamp.mtime_ns == 1795363723 * 10**9
    assert _entry(b"drwxr-xr-x           4096 2026/11/22 16:08:43 d") is None
    assert _entry(b"created directory x") is None
    pipe = _entry(b"prw-r--r--              0 1969/12/31 23:59:59 p")
    assert pipe is not None and pipe.kind == "other" and pipe.stamp.mtime_ns == -(10**9)


def test_results_are_told_apart() -> None:
    gone = b'rsync: [sender] link_stat "/d/a" failed: No such file or directory (2)'
    assert Result(23, [], [gone]).partial and Result(23, [], [gone]).complaint(b"a")
    assert not Result(23, [], [gone]).complaint(b"ink_stat")
    assert not Result(12, [], []).partial
    assert Result(11, [], [b"write failed: No space left on device (28)"]).partial
    assert Result(0, [b'skipping non-regular file "p"'], []).skipped(b"p")


def test_a_full_disk_is_told_even_when_the_other_sides_text_was_lost() -> None:
    lost = Result(11, [], [])
    assert lost.partial and lost.full
    assert "may be full" in lost.sentence()
    assert Result(11, [], [b"rsync: write failed: No space left on device (28)"]).sentence().endswith("(28)")
    assert not Result(12, [], []).partial and "no reason given" in Result(12, [], []).sentence()


class Hostile(Far):
    """Lists names that lead out of the data directory, and sizes and times that no database holds."""

    def walk(self, source: Source, below: bytes = b"") -> Iterator[SourceEntry]:
        names = [b"../../etc/key", b"/etc/key", b"a/../../key", b"", b".", b"a//b", b"a/./b", b"a/", b"nul\0", b"good"]
        yield from (SourceEntry(name, FileStamp(1, 1)) for name in names)
        yield SourceEntry(b"huge", FileStamp(1 << 70, 1 << 80))
        yield SourceEntry(b"negative", FileStamp(-1, -(1 << 80)))


def test_a_hostile_listing_leads_nowhere() -> None:
    source = Source("@host:/data", b"/data", "host", "ssh")
    found = {entry.path: entry.stamp for entry in Choice([Hostile()]).walk(source)}
    assert found.keys() == {b"good", b"huge", b"negative"}
    assert all(0 <= stamp.size < 1 << 63 and -(1 << 63) <= stamp.mtime_ns < 1 << 63 for stamp in found.values())


def test_a_password_is_for_the_port_of_its_daemon_alone(tmp_path: Path) -> None:
    """Anybody on that host may listen on another port, and take what proves the password home for guessing."""
    known = DaemonSettings(url="rsync://dm@storage:8873/staging", directory="/s", password_file=tmp_path / "secret")
    usual = DaemonSettings(url="rsync://dm@det/data", directory="/d", password_file=tmp_path / "secret")
    caller = Caller(RsyncSettings(daemons={"storage": known, "det": usual}))

    def shown(host: str, port: int | None) -> bool:
        arguments = caller.origin(Source("url", b"/staging/x", host, "rsync", port))
        return any(str(argument).startswith("--password-file=") for argument in arguments)

    assert shown("dm@storage", 8873) and shown("dm@det", None) and shown("dm@det", 873)
    assert not shown("dm@storage", None) and not shown("dm@storage", 9999) and not shown("dm@det", 8873)
