"""Names as they go into filters and DNs, marks of our entries, and the directory's settings."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dm.common.errors import ConfigurationError
from dm.site.identity.ldap.connection import escaped_dn, escaped_filter
from dm.site.identity.ldap.groups import marked
from dm.site.identity.ldap.settings import LdapSettings, of_file


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_escaping_is_narrow_and_undone_by_the_server(name: str) -> None:
    for text in (escaped_dn(name), escaped_filter(name)):
        assert re.fullmatch(r"([A-Za-z0-9_.-]|\\[0-9a-f]{2})*", text)
        octets = re.sub(rb"\\([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), text.encode())
        assert octets.decode() == name


@pytest.mark.parametrize(
    ("descriptions", "number"),
    [
        (["dm:experiment:17"], 17),
        (["else", "dm:experiment:3"], 3),
        ([], None),
        (["dm:experiment:"], None),
        (["dm:experiment:-1"], None),
        (["dm:experiment:1 "], None),
        (["dm:experiment:\u0661"], None),
        (["dm:experiment:99999999999"], None),
        (["dm2:experiment:1"], None),
        (["xdm:experiment:1"], None),
    ],
)
def test_only_our_mark_makes_an_entry_ours(descriptions: list[str], number: int | None) -> None:
    assert marked(descriptions, "dm:experiment:") == number


def test_other_services_find_the_directory_in_the_settings_file(tmp_path) -> None:
    file = tmp_path / "dm.toml"
    file.write_text("[storage]\nport = 1\n")
    assert of_file(file) is None
    file.write_text(
        '[storage.ldap]\nservers = ["ldaps://a.example.org:1636"]\nbind_dn = "cn=dm,dc=x"\nbind_password_file = "p"\n'
        'people_base = "ou=people,o=A\\\\, B"\ngroup_base = "ou=groups, dc=x"\n'
    )
    found = of_file(file)
    assert isinstance(found, LdapSettings)
    assert found.bind_password_file == tmp_path / "p"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        found.password()
    (tmp_path / "p").write_text("\nsecond line")
    with pytest.raises(ConfigurationError, match="is empty"):
        found.password()
    (tmp_path / "p").write_text("secret word\nsecond line\n")
    assert found.password() == "secret word"
    file.write_text(file.read_text().replace("servers", "server"))
    with pytest.raises(ConfigurationError, match=r"storage\.ldap\.server; did you mean servers"):
        of_file(file)
