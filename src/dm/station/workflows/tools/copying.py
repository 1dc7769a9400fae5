"""Copying a file or directory to another machine or back, and proving that what arrived is what was sent.

Places are local paths, ``host:/path`` or ``user@host:/path`` (rsync over ssh), ``rsync://host/module/path``,
``gsiftp://host:port/path`` and ``ftp://host:port/path`` (GridFTP). One of the two is local.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dm.common import digests
from dm.common.errors import ConfigurationError, InvalidArgument, InvalidObjectState, TransferError

_REMOTE = re.compile(r"(?P<host>(?:[\w.-]+@)?(?:[\w.-]+|\[[0-9a-fA-F:]+\])):(?P<path>[^/].*|/.*)")
_GRIDFTP = re.compile(r"(?:gsiftp|ftp)://[\w.@:\[\]-]+/[\w./+=,~@-]*", re.ASCII)
_PROGRAMS = {"rsync": "rsync", "globus-url-copy": "globus-gass-copy-progs"}
_SAID = 600


@dataclass(frozen=True)
class Access:
    """How to get in.

    :param proxy: file of a grid proxy. :param certificates: directory of trusted authorities. :param identity: file of
        an ssh key. :param known_hosts: file of the keys of hosts. :param port: of ssh; 0: the usual one.
    :param streams: parallel GridFTP connections.
    """

    proxy: str = ""
    certificates: str = ""
    identity: str = ""
    known_hosts: str = ""
    port: int = 0
    streams: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the programs."""
        given = {"X509_USER_PROXY": self.proxy, "X509_CERT_DIR": self.certificates}
        return {**os.environ, **{name: value for name, value in given.items() if value}}

    @property
    def shell(self) -> str:
        """The remote shell of rsync. :raises InvalidArgument: a file with blanks in its name."""
        words = ["ssh", "-o", "BatchMode=yes"]
        for option, file in (("-i ", self.identity), ("-o UserKnownHostsFile=", self.known_hosts)):
            if re.search(r"[\s'\"]", file):
                raise InvalidArgument(f"The name of file {file[:200]!r} holds blanks or quotes; rename it.")
            words += [f"{option}{file}"] if file else []
        return " ".join([*words, *(["-p", str(self.port)] if self.port else [])])


def run(source: str, target: str, access: Access) -> dict[str, Any]:
    """Copy, then compare both ends by checksum.

    :param source: :param target: places; a source that ends in ``/`` is a directory, copied with all below it. A target
        that ends in ``/`` is a directory into which the source goes.
    :returns: what :func:`results.tell` shows: where it is now, and of a file its size and MD5.
    :raises InvalidArgument: no such places. :raises TransferError: it failed, or the ends differ.
    :raises InvalidObjectState: the file changed meanwhile. :raises ConfigurationError: rsync or Globus is missing.
    """
    remote = [place for place in (source, target) if _is_remote(place)]
    if len(remote) == 2:
        raise InvalidArgument(f"Of {source[:200]!r} and {target[:200]!r} one must be a local path.")
    tree = source.endswith("/")
    if tree and not target.endswith("/"):
        raise InvalidArgument(f"Target {target[:200]!r} of a directory is no directory; end it with '/'.")
    if target.endswith("/") and not tree:
        target += source.rpartition("/")[2]
    local = Path(target if source in remote else source)
    if source not in remote:
        _present(local, tree)
    before = None if tree or source in remote else local.stat()
    _make(local if source in remote else None, tree)
    begun = time.monotonic()
    arriving = local.with_name(f".{local.name[:200]}.arriving") if source in remote and not tree else None
    if arriving is not None:
        target = str(arriving)
    if remote and "://" in remote[0] and not remote[0].startswith("rsync:"):
        _gridftp(source, target, access, tree)
    else:
        _rsync(source, target, access, tree)
    seconds = time.monotonic() - begun
    if before is not None:
        after = local.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InvalidObjectState(f"File {source[:200]!r} changed while it was copied; do it again.")
    if arriving is not None:
        arriving.replace(local)
        target = str(local)
    told: dict[str, Any] = {"copied": target, "copySeconds": seconds}
    if not tree:
        with local.open("rb") as stream:
            size, found = digests.digest_stream(stream, ["md5"])
        told |= {"copiedSize": size, "copiedMd5Sum": found["md5"]}
    return told


def _is_remote(place: str) -> bool:
    """Whether a place is on another machine. A local path with a colon is written ``./a:b`` or in full."""
    return "://" in place or (not place.startswith(("/", ".")) and _REMOTE.fullmatch(place) is not None)


def _present(path: Path, tree: bool) -> None:
    if not (path.is_dir() if tree else path.is_file()):
        raise InvalidArgument(f"{'Directory' if tree else 'File'} {str(path)[:200]!r} does not exist.")


def _make(target: Path | None, tree: bool) -> None:
    if target is not None:
        (target if tree else target.parent).mkdir(parents=True, exist_ok=True)


def _gridftp(source: str, target: str, access: Access, tree: bool) -> None:
    urls = []
    for place in (source, target):
        if _is_remote(place):
            if not _GRIDFTP.fullmatch(place):
                # such names come out changed at the far end, and globus-url-copy reports success (measured)
                raise InvalidArgument(
                    f"Address {place[:200]!r} is not safe with GridFTP; use letters, digits and ./+=,~@_- only."
                )
            urls.append(place)
        else:
            absolute = os.fsencode(Path(place).absolute()) + (b"/" if tree else b"")
            urls.append("file://" + "".join(chr(sign) if chr(sign) in _PLAIN else f"%{sign:02X}" for sign in absolute))
    options = ["-create-dest", "-verify-checksum", "-restart", "-rst-retries", "3"]
    options += ["-parallel", str(access.streams)] if access.streams > 1 else []
    options += ["-recurse"] if tree else []
    _ran(["globus-url-copy", *options, *urls], access, source, target)


def _rsync(source: str, target: str, access: Access, tree: bool) -> None:
    common = ["--times", "--secluded-args", "--rsh", access.shell, *(["--recursive"] if tree else [])]
    places = [place if _is_remote(place) else str(Path(place).absolute()) + "/" * tree for place in (source, target)]
    _ran(["rsync", *common, "--mkpath", "--", *places], access, source, target)
    again = _ran(
        ["rsync", *common, "--checksum", "--dry-run", "--out-format=%i %n", "--", *places], access, source, target
    )
    differing = [line for line in again.splitlines() if line[:2] in ("<f", ">f", "cd", "cL")]
    if differing:
        raise TransferError(
            f"After copying, {len(differing)} files differ at both ends, e.g. {differing[0][12:200]!r}."
        )


def _ran(command: list[str], access: Access, source: str, target: str) -> str:
    if shutil.which(command[0]) is None:
        raise ConfigurationError(f"Program {command[0]!r} is missing; install the package {_PROGRAMS[command[0]]}.")
    done = subprocess.run(command, env=access.environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[-_SAID:]
        raise TransferError(
            f"Copying {source[:200]!r} to {target[:200]!r} failed: {command[0]} ended with "
            f"status {done.returncode}: {said}"
        )
    return done.stdout.decode("utf-8", "replace")


_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./")
