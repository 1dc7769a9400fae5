"""Plugins: entry points and module:Class."""

import sys

import pytest

from dm.common import plugins
from dm.common.errors import ConfigurationError


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site's own distribution with three plugins, two of them under one name."""
    info = tmp_path / "beamline_site-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beamline-site\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dm.test.plugins]\ncopier = site_code:Copier\nmover = site_code:Copier\nbroken = site_code:Nothing\n"
    )
    other = tmp_path / "other_site-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-site\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[dm.test.plugins]\nmover = other_code:Mover\n")
    (tmp_path / "site_code.py").write_text("class Copier:\n    class Inner: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("site_code", None)


def test_by_name(site):
    assert plugins.names("dm.test.plugins") == ["broken", "copier", "mover"]
    assert plugins.load("dm.test.plugins", "copier").__name__ == "Copier"


def test_by_module_and_class(site):
    assert plugins.load("dm.test.plugins", "site_code:Copier").__name__ == "Copier"
    assert plugins.load("dm.test.plugins", "site_code:Copier.Inner").__name__ == "Inner"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("copyer", r"'copyer' .* known: broken, copier, mover\. Did you mean 'copier'\?"),
        ("mover", "other_code:Mover and as site_code:Copier"),
        ("broken", "'broken' .* cannot be imported"),
        ("no.such:Thing", "no.such:Thing"),
        ("site_code:", "site_code:"),
    ],
)
def test_what_cannot_be_loaded_is_named(site, name, words):
    with pytest.raises(ConfigurationError, match=words):
        plugins.load("dm.test.plugins", name)


def test_an_empty_group():
    assert plugins.names("dm.no.group") == []
    with pytest.raises(ConfigurationError, match="known: none"):
        plugins.load("dm.no.group", "x")
