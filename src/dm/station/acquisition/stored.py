"""Data that lies on storage already (``@alias``, ``skipTransfer``): cataloged where it is, not moved.

Within the experiment's own directory a file is what its path there says: ``@voyager:/gdata/e1/data/run1`` catalogs
``run1/...``. Anywhere else the catalog is told where the file really lies.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dm.common.errors import InvalidArgument
from dm.common.paths import decode, display, encode
from dm.station.acquisition.info import root_directory
from dm.station.acquisition.spec import TaskSpec
from dm.station.acquisition.transports.base import Source


def names(experiment: dict[str, Any]) -> tuple[str, str]:
    """Return the name and the host of an experiment's storage, in small letters; empty where they are not known."""
    name, separator, _rest = str(experiment.get("storageUrl", "")).partition("://")
    return name.lower() if separator else "", str(experiment.get("storageHost", "")).lower()


def locate(
    host: str, path: str, aliases: dict[str, str], experiment: dict[str, Any], root: str
) -> tuple[bytes, list[Path]] | None:
    """Find the data that ``@host`` or ``@host:path`` says lie on storage.

    ``@alias`` alone, where the alias is set, or is the name or host of the experiment's storage, is the experiment's
    own directory. With a path, a set alias stands for its directory; the name of the experiment's storage for that
    storage, of which everybody may have the experiment's own directory cataloged and nothing else.

    :param path: empty when there is none.
    :returns: the directory as this machine sees it, and the directories it must really lie below (empty: any);
        ``None`` when ``host`` is a host to be asked over the network.
    :raises InvalidArgument: the path is not absolute.
    """
    own = root_directory(experiment, root)
    name, machine = names(experiment)
    known = host in aliases or host.lower() == name != ""
    if not path:
        return (encode(own), []) if known or host.lower() == machine != "" else None
    if not known:
        return None
    if host in aliases:
        prefix = aliases[host].rstrip("/") + "/"
        place, limit = encode(prefix + path.lstrip("/")), Path(prefix)
    elif path.startswith("/"):
        place, limit = encode(path), Path(own)
    else:
        raise InvalidArgument(f"Path {path!r} on storage {host!r} is not absolute; begin it with '/'.")
    below = _inside(place, encode(own))
    return place if below is None else os.path.join(encode(own), below).rstrip(b"/"), [limit]


def settle(
    read: TaskSpec, echo: dict[str, Any], source: Source, experiment: dict[str, Any]
) -> tuple[TaskSpec, dict[str, Any]]:
    """Fit a request for data that are not moved: files of the experiment's own directory keep their place.

    :param echo: the keys as given.
    :returns: both, with ``skipTransfer``, and with ``destDirectory`` where the data lie in the experiment.
    :raises InvalidArgument: not to be removed; not on this machine; not in this place of the experiment; or more than
        its own directory.
    """
    if read.remove_source_files:
        raise InvalidArgument(
            f"removeSourceFiles would remove what {source.text!r} has on storage; leave it out, nothing is moved."
        )
    if not source.is_local:
        raise InvalidArgument(
            f"Data directory {source.text!r} is on another machine, which this one cannot read in place; leave out "
            "skipTransfer, or mount it here."
        )
    change: dict[str, Any] = {"skip_transfer": True}
    more: dict[str, Any] = {"skipTransfer": True}
    below = _below(source, experiment, read.root)
    if below is not None:
        if read.destination not in (b"", below):
            raise InvalidArgument(
                f"Data directory {source.text!r} lies in the experiment already, at {display(below) or '.'!r}; "
                "leave out destDirectory."
            )
        change.update(dest_directory=decode(below), target_directory="")
        if below:
            more["destDirectory"] = decode(below)
    return read.model_copy(update=change), {**echo, **more}


def _below(source: Source, experiment: dict[str, Any], root: str) -> bytes | None:
    """Return where in the experiment's ``data`` or ``analysis`` directory a source lies; ``None``: elsewhere."""
    found = None
    for kind in ("data", "analysis"):
        own = encode(root_directory(experiment, kind))
        below = _inside(source.root, own)
        if below is not None:
            if kind != root:
                raise InvalidArgument(
                    f"Data directory {source.text!r} lies in the experiment's {kind} directory; "
                    f"{'set' if kind == 'analysis' else 'leave out'} useAnalysisDirectoryAsRoot."
                )
            found = below
        elif _inside(own, source.root) is not None:
            raise InvalidArgument(
                f"Data directory {source.text!r} holds the experiment's own directory {display(own)!r}; name that one, "
                "or one below."
            )
    return found


def _inside(path: bytes, directory: bytes) -> bytes | None:
    """Return where below a directory a path really lies, whatever links lead there; ``None``: not below it."""
    real, above = os.path.realpath(path), os.path.realpath(directory)
    if os.path.commonpath([above, real]) != above:
        return None
    below = os.path.relpath(real, above)
    return b"" if below == b"." else below
