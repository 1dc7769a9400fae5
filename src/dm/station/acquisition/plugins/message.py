"""What programs outside DM are told of stored files: one JSON object, for webhooks, ZeroMQ and commands alike.

==================  ================================================================================================
``schema``          ``dm.files/1``; the number counts up when a key changes its meaning
``id``              the same text whenever the same files are told again, e.g. after a restart: do things once by it
``time``            when it was made, seconds since the epoch
``station``         name of the station
``daqId``           of the DAQ or upload
``experimentName``  with ``experimentId`` (a number) and ``root`` (``data`` or ``analysis``)
``files``           a list; of each file ``path`` (below the root), ``storagePath`` and ``sourceUrl``, ``size`` (bytes),
                    ``modificationTime`` (seconds since the epoch), ``md5Sum`` (or ``null``), ``digests``
                    (algorithm -> hex), ``version`` (from 1) and ``metadata``
==================  ================================================================================================

The text is ASCII. Bytes of a file name that are no UTF-8 are written as lone surrogates (``\\udcff``), which Python's
``os.fsencode`` turns back into the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from dm.common.paths import decode
from dm.station.acquisition.plugins.base import PluginBatch, PluginFile

SCHEMA = "dm.files/1"
Per = Literal["file", "batch"]


def parts(batch: PluginBatch, per: Per) -> Iterator[list[PluginFile]]:
    """Yield the files of each message: one by one, or all."""
    if per == "file":
        yield from ([file] for file in batch.files)
    elif batch.files:
        yield list(batch.files)


def message(station: str, batch: PluginBatch, files: Sequence[PluginFile]) -> dict[str, Any]:
    """Return what is told of some files of a batch."""
    return {
        "schema": SCHEMA,
        "id": identity(files),
        "time": time.time(),
        "station": station,
        "daqId": batch.daq["id"],
        "experimentId": batch.experiment["id"],
        "experimentName": batch.experiment["name"],
        "root": batch.root,
        "files": [_told(file) for file in files],
    }


def identity(files: Sequence[PluginFile]) -> str:
    """Return the id of a message about these files."""
    keys = "\0".join(f"{file.key}:{file.version}" for file in files)
    return hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()


def text(told: dict[str, Any]) -> bytes:
    """Return a message as it travels."""
    return json.dumps(told, ensure_ascii=True, separators=(",", ":"), default=str).encode("ascii")


def _told(file: PluginFile) -> dict[str, Any]:
    return {
        "path": decode(file.path),
        "storagePath": decode(file.storage_path),
        "sourceUrl": file.source_url,
        "size": file.size,
        "modificationTime": file.mtime_ns / 1e9,
        "md5Sum": file.md5 or None,
        "digests": file.digests,
        "version": file.version,
        "metadata": file.metadata,
    }
