"""``dm-process``: the tools that the stages of the standard workflows run; as useful by hand.

An option that is given an empty text counts as not given, so that stages can pass arguments that nobody set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dm.common.command import DmGroup, argument, key_values, option
from dm.common.environment import LOGIN_FILE
from dm.station.workflows.tools import results

main = DmGroup("dm-process", "The tools of the standard workflows; each prints what it found, one name a line.")


class Perhaps(click.ParamType):
    """A type whose empty text is the default."""

    def __init__(self, kind: Any, default: Any = None) -> None:
        self._kind = click.types.convert_type(kind)
        self._default = default
        self.name = self._kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or the default of an empty text."""
        return self._default if value in ("", None) else self._kind.convert(value, param, ctx)


def perhaps(name: str, kind: Any = str, default: Any = "", *, help: str) -> Callable[..., Any]:
    """Make an option of which an empty text is as good as nothing."""
    shown = f" Default: {default}." if default not in ("", None) else ""
    metavar = f"[{'|'.join(kind)}]" if isinstance(kind, list) else None
    kind = click.Choice(kind) if isinstance(kind, list) else kind
    return option(name, type=Perhaps(kind, default), default=default, help=help + shown, metavar=metavar)


output_option = option(
    "--output", default="", help="Directory for the results, made when it is not there. Default: the current one."
)
within_option = option(
    "--within",
    default="",
    help="Path of FILE in its experiment: results go into the same directories below --output. Default: FILE itself "
    "when it is relative.",
)


@main.command("image-statistics")
@argument("file")
@output_option
@within_option
@perhaps("--dataset", help="Path of the images in the file. Default: what NeXus marks, else the largest.")
@perhaps("--pixels", click.IntRange(16, 8192), 512, help="Longer side of the thumbnail at most.")
@perhaps("--masking", ["yes", "no"], "yes", help="Leave out pixels that the detector marks as dead or saturated.")
def image_statistics(file: str, output: str, within: str, *, dataset: str, pixels: int, masking: str) -> None:
    """Draw a thumbnail of the images in HDF5 FILE and compute their statistics."""
    from dm.station.workflows.tools import statistics

    results.tell(statistics.run(file, results.beside(output, file, within), dataset, pixels, masking == "yes"))


@main.command("summary")
@argument("file")
@output_option
@within_option
def summary(file: str, output: str, within: str) -> None:
    """Write down what is in NeXus, HDF5 or SPEC FILE."""
    from dm.station.workflows.tools import summary as tool

    results.tell(tool.run(file, results.beside(output, file, within)))


@main.command("audit")
@argument("experiment")
@output_option
@perhaps("--digests", ["yes", "no"], "yes", help="Read every file and compare its MD5; no: compare sizes only.")
@perhaps("--login-file", help=f"Login file to use. Default: that of {LOGIN_FILE}.")
def audit(experiment: str, output: str, digests: str, login_file: str) -> None:
    """Compare the catalog of EXPERIMENT with what lies in storage."""
    from dm.station.workflows.tools import audit as tool

    if login_file:
        os.environ[LOGIN_FILE] = login_file
    results.tell(tool.run(experiment, results.directory(output), digests == "yes"))


