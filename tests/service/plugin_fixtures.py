"""Stored files as plugins see them, without a DAQ around them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginContext, PluginFile

EXPERIMENT = {"id": 7, "name": "exp1"}

#: F-18: names that something on the way might not survive
NAMES = [
    b"plain.h5",
    b"with space and trailing ",
    b"%41#?&=+",
    b"new\nline",
    b"quote'\"`",
    b"$(touch pwned);&|<>",
    b"-rf",
    b"*[x]?{a,b}",
    b"back\\slash",
    b"co:lon@host",
    "üñï-日本.h5".encode(),
    b"NFC-\xc3\xa9",
    b"NFD-e\xcc\x81",
    b"invalid-\xff\xfe",
    "emoji-\U0001f52c".encode(),
    b"~",
    b"{storagePath}",
    b"d" * 250 + b".tif",
]


def context(**more: Any) -> PluginContext:
    """Return what the service would give plugins."""
    return PluginContext(**{"station_name": "25IDC", "username": "s25idcdm", "password": "unused", **more})


def plugin(name: str, **table: Any) -> Plugin:
    """Make one plugin as the service makes it."""
    [made] = make_plugins({name: table}, context())
    return made


def stored(root: Path, files: Mapping[bytes, bytes], version: int = 1, **daq: Any) -> PluginBatch:
    """Write files below ``root/source`` and ``root/storage`` and return them as a batch of a DAQ."""
    made = []
    for path, content in files.items():
        places = [os.path.join(os.fsencode(root), part, path) for part in (b"source", b"storage")]
        for place in places:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(content)
        status = os.stat(places[0])
        os.utime(places[1], ns=(status.st_mtime_ns, status.st_mtime_ns))
        digest = xxhash.xxh3_128_hexdigest(content)
        made.append(
            PluginFile(
                path=path,
                source_path=places[0],
                source_url="file:///somewhere",
                storage_path=places[1],
                size=len(content),
                mtime_ns=status.st_mtime_ns,
                digests={"xxh3_128": digest},
                md5=hashlib.md5(content).hexdigest(),
                version=version,
                key=f"daq:{hashlib.sha256(path).hexdigest()}:{digest}",
                metadata={"sample": "gold"},
            )
        )
    info = {"id": "d1", "experimentName": EXPERIMENT["name"], "owner": "d123456", **daq}
    return PluginBatch(info, dict(EXPERIMENT), "data", made, id="b1")


def errors(batch: PluginBatch) -> dict[bytes, tuple[str, bool]]:
    """Return path -> error and whether it may pass, of the files that failed."""
    return {file.path: (file.error, file.transient) for file in batch.files if file.error}
