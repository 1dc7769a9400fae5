"""Names, dates, metadata, group names, passwords, errors of files: the storage service's rules without a service."""

from __future__ import annotations

import errno
import math
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dm.common.errors import DmException, InvalidArgument, ServiceLimit, TransferError
from dm.site import rules
from dm.site.identity import passwords
from dm.site.storage.batches import checked_file
from dm.site.storage.directories import file_mode
from dm.site.storage.experiments import Changes, auth_group_name
from dm.site.storage.verification import explain


@given(st.text(max_size=140))
def test_an_accepted_name_is_a_safe_directory_name_and_shell_word(name: str) -> None:
    try:
        accepted = rules.object_name(name)
    except InvalidArgument as error:
        assert len(str(error).splitlines()) == 1 and str(error).isascii()
        return
    assert accepted == name and name not in ("", ".", "..") and len(name.encode()) <= rules.MAX_NAME_BYTES
    assert not re.search(r"""[\s#%&{}\\<>*?/$!:@'"`|;()\[\]^,\0]""", name)
    assert name[0] not in ".-~"


@given(st.text(alphabet="ab./\\ -_é\0\ud800", max_size=30))
def test_an_accepted_root_path_stays_below(path: str) -> None:
    try:
        accepted = rules.root_path(path)
    except InvalidArgument:
        return
    assert not accepted.startswith("/") and ".." not in accepted.split("/")
    assert accepted == "" or all(accepted.split("/"))


@pytest.mark.parametrize(("text", "expected"), [("d123456", 123456), ("d0012", 12), ("s8iduser", None), ("d", None)])
def test_badges_come_from_user_names(text: str, expected: int | None) -> None:
    assert rules.badge_of(text) == expected


@pytest.mark.parametrize("name", ["", "1abc", "a b", "a|b", "x" * 65, "é", "a\n"])
def test_user_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidArgument):
        rules.username(name)


def test_dates_are_read_or_named() -> None:
    assert rules.date("05-Mar-26", "Start date") == datetime(2026, 3, 5).astimezone()
    assert rules.date("2026-03-05T06:00:00+00:00", "Start date") == datetime(2026, 3, 5, 6, tzinfo=UTC)
    assert rules.date(None, "x") is None and rules.date("", "x") is None
    with pytest.raises(InvalidArgument, match="1970"):
        rules.date("1815-06-18", "Start date")
    with pytest.raises(InvalidArgument, match="tomorrow"):
        rules.date("tomorrow", "Start date")


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}, "nul\0", {"k\0": 1}, ["\udcff"]])
def test_metadata_that_a_database_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match="'key'"):
        rules.metadata_value("key", value)


def test_changes_say_only_what_is_given() -> None:
    assert Changes().columns() == {}
    assert Changes(description="", data_directory_frozen=False).columns() == {
        "description": "",
        "data_directory_frozen": False,
    }


@given(st.text(min_size=1, max_size=60), st.sampled_from(["25IDC", "2-BM-A", "S" * 40]))
def test_group_names_fit_unix_and_are_never_the_same(name: str, station: str) -> None:
    first, second = auth_group_name(name, station), auth_group_name(name, station)
    assert re.fullmatch(r"[a-z0-9_]+-[a-z0-9]*-[0-9a-f]{6}", first) and len(first) <= 32
    assert first.split("-")[:2] == second.split("-")[:2]
    assert first != second or first[-6:] == second[-6:]


def test_passwords_are_hashed_with_argon2id_and_unknown_users_cost_the_same() -> None:
    stored = passwords.hashed("correct horse")
    assert stored.startswith("$argon2id$") and "correct" not in stored
    assert passwords.matches("correct horse", stored)
    for wrong in ("", "wrong", "x" * 2000, "a\0b", "\udcff"):
        assert not passwords.matches(wrong, stored)
    assert not passwords.matches("correct horse", None)
    assert not passwords.matches("no account has this hash", None)
    assert not passwords.outdated(stored)


@pytest.mark.parametrize(
    ("number", "cls", "transient"),
    [
        (errno.ENOSPC, ServiceLimit, True),
        (errno.EDQUOT, ServiceLimit, True),
        (errno.EACCES, TransferError, False),
        (errno.EROFS, TransferError, False),
        (errno.EIO, TransferError, True),
        (errno.EMFILE, TransferError, True),
        (errno.ENAMETOOLONG, InvalidArgument, False),
    ],
)
def test_errors_of_the_system_name_the_file_system(number: int, cls: type[DmException], transient: bool) -> None:
    error, again = explain(OSError(number, "Reason"), "File 'f' cannot be put in place", "/storage/exp")
    assert type(error) is cls and again is transient
    assert "'f'" in str(error) and "/storage/exp" in str(error)


@pytest.mark.parametrize(("mode", "expected"), [(0, 0o640), (0o7777, 0o750), (0o600, 0o640), (0o010, 0o750)])
def test_published_modes_keep_only_executability(mode: int, expected: int) -> None:
    assert file_mode(mode) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)
KEYS = ["stagedName", "size", "mtimeNs", "mode", "digests", "md5Sum", "sourceUrl", "other"]


@given(st.text(max_size=20), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_file_entries_of_any_shape_are_checked_not_crashed_on(path: str, rest: dict[str, object]) -> None:
    usual = {"path": path, "stagedName": "0", "size": 1, "mtimeNs": 1}
    try:
        checked = checked_file(usual | rest)
    except DmException:
        return
    assert checked["path"] and not checked["path"].startswith("/")
