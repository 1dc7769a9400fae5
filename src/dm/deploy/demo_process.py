"""``dm-demo-process``: what the demo's workflow does with a data file, a stage at a time.

* ``inspect FILE`` prints numbers, one ``Label: value`` per line, for the stage's output regexes.
* ``picture FILE DIRECTORY`` draws the file's image, curve or last SPEC scan into ``DIRECTORY/<name>.png``.
* ``upload EXPERIMENT DIRECTORY PATH`` brings the results into the experiment's ``analysis/`` and waits for the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dm.common.errors import CommunicationError, InvalidSession, ServiceUnavailable

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 1 << 28
PICTURE_PIXELS = 256
_SIGNATURE_SEARCH = 1000
# a longer curve is likelier scattering than a motor's scan across a peak, and points would hide its line
_LONG_CURVE = 100
# exit statuses of commands that may well succeed a moment later; how long to try, in seconds
_PASSING = {error.code for error in (CommunicationError, ServiceUnavailable, InvalidSession)}
_PATIENCE = 60.0
_PAUSE = 1.0
# dark blue - teal - yellow, near matplotlib's viridis; avoids importing it for a thumbnail
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass
class Content:
    """What there is to show: an image (2-d), a curve (x, y), or nothing.

    :param kind: ``image``, ``curve``, ``scan`` or ``other``. :param label: what it is, for the picture's title.
    """

    kind: str
    label: str = ""
    values: np.ndarray[Any, Any] | None = None
    x: np.ndarray[Any, Any] | None = None
    x_label: str = ""
    y_label: str = ""
    scans: int = 0


def look(path: str) -> Content:
    """Return the content of an HDF5/NeXus or SPEC file; anything else is ``other``."""
    import h5py

    from dm.station.acquisition.plugins.metadata_spec import is_spec

    if h5py.is_hdf5(path):
        with h5py.File(path, "r", locking=False) as file:
            return _hdf5(path, file)
    with Path(path).open("rb") as stream:
        head = stream.read(4096)
    return _spec(path) if is_spec(head) else Content("other")


def _hdf5(path: str, file: Any) -> Content:
    from dm.station.acquisition.plugins import metadata_hdf5

    found = metadata_hdf5.extract(path)
    arrays = _arrays(file)
    signal = str(found.get("signal", "")).strip("/")
    title = str(found.get("title") or found.get("sampleName") or Path(path).name)
    images = [name for name, array in arrays.items() if _is_image(array)]
    if signal in images:
        images.insert(0, signal)
    if images and (signal in images or signal not in arrays):
        return Content("image", title, _frame(arrays[images[0]]))
    curves = [name for name, array in arrays.items() if array.ndim == 1]
    if signal not in curves or _liveliness(arrays[signal]) == 0:
        # the marked data are flat, or lie in a file that is not here: the liveliest curve beside them says most
        curves.sort(key=lambda name: ("time" in name.rpartition("/")[2].lower(), -_liveliness(arrays[name])))
        signal = curves[0] if curves else ""
    if signal:
        return Content("curve", title, arrays[signal][()], x_label="point", y_label=signal.rpartition("/")[2])
    return Content("image", title, _frame(arrays[images[0]])) if images else Content("other")


def _arrays(file: Any) -> dict[str, Any]:
    """Return the numeric datasets of bearable size, biggest images first; links out of the file are not followed."""
    import h5py

    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> bool | None:
        numeric = isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and bool(item.shape)
        if numeric and item.size > 1 and item.size * item.dtype.itemsize <= MAX_BYTES:
            inside = not item.external and not item.is_virtual
            if inside:
                found[name] = item
        return True if len(found) >= _SIGNATURE_SEARCH else None

    file.visititems(visit)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1].ndim, -pair[1].size)))


def _is_image(array: Any) -> bool:
    return array.ndim >= 2 and min(array.shape[-2:]) >= 4


def _frame(array: Any) -> np.ndarray[Any, Any]:
    """Return the middle frame of a stack."""
    frame: np.ndarray[Any, Any] = array[(*(size // 2 for size in array.shape[:-2]), slice(None), slice(None))]
    return frame


def _liveliness(array: Any) -> float:
    import numpy as np

    values = np.asarray(array[()], dtype=float)
    spread = float(np.nanmax(values) - np.nanmedian(values)) if np.isfinite(values).any() else 0.0
    return spread / (abs(float(np.nanmedian(values))) + 1e-9)


def _spec(path: str) -> Content:
    from silx.io.specfile import SpecFile

    file = SpecFile(path)
    try:
        count = len(file)
        # scans that were aborted at once have no data: show the last one that has
        for index in range(count - 1, -1, -1):
            scan = file[index]
            if scan.data.size and scan.data.shape[1] > 1:
                labels = list(scan.labels)
                label = f"#S {scan.scan_header_dict.get('S', '').strip()}"
                x, y = scan.data[0].copy(), scan.data[-1].copy()
                return Content("scan", label, y, x, labels[0], labels[-1], count)
        return Content("other")
    finally:
        file.close()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The stages of the demo's workflow."""


