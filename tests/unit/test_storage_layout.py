"""Directories of experiments by template."""

from __future__ import annotations

from datetime import datetime

import pytest

from dm.common.errors import InvalidArgument
from dm.site.storage.layout import Facts, checked, directory

FACTS = Facts("2BM", "exp-1", "TEST", "2026-03/week1", datetime(2026, 3, 5).astimezone())


@pytest.mark.parametrize(
    ("template", "below"),
    [
        (None, "2BM/2026-03/week1/exp-1"),
        ("{station}/{root_path}/{name}", "2BM/2026-03/week1/exp-1"),
        ("{station}/{type}/{year}-{month}/{root_path}/{name}", "2BM/TEST/2026-03/2026-03/week1/exp-1"),
        ("{station}/users_{day}/{root_path}/{name}/", "2BM/users_05/2026-03/week1/exp-1"),
    ],
)
def test_directories_follow_the_template(template: str | None, below: str) -> None:
    assert directory("/storage", checked(template) if template else None, FACTS) == f"/storage/{below}"


def test_without_a_root_path_its_component_is_left_out() -> None:
    facts = Facts("2BM", "exp-1", "TEST", "", FACTS.start)
    assert directory("/storage", None, facts) == "/storage/2BM/exp-1"


def test_a_root_path_that_has_no_place_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"arranges its experiments as \{station\}/\{year\}/\{name\}"):
        directory("/storage", "{station}/{year}/{name}", FACTS)


@pytest.mark.parametrize(
    "template",
    [
        "", "{name}", "{station}", "{year}/{station}/{name}", "{station}/{name}/{year}", "{station}/../{name}",
        "/{station}x/{name}", "{station}/{cycle}/{name}", "{station}/{}/{name}", "{station}/{name.__class__}/{name}",
        "{station}/a b/{name}", "{station}/{root_path}-x/{name}", "{station}/.x/{name}", "{station}/{name}/{name}",
        "{station}/{root_path}/{root_path}/{name}", "{station}/{year/{name}", "{station}/" + "a/" * 20 + "{name}",
        "{station}/\0/{name}",
    ],
)  # fmt: skip
def test_templates_that_cannot_be_are_refused(template: str) -> None:
    with pytest.raises(InvalidArgument):
        checked(template)


def test_a_type_that_is_no_directory_name_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="Directory name"):
        directory("/storage", "{station}/{type}/{name}", Facts("2BM", "e", "x" * 200, "", FACTS.start))
