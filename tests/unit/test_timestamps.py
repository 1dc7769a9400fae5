"""Times and dates as DM writes and reads them."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from dm.common import timestamps
from dm.common.errors import InvalidArgument


@pytest.fixture(autouse=True)
def chicago(monkeypatch):
    monkeypatch.setenv("TZ", "America/Chicago")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_text_forms():
    assert timestamps.text(0) == "1969/12/31 18:00:00 CST"
    assert timestamps.text(1783000000.9) == "2026/07/02 08:46:40 CDT"
    assert timestamps.iso(datetime(2026, 2, 13)) == "2026-02-13 00:00:00-06:00"
    assert timestamps.iso(1783000000.25) == "2026-07-02 08:46:40.250000-05:00"
    assert abs(timestamps.now() - time.time()) < 60


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("05-Mar-26", "2026-03-05 00:00:00-06:00"),
        ("5-mar-2026", "2026-03-05 00:00:00-06:00"),
        ("31-DEC-99", "1999-12-31 00:00:00-06:00"),
        ("2026-03-05", "2026-03-05 00:00:00-06:00"),
        (" 2026-07-05 10:00 ", "2026-07-05 10:00:00-05:00"),
        ("2026-07-05T10:00:00+02:00", "2026-07-05 03:00:00-05:00"),
        ("2026-07-05T10:00:00Z", "2026-07-05 05:00:00-05:00"),
        ("2026-02-13 00:00:00-06:00", "2026-02-13 00:00:00-06:00"),
        ("2026/07/02 08:46:40 CDT", "2026-07-02 08:46:40-05:00"),
        ("2026/07/02 08:46:40", "2026-07-02 08:46:40-05:00"),
        ("2026/07/02", "2026-07-02 00:00:00-05:00"),
        ("2026/07/02 08:46:40 UTC", "2026-07-02 03:46:40-05:00"),
        ("2026/07/02 08:46:40 +02", "2026-07-02 01:46:40-05:00"),
        (0, "1969-12-31 18:00:00-06:00"),
        (datetime(2026, 1, 1, 6, tzinfo=UTC), "2026-01-01 00:00:00-06:00"),
    ],
)
def test_what_is_understood(text, found):
    assert timestamps.iso(timestamps.parse(text)) == found


@pytest.mark.parametrize(
    "text", ["", "yesterday", "31-Feb-26", "05-Mrz-26", "2026-13-01", "05/03/2026", "1e300", 1e300, None, True, [],
             "2026/07/02 08:46:40 XYZ"]
)  # fmt: skip
def test_what_is_not_is_named(text):
    with pytest.raises(InvalidArgument, match="Date"):
        timestamps.parse(text)


def test_what_we_write_we_read():
    for epoch in (0, 1762061400, 1762065000, 1783000000):  # also both hours of the autumn change
        assert timestamps.parse(timestamps.text(epoch)).timestamp() == epoch
        assert timestamps.parse(timestamps.iso(epoch)).timestamp() == epoch


def test_time_utility_is_published():
    assert timestamps.TimeUtility.GMT_FORMAT_SHORT == "%Y-%m-%d"
    assert timestamps.TimeUtility.text(0) == timestamps.text(0)
    assert timestamps.parse("2026-03-05").utcoffset() == timedelta(hours=-6)