@main.command("integrate")
@argument("file")
@output_option
@within_option
@perhaps("--poni", help="Calibration by pyFAI; without one the numbers, and else what the file says, count.")
@perhaps("--distance", float, None, help="Sample to detector, mm.")
@perhaps("--beam-x", float, None, help="Column where the beam hits, pixels.")
@perhaps("--beam-y", float, None, help="Row where the beam hits, pixels.")
@perhaps("--pixel-x", float, None, help="Width of a pixel, micrometres.")
@perhaps("--pixel-y", float, None, help="Height of a pixel, micrometres.")
@perhaps("--wavelength", float, None, help="Wavelength, angstrom.")
@perhaps("--energy", float, None, help="Photon energy instead of the wavelength, keV.")
@perhaps("--mask", help="Image that is not 0 where pixels are to be left out.")
@perhaps("--dataset", help="Path of the images in the file. Default: what NeXus marks, else the largest.")
@perhaps("--points", click.IntRange(2, 100_000), 1000, help="Points of the curve.")
@perhaps("--unit", ["q_A^-1", "q_nm^-1", "2th_deg"], "q_A^-1", help="What the curve runs over.")
@perhaps("--polarization", click.FloatRange(-1, 1), None, help="Polarization factor to correct for.")
def integrate(file: str, output: str, within: str, **given: Any) -> None:
    """Integrate the images in HDF5 FILE azimuthally (with pyFAI)."""
    from dm.station.workflows.tools import integrate as tool

    options = {name: given.pop(name) for name in ("poni", "mask", "dataset", "points", "unit", "polarization")}
    results.tell(tool.run(file, results.beside(output, file, within), given=given, **options))


@main.command("compress")
@argument("file")
@output_option
@within_option
@perhaps("--method", ["gzip", "zstd"], "gzip", help="How.")
@perhaps("--level", int, None, help="Effort: gzip 1 to 9 (6), zstd 1 to 19 (3).")
def compress(file: str, output: str, within: str, method: str, level: int | None) -> None:
    """Compress FILE and verify by unpacking; the file itself stays."""
    from dm.station.workflows.tools import compress as tool

    results.tell(tool.run(file, results.beside(output, file, within), method, level))


@main.command("convert")
@argument("file")
@output_option
@within_option
@perhaps("--compression", ["gzip", "bitshuffle", "none"], "gzip", help="Compression within the HDF5 file.")
def convert(file: str, output: str, within: str, compression: str) -> None:
    """Convert image FILE (TIFF, CBF, EDF, MarCCD ...) to HDF5 and verify pixel by pixel."""
    from dm.station.workflows.tools import convert as tool

    results.tell(tool.run(file, results.beside(output, file, within), compression))


@main.command("copy")
@argument("source")
@argument("target")
@perhaps("--proxy", help="Grid proxy for GridFTP. Default: as of X509_USER_PROXY.")
@perhaps("--certificates", help="Directory of trusted authorities for GridFTP. Default: as of X509_CERT_DIR.")
@perhaps("--streams", click.IntRange(1, 64), 1, help="Parallel GridFTP streams.")
@perhaps("--identity", help="Key file for ssh.")
@perhaps("--known-hosts", help="File with the keys of hosts, for ssh.")
@perhaps("--port", click.IntRange(0, 65535), 0, help="Port of ssh.")
def copy(source: str, target: str, **access: Any) -> None:
    """Copy SOURCE to TARGET by rsync or GridFTP, either way, and compare both ends by checksum."""
    from dm.station.workflows.tools import copying

    results.tell(copying.run(source, target, copying.Access(**access)))


@main.command("xpcs-metadata")
@argument("file")
@argument("words", nargs=-1, metavar="[KEY:VALUE]...")
@perhaps("--rings", click.IntRange(1, 1000), 8, help="Rings of equal q that are correlated.")
@perhaps("--dataset", help="Path of the images in the file. Default: what NeXus marks, else the largest.")
def xpcs_metadata(file: str, words: tuple[str, ...], rings: int, dataset: str) -> None:
    """Append XPCS metadata to raw HDF5 FILE, in place.

    KEY:VALUE words are added as they are; beam_x and beam_y (pixels) centre the rings, frame_time is in seconds. A word
    without a value is passed over.
    """
    from dm.station.workflows.tools import xpcs

    given = {name: value for name, value in key_values(words).items() if value}
    results.tell(xpcs.append_metadata(file, given, rings, dataset))


@main.command("xpcs-correlate")
@argument("file")
@argument("result")
def xpcs_correlate(file: str, result: str) -> None:
    """Compute g2 of the images in FILE, prepared by xpcs-metadata, and write RESULT."""
    from dm.station.workflows.tools import xpcs

    results.tell(xpcs.correlate(file, Path(result)))
