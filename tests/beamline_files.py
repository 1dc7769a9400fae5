"""Files of real beamlines, where they lie beside the repository; they are not part of the product."""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "beamline"


def beamline_file(name: str) -> Path:
    """Return one of them."""
    path = FOLDER / name
    assert path.is_file(), f"{path} is missing: these tests need the files of real beamlines in {FOLDER}"
    return path
