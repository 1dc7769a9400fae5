"""The pages on transports name every setting, with its default, and no setting that is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from dm.common import plugins
from dm.station.acquisition.transports.globus_session import GlobusSettings
from dm.station.acquisition.transports.local import LocalSettings
from dm.station.acquisition.transports.rsync_command import DaemonSettings, RsyncSettings

PAGES = Path(__file__).parents[2] / "docs" / "how-to" / "transports"


def table(name: str) -> dict[str, str]:
    """Return setting -> default as the page's table of settings has them."""
    _before, _title, after = (PAGES / f"{name}.md").read_text().partition("| setting | default |")
    rows = re.findall(r"^\| (`[^|]*`) \|([^|]*)\|", after, re.MULTILINE)
    return {setting: shown.strip() for names, shown in rows for setting in re.findall(r"`(\w+)`", names)}


@pytest.mark.parametrize(
    ("name", "model"), [("local", LocalSettings), ("rsync", RsyncSettings), ("globus", GlobusSettings)]
)
def test_settings(name: str, model: type[BaseModel]) -> None:
    found = table(name)
    assert set(found) == set(model.model_fields)
    for field, shown in found.items():
        default = model.model_fields[field].default
        if field == "workers" or shown == "":
            continue
        assert shown.strip("`").replace('"', "") in {str(default).lower(), str(default), *_spellings(default)}, field


def _spellings(default: object) -> set[str]:
    if isinstance(default, dict):
        return {" = ".join(pair) for pair in default.items()}
    if isinstance(default, list):
        return {f"[{', '.join(default)}]"}
    return {f"{default:g}"} if isinstance(default, float | int) else set()


def test_daemons_are_explained() -> None:
    page = (PAGES / "rsync.md").read_text()
    assert all(f"`{field}`" in page for field in DaemonSettings.model_fields)


def test_every_transport_has_a_page_in_the_index() -> None:
    index = (PAGES / "index.md").read_text()
    for name in plugins.names("dm.transports"):
        assert (PAGES / f"{name}.md").is_file()
        assert re.search(rf"^{name}$", index, re.MULTILINE), name
