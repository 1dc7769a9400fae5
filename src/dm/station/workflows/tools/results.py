"""What every tool does with what it found: tells it, hands it to later stages, writes files whole or not at all."""

from __future__ import annotations

import importlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dm.common import paths
from dm.common.errors import ConfigurationError

OUTPUT_FILE = "DM_OUTPUT_FILE"
_LONGEST = 120  # bytes of a result's name: undecodable ones show as four, and a temporary name is longer still


def tell(values: Mapping[str, Any]) -> None:
    """Print ``name: value`` lines and, within a stage, make the values variables of the job.

    :param values: texts, numbers or truth values by name; ``None`` and numbers that JSON does not know are left out.
    """
    known = {name: plain(value) for name, value in values.items()}
    known = {name: value for name, value in known.items() if value is not None}
    for name, value in known.items():
        shown = " ".join(value.split()) if isinstance(value, str) else value
        print(f"{name}: {shown:.8g}" if isinstance(shown, float) else f"{name}: {shown}")
    if place := os.environ.get(OUTPUT_FILE):
        Path(place).write_text(json.dumps(known), "utf-8")


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numpy's as Python's, no NaN or infinity (``None``), undecodable text replaced."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(target: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with replaced(target) as partial:
        partial.write_text(json.dumps(plain(values), indent=1) + "\n", "utf-8")


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Lend a temporary file that takes the place of ``target`` when the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.chmod(0o666 & ~_mask())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _mask() -> int:
    mask = os.umask(0o027)
    os.umask(mask)
    return mask


def directory(place: str) -> Path:
    """Return an output directory, made when it is not there; empty text is the current one."""
    found = Path(place or ".")
    found.mkdir(parents=True, exist_ok=True)
    return found


def beside(output: str, file: str, within: str) -> Path:
    """Return the directory for what is made of a file: below ``output`` where the file is within its experiment.

    :param within: the file's path in the experiment; empty: that of ``file`` when it is relative, as jobs name files of
        their experiment, else results lie directly in ``output``.
    :raises InvalidArgument: a path that leads out of the experiment.
    """
    path = within or ("" if file.startswith("/") else file)
    inner = paths.decode(paths.relative(path)).rpartition("/")[0] if path else ""
    return directory(f"{output or '.'}/{inner}")


def named(path: str, ending: str) -> str:
    """Return the name of a result: the name of the file it was made from, as text, with another ending."""
    stem = os.fsencode(Path(path).name)
    return paths.display(stem[: _LONGEST - len(ending)]) + ending


def required(module: str, purpose: str) -> Any:
    """Return an optional package. :raises ConfigurationError: it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigurationError(
            f"{purpose} needs the Python package {package!r}; install it with: pip install 'beamline-dm[workflows]'."
        ) from None
