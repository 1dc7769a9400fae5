"""The words of GridFTP: settings, URLs, what servers and globus-url-copy say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dm.common.errors import InvalidArgument, TransferError
from dm.station.acquisition.transports.base import FileStamp
from dm.station.acquisition.transports.gridftp import GridFtp
from dm.station.acquisition.transports.gridftp_control import Reply, _fact, require_speakable, speakable
from dm.station.acquisition.transports.gridftp_copy import Connections, Ended, _options, place, quoted, url
from dm.station.acquisition.transports.gridftp_push import whole
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings, ServersSettings, server

SERVER = {"s": {"urls": ["ftp://s"]}}
OWN = {"certificate": Path("/c"), "key": Path("/k")}


def test_addresses() -> None:
    assert str(server("gsiftp://h")) == "gsiftp://h:2811" and server("gsiftp://h").secure
    assert str(server("ftp://[::1]:5/")) == "ftp://[::1]:5"
    for bad in (
        "http://h",
        "ftp://",
        "ftp://-h",
        "ftp://h/path",
        "ftp://u@h",
        "ftp://h;id",
        "ftp://h?x",
        "h",
        "ftp://h:x",
    ):
        with pytest.raises(ValueError, match=r"."):
            server(bad)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"certificate": "/c"}, "belong together"),
        ({**OWN, "proxy": "/p"}, "exclude each other"),
        ({"servers": {"s": {"urls": ["gsiftp://s"]}}}, "need a credential"),
        ({"servers": {"s": {"urls": ["gsiftp://a", "ftp://b"]}}, **OWN}, "must be the same"),
        ({"servers": {"s": {"urls": []}}}, "at least 1"),
        ({"servers": {"s": {"urls": ["ftp://s"], "directory": "x"}}}, "pattern"),
        ({"concurrency": 0}, "greater than"),
        ({"password": "x"}, "Extra inputs"),
        ({"myproxy": {"server": "-oh", "user": "u", "password_file": "/p"}}, "pattern"),
        ({"myproxy": {"server": "h", "user": "--help", "password_file": "/p"}}, "pattern"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        GridFtpSettings.model_validate(values)


def test_settings_are_safe_by_default() -> None:
    settings = GridFtpSettings.model_validate({"servers": SERVER})
    assert settings.source_digests and settings.data_channel == "authenticated" and not settings.has_credential


def test_urls_hold_any_bytes() -> None:
    assert quoted(b'/a b/%41#?[x]\\"\n\xff') == "/a%20b/%2541%23%3F%5Bx%5D%5C%22%0A%FF"
    one, two = server("ftp://a:1"), server("ftp://b:2")
    assert url("source", [one], b"/x y") == "ftp://a:1/x%20y"
    assert url("destination", [one, two], b"/x") == "ftp://@destination/x"


def test_paths_as_servers_call_them() -> None:
    everything, part = ServersSettings(urls=["ftp://s"]), ServersSettings(urls=["ftp://s"], directory="/gdata/")
    assert place(everything, b"/gdata/x", "It") == b"/gdata/x"
    assert place(part, b"/gdata/x", "It") == b"/x" and place(part, b"/gdata", "It") == b"/"
    for outside in (b"/gdata2/x", b"/"):
        with pytest.raises(TransferError, match="It is not below"):
            place(part, outside, "It")


def test_options() -> None:
    plain, secure = server("ftp://s"), server("gsiftp://s")
    settings = GridFtpSettings(parallel=3, restarts=5, io_timeout=7, data_channel="private", **OWN)
    small = _options(settings, 1, {"destination": [plain]})
    assert small == ["-st", "7", "-p", "3"]
    large = _options(settings, 1 << 30, {"source": [secure], "destination": [secure]})
    assert large == ["-st", "7", "-p", "3", "-rst", "-rst-retries", "5", "-rst-interval", "1", "-pp", "-dcpriv"]


def test_connections_are_shared() -> None:
    connections = Connections(6)
    share = connections.share
    with share() as alone, share() as second, share() as third, share() as fourth:
        assert (alone, second, third, fourth) == (6, 3, 2, 2)
    with connections.share() as again:
        assert again == 6
    with Connections(1).share() as single:
        assert single == 1


def test_what_can_be_said() -> None:
    assert speakable(b"/a [x]\t%", secure=False)
    for odd in ("/é".encode(), b"/a\nb", b"/a\rb", b"/\x01", b"/\xff"):
        assert speakable(odd, secure=True) and not speakable(odd, secure=False)
    for never in (b"/a\r\nb", b"/a\n", b"/a\r", b"/a\0b"):
        assert not speakable(never, secure=True)
        with pytest.raises(InvalidArgument, match="a line end that GridFTP cannot carry"):
            require_speakable(never, secure=True)


def test_facts() -> None:
    fact = _fact(b"Type=file;Modify=20261122190604.25;Size=16;Perm=r;UNIX.mode=04755;Unique=fe00-2b2951; new\nli; ne ")
    assert fact is not None
    assert (fact.name, fact.kind, fact.mode) == (b"new\nli; ne ", "file", 0o4755)
    assert fact.stamp == FileStamp(16, 1795374364_250_000_000, 0, 0x2B2951)
    link = _fact(b"Type=dir;UNIX.slink=/tmp; l")
    pipe = _fact(b"Type=OS.unix=pipe;Modify=00000000000000;Size=x; p")
    closed = _fact(b"Type=dir;Perm=e; d")
    assert link is not None and link.kind == "link"
    assert pipe is not None and (pipe.kind, pipe.stamp) == ("other", FileStamp(0, 0))
    assert closed is not None and closed.kind == "directory" and not closed.listable
    assert _fact(b"Type=cdir;Size=1; .") is None and _fact(b"no facts") is None
    large = _fact(b"Type=file;Size=" + b"9" * 5000 + b"; f")
    assert large is not None and large.stamp.size == 0, "what no number can be is none"


def test_replies() -> None:
    gone = Reply(550, b"550-GlobusError: v=1 c=PATH_NOT_FOUND\r\n550 End.\r\n")
    assert gone.missing and not gone.good
    assert "GlobusError" in gone.sentence() and "550" not in gone.sentence()
    assert not Reply(500, b"500 Command failed\r\n").missing


SAID = b"""
continuing on error: globus_xio: Unable to open file /proc/7/fd/8
globus_xio: System error in open: No such file or directory
globus_xio: A system call failed: No such file or directory


