"""Compressing and decompressing one file beside itself, digesting both sides on the way."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import xxhash

from dm.common.errors import InvalidArgument, TransferError

CHUNK = 1 << 20
MAKES = ("gz", "bz2", "xz")


@dataclass(frozen=True)
class Digested:
    """Size and digest (xxh3_128) of contents."""

    size: int
    digest: bytes


def checked(name: str) -> str:
    """Return the name of a compression that can be made; empty means ``gz``. :raises InvalidArgument: it cannot."""
    if name and name not in MAKES:
        raise InvalidArgument(f"Compression {name[:40]!a} cannot be made here; choose one of {', '.join(MAKES)}.")
    return name or "gz"


def packed(stream: BinaryIO, name: str) -> BinaryIO:
    """Return a stream that compresses into, or decompresses from, an open one; equal contents give equal bytes."""
    if name == "gz":
        writing = "w" in stream.mode or "+" in stream.mode
        made = gzip.GzipFile("", "wb" if writing else "rb", 6, stream, 0)
        return cast(BinaryIO, made)
    module: Callable[..., object] = {"bz2": bz2.BZ2File, "xz": lzma.LZMAFile}[name]
    return cast(BinaryIO, module(stream, "wb" if "+" in stream.mode else "rb"))


def digested(source: BinaryIO, go_on: Callable[[], None]) -> Digested:
    """Read a stream to its end. :param go_on: called now and then; raises to stop."""
    made, size = xxhash.xxh3_128(), 0
    for chunk in _chunks(source, go_on):
        made.update(chunk)
        size += len(chunk)
    return Digested(size, made.digest())


def copied(source: BinaryIO, target: BinaryIO, go_on: Callable[[], None]) -> Digested:
    """Copy a stream to its end and return size and digest of what was copied. :param go_on: see :func:`digested`."""
    made, size = xxhash.xxh3_128(), 0
    for chunk in _chunks(source, go_on):
        made.update(chunk)
        size += len(chunk)
        target.write(chunk)
    return Digested(size, made.digest())


def _chunks(source: BinaryIO, go_on: Callable[[], None]) -> Iterator[bytes]:
    try:
        while chunk := source.read(CHUNK):
            go_on()
            yield chunk
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise TransferError(f"The compressed contents are damaged: {error}.") from None


def compress(source: int, target: int, name: str, go_on: Callable[[], None]) -> tuple[Digested, Digested]:
    """Compress an open file into another open one, and read it back.

    :returns: of the contents, of the compressed file. :raises TransferError: read back they are not what went in.
    """
    with os.fdopen(os.dup(source), "rb") as plain, os.fdopen(os.dup(target), "wb+") as stream:
        plain.seek(0)
        with packed(stream, name) as packing:
            contents = copied(plain, packing, go_on)
        stream.flush()
    again = _contents(target, name, go_on)
    if again != contents:
        raise TransferError(f"Compressed and read back, {contents.size} bytes became {again.size} others.")
    return contents, _whole(target, go_on)


def decompress(source: int, target: int, name: str, go_on: Callable[[], None]) -> tuple[Digested, Digested]:
    """Decompress an open file into another open one, and read it back.

    :returns: of the contents, of the compressed file. :raises TransferError: damaged, or read back something else.
    """
    with os.fdopen(os.dup(source), "rb") as stream, os.fdopen(os.dup(target), "wb+") as plain:
        stream.seek(0)
        with packed(stream, name) as unpacking:
            contents = copied(unpacking, plain, go_on)
        plain.flush()
    if _whole(target, go_on) != contents:
        raise TransferError("What was decompressed is not what is read back.")
    return contents, _whole(source, go_on)


def _contents(descriptor: int, name: str, go_on: Callable[[], None]) -> Digested:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        with packed(stream, name) as unpacking:
            return digested(unpacking, go_on)


def _whole(descriptor: int, go_on: Callable[[], None]) -> Digested:
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return digested(stream, go_on)
