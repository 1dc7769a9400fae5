"""A source directory the service's account may not read is refused by name, whoever runs the tests."""

import os

import pytest

from dm.common.errors import InvalidArgument
from dm.station.acquisition.transports.base import Source
from dm.station.acquisition.transports.local import check_directory


@pytest.fixture
def as_ordinary_account():
    """Give up root's right to read everything for the time of a test."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_an_unreadable_source_is_refused(open_directory, request):
    closed = open_directory / "closed"
    closed.mkdir(mode=0o000)
    request.getfixturevalue("as_ordinary_account")
    with pytest.raises(InvalidArgument, match=f"{closed}' cannot be read: Permission denied"):
        check_directory(Source(str(closed), os.fsencode(closed)))
