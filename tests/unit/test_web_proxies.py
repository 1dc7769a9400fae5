"""Who calls, when proxies stand in between."""

import pytest
from pydantic import ValidationError

from dm.common.settings import WebSettings
from dm.common.web.proxies import Proxies

PROXIES = Proxies(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "header", "caller"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),  # what the caller wrote stands to the left
        ("127.0.0.1", "192.0.2.7, 10.1.1.1", "192.0.2.7"),
        ("127.0.0.1", "127.0.0.1, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "10.1.1.1, 10.2.2.2", "10.1.1.1"),  # everybody is trusted: the outermost
        ("127.0.0.1", "192.0.2.7:51234", "192.0.2.7"),
        ("127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.1.1.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("fd00::1", "192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", "192.0.2.7, _hidden, 10.1.1.1", "10.1.1.1"),  # left of what is no address nobody can tell
        ("127.0.0.1", "evil\u00e9, 192.0.2.7", "192.0.2.7"),
        ("192.0.2.9", "192.0.2.7", "192.0.2.9"),  # no proxy of ours
        ("", "192.0.2.7", ""),
    ],
)
def test_caller(peer, header, caller):
    assert PROXIES.caller(peer, {"x-forwarded-for": header}) == caller


def test_nobody_is_believed_unless_named():
    assert Proxies().caller("127.0.0.1", {"x-forwarded-for": "192.0.2.7"}) == "127.0.0.1"
    assert PROXIES.caller("127.0.0.1", {"forwarded": "for=192.0.2.7", "x-real-ip": "192.0.2.7"}) == "127.0.0.1"


def test_a_chain_without_end_is_cut():
    assert (
        PROXIES.caller("127.0.0.1", {"x-forwarded-for": "192.0.2.7," + "10.0.0.1," * 5000 + "10.0.0.2"}) == "10.0.0.1"
    )


def test_settings_name_the_mistake():
    with pytest.raises(ValidationError, match=r"10\.1\.1\.1/8 has host bits set; write networks like"):
        WebSettings(port=0, certificate="c", key="k", trusted_proxies=["10.1.1.1/8"])
