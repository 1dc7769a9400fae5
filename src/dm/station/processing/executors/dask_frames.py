"""Frames between the dask executor and its client process: a JSON object and bytes that belong to it."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

_HEAD = struct.Struct(">II")
MAX_HEADER = 8 << 20
MAX_BODY = 64 << 20


def pack(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Return a frame."""
    text = json.dumps(header).encode()
    return _HEAD.pack(len(text), len(body)) + text + body


async def receive(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """Return the next frame.

    :raises EOFError: the other side has gone. :raises ValueError: that was no frame.
    """
    try:
        sizes = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if sizes[0] > MAX_HEADER or sizes[1] > MAX_BODY:
            raise ValueError("A frame is too long.")
        header = json.loads(await reader.readexactly(sizes[0]))
        body = await reader.readexactly(sizes[1])
    except (asyncio.IncompleteReadError, ConnectionError):
        raise EOFError from None
    if not isinstance(header, dict):
        raise ValueError("A frame has no header.")
    return header, body