continuing on error: globus_ftp_client: the server responded with an error
500 500-Command failed. : globus_l_gfs_file_open failed.
500-globus_xio: Unable to open file /staging/f000001
500-globus_xio: System error in open: Permission denied
500-globus_xio: A system call failed: Permission denied
500 End.


error: There were errors with 2 transfers.
"""


def test_a_killed_run_proves_little() -> None:
    there = {"f000001": 1 << 20, "f000003": 10}
    done, failed, killed = Ended(0, b""), Ended(1, SAID), Ended(-9, b"")
    assert whole("f000001", 1 << 20, there, done) and not whole("f000001", 1 << 21, there, done)
    assert not whole("f000001", 1 << 20, there, failed), "it was complained of"
    assert whole("f000003", 10, there, failed) and not whole("f000004", 10, there, done)
    for unsure in (killed, None):
        assert not whole("f000001", 1 << 20, there, unsure), "a block in the middle may be missing"
        assert whole("f000003", 10, there, unsure)


def test_complaints() -> None:
    ended = Ended(1, SAID)
    assert "Permission denied" in ended.complaint("f000001") and "500" not in ended.complaint("f000001")
    assert ended.complaint("f00000") == "" and ended.complaint("f000002") == ""
    assert ended.sentence().startswith("globus-url-copy ended with code 1: Unable to open file /proc/7/fd/8")
    assert not ended.full and not ended.killed
    assert Ended(1, b"\nerror: No space left on device\n").full
    killed = Ended(-9, b"")
    assert killed.killed and killed.sentence() == "globus-url-copy was killed by signal 9: no reason given"


def test_fetched_credentials_are_no_data() -> None:
    """The directory they will lie in is known before the first is fetched: nobody may have it uploaded."""
    myproxy = {"server": "h", "user": "u", "password_file": "/p"}
    gridftp = GridFtp(GridFtpSettings.model_validate({"myproxy": myproxy}))
    try:
        [directory] = [secret for secret in gridftp.secrets if secret.is_dir()]
        assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        gridftp.close()
    assert not directory.exists()
