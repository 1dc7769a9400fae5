"""Access control lists as numbers and text; a pace that stops."""

from __future__ import annotations

import threading
import time

import pytest

from dm.site.storage import acl
from dm.site.storage.pace import Pace
from dm.site.storage.verification import StoppedError


def test_a_mode_is_a_list_of_three() -> None:
    assert acl.text(acl.of_mode(0o750)) == "user::rwx,group::r-x,other::---"
    assert acl.text(acl.PRIVATE) == "user::rwx,group::r-x,other::---"


def test_named_entries_get_a_mask_that_leaves_them_what_they_have() -> None:
    entries = acl.of_mode(0o700, [acl.Entry(acl.USER, acl.EXECUTE, 7), acl.Entry(acl.GROUP, acl.READ, 8)])
    assert acl.text(entries) == "user::rwx,user:7:--x,group::---,group:8:r--,mask::r-x,other::---"


def test_a_pace_is_kept_and_ends_when_told() -> None:
    stop, calls = threading.Event(), []
    pace = Pace(1000.0, stop, lambda: calls.append(1))
    begun = time.monotonic()
    for _ in range(7):
        pace.take(100)
    assert time.monotonic() - begun >= 0.65  # 700 at 1,000 per second
    assert len(calls) == 7
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError):
        pace.take(1e9)
    with pytest.raises(StoppedError):
        pace.take(0)
