"""The generated pages of the reference are those the code makes now."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "commands.md",
        "python-api.md",
        "rest-acquisition.md",
        "rest-catalog.md",
        "rest-processing.md",
        "rest-storage.md",
        "settings.md",
        "standard-workflows.md",
        "workflows.md",
    ],
)
def test_no_drift(generate, name):
    made = generate.page(name)
    assert (DOCS / "reference" / name).read_text() == made, f"docs/reference/{name} has drifted; run: make docs"


def test_every_page_is_checked(generate):
    written = {"index.md", "faults.md", "daq-keys.md", "performance.md", "zeromq.md"}
    assert {path.name for path in (DOCS / "reference").glob("*.md")} - written == set(generate.PAGES)
