"""Compressing files with proof: what was written is read back and compared before anybody hears of success."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from dm.common import digests
from dm.common.errors import InvalidArgument, InvalidObjectState, TransferError
from dm.station.workflows.tools import results

METHODS = {"gzip": ".gz", "zstd": ".zst"}
_LEVELS = {"gzip": (1, 9, 6), "zstd": (1, 19, 3)}
_DIGEST = "md5"


def run(path: str, output: Path, method: str = "gzip", level: int | None = None) -> dict[str, Any]:
    """Write ``<name>.gz`` or ``<name>.zst``; equal input gives equal bytes. The file itself stays.

    :param path: any file. :param output: directory. :param method: of :data:`METHODS`.
    :param level: gzip 1 to 9 (6), zstd 1 to 19 (3).
    :returns: what :func:`results.tell` shows: the result's name, both sizes, the ratio, MD5 of the original.
    :raises InvalidObjectState: the file changed meanwhile. :raises TransferError: what was written is not the file.
    :raises ConfigurationError: zstd without its package.
    """
    low, high, usual = _LEVELS[method]
    level = usual if level is None else level
    if not low <= level <= high:
        raise InvalidArgument(f"Level {level} of {method} is not between {low} and {high}.")
    writer, reader = _opener(method, level)
    source = Path(path)
    target = output / results.named(path, METHODS[method])
    with source.open("rb") as stream, results.replaced(target) as partial:
        before = os.fstat(stream.fileno())
        with partial.open("wb") as raw, closing(writer(raw)) as packed:
            size, digest = _copied(stream, packed)
        if _stamp(before) != _stamp(source.stat()) or size != before.st_size:
            raise InvalidObjectState(f"File {path[:200]!r} changed while it was compressed; do it again.")
        with partial.open("rb") as written, closing(reader(written)) as unpacked:
            again = digests.digest_stream(unpacked, [_DIGEST])
        if again != (size, {_DIGEST: digest}):
            raise TransferError(f"What was written of {path[:200]!r} does not unpack to the same bytes.")
        os.utime(partial, ns=(before.st_atime_ns, before.st_mtime_ns))
        packed_size = partial.stat().st_size
    return {
        "compressed": target.name,
        "originalSize": size,
        "compressedSize": packed_size,
        "ratio": size / packed_size,
        "md5Sum": digest,
    }


def _opener(method: str, level: int) -> tuple[Callable[[BinaryIO], Any], Callable[[BinaryIO], Any]]:
    if method == "gzip":
        return (
            lambda raw: gzip.GzipFile("", "wb", level, raw, mtime=0),
            lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
        )
    zstandard = results.required("zstandard", "Compression with zstd")
    return (
        lambda raw: zstandard.ZstdCompressor(level=level, write_checksum=True).stream_writer(raw, closefd=False),
        lambda raw: zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False),
    )


def _copied(source: BinaryIO, target: Any) -> tuple[int, str]:
    made, size = digests.maker(_DIGEST), 0
    while piece := source.read(digests.CHUNK):
        made.update(piece)
        target.write(piece)
        size += len(piece)
    return size, made.hexdigest()


def _stamp(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_ino, state.st_size, state.st_mtime_ns