@main.command()
@click.argument("file")
def inspect(file: str) -> None:
    """Print numbers found in FILE."""
    import numpy as np

    content = look(file)
    click.echo(f"Kind: {content.kind}")
    if content.kind == "scan":
        click.echo(f"Scans: {content.scans}")
    if content.values is not None and np.isfinite(content.values).any():
        click.echo(f"Points: {content.values.size}")
        click.echo(f"Maximum: {np.nanmax(content.values):.6g}")
        click.echo(f"Mean: {np.nanmean(content.values):.6g}")


@main.command()
@click.argument("file")
@click.argument("directory")
def picture(file: str, directory: str) -> None:
    """Draw FILE into a new directory below DIRECTORY and print its name."""
    content = look(file)
    if content.values is None:
        raise click.ClickException(f"{file} holds nothing to draw.")
    results = Path(tempfile.mkdtemp(prefix="results-", dir=directory))
    target = results / (Path(file).name.encode("utf-8", "replace").decode() + ".png")
    if content.kind == "image":
        _thumbnail(content, target)
    else:
        _plot(content, target)
    click.echo(f"Picture: {target.name}\nResults: {results}")


def _thumbnail(content: Content, target: Path) -> None:
    import numpy as np
    from PIL import Image

    image = np.nan_to_num(np.asarray(content.values, dtype=float), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(image, (1, 99.7))
    image = np.clip(image, low, max(high, low + 1e-9)) - low
    if _wide(image):
        image = np.log1p(100 * image / image.max())
    level = image / image.max() if image.max() > 0 else image
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(level, stops, [colour[i] for colour in _COLOURS]) for i in range(3)]
    drawn = Image.fromarray(np.dstack(channels).astype("u1"))
    scale = PICTURE_PIXELS / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    drawn.resize(size, method).save(target)


def _wide(values: np.ndarray[Any, Any]) -> bool:
    """Whether most values would vanish on a linear scale: scattering, where a few are many times the others."""
    import numpy as np

    return bool(np.nanmax(values) > 20 * max(float(np.nanmedian(values)), 1e-9))


def _plot(content: Content, target: Path) -> None:
    # its caches go where we may write: the account of a stage often has no home
    os.environ.setdefault("MPLCONFIGDIR", str(target.parent.parent / "matplotlib"))
    import matplotlib

    matplotlib.use("agg")
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes: Any = figure.add_subplot()
    values = np.asarray(content.values, dtype=float)
    long = len(values) > _LONG_CURVE
    positions = np.arange(len(values)) if content.x is None else content.x
    axes.plot(positions, values, marker=None if long else ".", linewidth=0.8)
    if long and np.nanmin(values) >= 0 and _wide(values):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel(_plain(content.x_label))
    axes.set_ylabel(_plain(content.y_label))
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)
    axes.set_title(_plain(content.label), fontsize=9)
    figure.savefig(target, dpi=100)


def _plain(text: str) -> str:
    """Return text for a plot, where ``$`` would begin a formula."""
    return text.replace("$", "")[:60]


@main.command()
@click.argument("experiment")
@click.argument("directory")
@click.argument("path")
def upload(experiment: str, directory: str, path: str) -> None:
    """Upload DIRECTORY, results of experiment file PATH, into analysis/pictures of EXPERIMENT, and remove it."""
    into = str(Path("pictures", path).parent)
    finished = _run(
        "dm-upload", "--wait", "--experiment", experiment, "--data-directory", directory,
        "--use-analysis-directory-as-root", "--dest-directory", into, "--on-conflict", "version",
        "--display-keys", "id,status,nCompletedFiles",
    )  # fmt: skip
    if "status=done" not in finished:
        raise click.ClickException(f"The upload of {directory} did not succeed: {finished}")
    shutil.rmtree(directory)
    click.echo(f"Uploaded: {finished.strip()}")


def _run(name: str, *arguments: str) -> str:
    """Run one of our own commands, found beside this one, and return its output.

    While a service or its database is away the command is repeated: uploading what is there already changes nothing.
    """
    beside = Path(os.environ.get("DM_INSTALL_DIR", ""), "bin", name)
    command = str(beside) if beside.is_file() else shutil.which(name) or str(Path(sys.executable).parent / name)
    deadline = time.monotonic() + _PATIENCE
    while True:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
        if not done.returncode:
            return done.stdout.strip()
        if done.returncode not in _PASSING or time.monotonic() > deadline:
            raise click.ClickException(f"{name} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
        time.sleep(_PAUSE)


if __name__ == "__main__":
    main()
