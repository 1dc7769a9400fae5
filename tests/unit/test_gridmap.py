"""What becomes a line of a grid-mapfile, and what never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ConfigurationError, InvalidArgument, InvalidObjectState
from dm.site.storage.gridmap import Map, Rules, made, subjects_of, system_accounts, write

SYSTEM = frozenset({"root", "daemon"})
BY_NAME = "/DC=org/CN={username}"


def user(username: str, **more: Any) -> dict[str, Any]:
    return {"username": username, "badge": None, "firstName": "A", "lastName": "B", "email": "", "active": True} | more


def test_active_users_have_lines() -> None:
    people = [user("d2"), user("d1"), user("d3", active=False)]
    result = made(people, Rules(BY_NAME), SYSTEM)
    assert result.text().splitlines()[1:] == ['"/DC=org/CN=d1" d1', '"/DC=org/CN=d2" d2'] and not result.skipped


def test_a_template_of_several_fields() -> None:
    rules = Rules("/O=X/CN={firstName} {lastName} {badge}", account="u{badge}")
    assert made([user("d7", badge=7)], rules, SYSTEM).accounts == {"/O=X/CN=A B 7": "u7"}
    assert made([user("d7")], rules, SYSTEM).skipped == [
        "User 'd7' has no line: badge is empty, or has a character that a subject cannot have."
    ]


@pytest.mark.parametrize("username", ["root", "daemon", "../x", "A", "a b", "a\nroot", "", "-x", 'a"'])
def test_accounts_nobody_becomes(username: str) -> None:
    result = made([user(username, badge=1)], Rules("/O=X/CN={badge}"), SYSTEM)
    assert result.accounts == {} and len(result.skipped) == 1


@pytest.mark.parametrize("name", ["x/CN=other", "x=y", 'x" root', "x\\x41", "é", "x\ny"])
def test_names_do_not_forge_subjects(name: str) -> None:
    result = made([user("d1", lastName=name)], Rules("/O=X/CN={lastName}"), SYSTEM)
    assert result.accounts == {} and len(result.skipped) == 1


def test_a_subject_of_two_is_nobody_s() -> None:
    people = [user("d1"), user("d2"), user("d3", lastName="C")]
    result = made(people, Rules("/O=X/CN={firstName} {lastName}"), SYSTEM)
    assert result.accounts == {"/O=X/CN=A C": "d3"} and len(result.skipped) == 2


def test_subjects_of_one_s_own_come_instead(tmp_path: Path) -> None:
    file = tmp_path / "subjects.csv"
    file.write_text('# ours\nd1,/O=Y/CN=One\nd1,"/O=Y, Inc/CN=One"\n\n')
    result = made([user("d1"), user("d2")], Rules(BY_NAME, subjects_of(file)), SYSTEM)
    assert set(result.accounts) == {"/O=Y/CN=One", "/O=Y, Inc/CN=One", "/DC=org/CN=d2"}
    file.write_text("d1\n")
    with pytest.raises(ConfigurationError, match="line 1: write it as username,subject"):
        subjects_of(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        subjects_of(tmp_path / "none")


@pytest.mark.parametrize("template", ["CN={username}", "/CN={password}", "/CN={username!r}", "/CN={0}", "/CN"])
def test_templates_that_cannot_be(template: str) -> None:
    with pytest.raises(InvalidArgument, match="Template"):
        Rules(template)


def test_the_machine_s_own_accounts() -> None:
    assert system_accounts(1000) >= {"root", "daemon"}
    assert system_accounts(0) == {"root"}


def test_writing(tmp_path: Path) -> None:
    file = tmp_path / "grid-mapfile"
    many = Map({f"/CN={n}": f"d{n}" for n in range(40)})
    assert write(file, many) and not write(file, many)
    assert file.stat().st_mode & 0o777 == 0o644 and [path.name for path in tmp_path.iterdir()] == ["grid-mapfile"]
    before = file.read_text()
    with pytest.raises(InvalidObjectState, match=r"39 of 40 entries of .* would go, more than 50 %"):
        write(file, Map({"/CN=0": "d0"}))
    assert file.read_text() == before
    assert write(file, Map({"/CN=0": "d0"}), None) and file.read_text().count("\n") == 2
    assert write(file, Map()), "a few may go at once"
