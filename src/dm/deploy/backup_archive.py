"""The file a backup is: a tar with a manifest in front, parts behind, and a digest of each.

A backup holds private keys, passwords and password hashes: it is written with mode 0600, under another name until it is
complete and has been read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from dm.common.errors import InvalidArgument, ProcessingError

FORMAT = 1
MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_MANIFEST_LIMIT = 64 << 20


@dataclass
class Part:
    """One member of the tar.

    :param name: in the tar. :param kind: ``postgres``, ``mongo`` or ``file``. :param about: what its kind needs.
    """

    name: str
    kind: str
    size: int = 0
    sha256: str = ""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    """What a backup says of itself.

    :param what: ``site``, ``station`` or ``all``. :param places: directories and names of the installation it is of.
    :param missing: what is not in it, in sentences.
    """

    what: str
    release: str
    interface: str
    host: str
    created: str
    places: dict[str, str]
    missing: list[str]
    parts: list[Part] = field(default_factory=list)
    format: int = FORMAT

    def of(self, kind: str) -> list[Part]:
        """Return the parts of a kind."""
        return [part for part in self.parts if part.kind == kind]


@contextlib.contextmanager
def staging(beside: Path) -> Iterator[Path]:
    """Make a private directory for parts in a directory, and remove it at the end."""
    directory = Path(tempfile.mkdtemp(prefix=".dm-backup-", dir=beside))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def digest(stream: IO[bytes]) -> tuple[int, str]:
    """Return size and SHA-256 of the rest of a stream."""
    found, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        found.update(chunk)
        size += len(chunk)
    return size, found.hexdigest()


def write(target: Path, manifest: Manifest, directory: Path, check: Callable[[Part, IO[bytes]], None]) -> None:
    """Write the parts that lie in ``directory`` under their names, read all back, and give the file its name.

    :param check: see :func:`verify`. :raises ProcessingError: what was read is not what was written.
    """
    for part in manifest.parts:
        with (directory / part.name).open("rb") as stream:
            part.size, part.sha256 = digest(stream)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as output:
            with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
                text = json.dumps(asdict(manifest), indent=1).encode("ascii")
                tar.addfile(_info(MANIFEST, len(text)), io.BytesIO(text))
                for part in manifest.parts:
                    with (directory / part.name).open("rb") as stream:
                        tar.addfile(_info(part.name, part.size), stream)
            output.flush()
            os.fsync(output.fileno())
        verify(partial, check)
        partial.replace(target)
        handle = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info


def read_manifest(path: Path) -> Manifest:
    """Return what a backup says of itself. :raises InvalidArgument: it is none, or of a newer form."""
    with _opened(path) as tar:
        return _manifest(path, tar)


def verify(path: Path, check: Callable[[Part, IO[bytes]], None]) -> Manifest:
    """Read a whole backup and compare it with its manifest.

    :param check: called with each part and its contents; raises ProcessingError where they make no sense.
    :raises ProcessingError: damaged. :raises InvalidArgument: no backup.
    """
    with _opened(path) as tar:
        manifest = _manifest(path, tar)
        expected = {part.name: part for part in manifest.parts}
        for member in itertools.islice(tar, 1, None):  # behind the manifest
            part = expected.pop(member.name, None)
            stream = tar.extractfile(member) if part is not None and member.isfile() else None
            if part is None or stream is None:
                raise ProcessingError(f"Backup {path} is damaged: {member.name[:80]!a} does not belong to it.")
            if (member.size, digest(stream)) != (part.size, (part.size, part.sha256)):
                raise ProcessingError(f"Backup {path} is damaged: {part.name} is not what was written.")
            stream.seek(0)
            check(part, stream)
        if expected:
            raise ProcessingError(f"Backup {path} is damaged: {', '.join(sorted(expected)[:5])} is missing.")
        return manifest


def extract(path: Path, directory: Path) -> dict[str, Path]:
    """Put the parts into a private directory and return name -> file (with a name of ours)."""
    found = {}
    with _opened(path) as tar:
        names = {part.name for part in _manifest(path, tar).parts}
        for number, member in enumerate(tar):
            stream = tar.extractfile(member) if member.name in names and member.isfile() else None
            if stream is None:
                continue
            found[member.name] = directory / f"part-{number:05d}"
            with found[member.name].open("xb") as output:
                shutil.copyfileobj(stream, output, _CHUNK)
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, mode="r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise ProcessingError(f"File {path} is no backup, or damaged: {error}.") from None


def _manifest(path: Path, tar: tarfile.TarFile) -> Manifest:
    member = tar.next()
    stream = tar.extractfile(member) if member is not None and member.name == MANIFEST and member.isfile() else None
    if member is None or stream is None or member.size > _MANIFEST_LIMIT:
        raise InvalidArgument(f"File {path} is no backup of DM.")
    try:
        values = json.loads(stream.read())
        if values["format"] != FORMAT:
            raise InvalidArgument(
                f"Backup {path} has form {values['format']}, this release (which reads {FORMAT}) cannot restore it."
            )
        parts = [Part(**one) for one in values.pop("parts")]
        return Manifest(**values, parts=parts)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(f"File {path} is no backup of DM: its manifest cannot be read ({error}).") from None
