"""Finding the files a stage wants to have kept, and copying them to where nobody else can change them.

A pattern is matched one path component at a time from an open directory, following no link, and what is found is
opened from there as well: a directory that is replaced by a link meanwhile leads nowhere. Files that belong to another
account than the stage's are not taken: a stage must not get anything published that it could not have read itself.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dm.common.errors import InvalidArgument, ProcessingError
from dm.common.paths import decode, display, encode, relative

MAX_FILES = 10_000
MAX_ENTRIES = 200_000
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WILD = re.compile(rb"[*?\[]")
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Pattern:
    """What to look for. :param root: absolute directory. :param parts: names or wildcards below it."""

    text: str
    root: bytes
    parts: tuple[bytes, ...]

    @property
    def wild(self) -> bool:
        """Whether it may match nothing."""
        return any(_WILD.search(part) for part in self.parts)


@dataclass(frozen=True)
class Copied:
    """A file that was copied. :param path: relative, as it is to be in the experiment's ``analysis`` directory."""

    path: bytes
    size: int
    md5: str


def patterns(texts: Iterable[str], directory: str | None) -> list[Pattern]:
    """Read patterns: shell wildcards, ``**`` for any directories; absolute or relative to the working directory.

    Those of an absolute one that leads elsewhere are relative to its longest beginning without wildcards.

    :raises ProcessingError: naming one that cannot be.
    """
    base = encode(directory).rstrip(b"/") if directory else None
    found = []
    for text in texts:
        raw = encode(text)
        try:
            inner = relative(raw.lstrip(b"/"))
        except InvalidArgument as error:
            raise ProcessingError(f"Artefact pattern {text[:300]!r} is not acceptable: {error.message}") from None
        root = base
        if raw.startswith(b"/"):
            if base is not None and (b"/" + inner).startswith(base + b"/"):
                inner = inner[len(base) :]
            else:
                parts = inner.split(b"/")
                fixed = next((n for n, part in enumerate(parts[:-1]) if _WILD.search(part)), len(parts) - 1)
                root, inner = b"/" + b"/".join(parts[:fixed]), b"/".join(parts[fixed:])
        if root is None:
            raise ProcessingError(
                f"Artefact pattern {text[:300]!r} is relative, but the stage has no workingDir; give it one."
            )
        found.append(Pattern(text, root, tuple(inner.strip(b"/").split(b"/"))))
    return found


def copy(wanted: Iterable[Pattern], target: Path, uid: int | None) -> list[Copied]:
    """Copy all files the patterns match into a new directory.

    :param target: must not exist. :param uid: whose files count; ``None``: everybody's.
    :returns: what was copied, by path; nothing, and no directory, when wildcards match no file.
    :raises ProcessingError: a file that is missing, not to be read, of somebody else; two of one path; too many.
    """
    made: dict[bytes, tuple[bytes, Copied]] = {}
    for pattern in wanted:
        count = 0
        for path, descriptor in _matches(pattern):
            try:
                count += 1
                full = pattern.root + b"/" + path
                if path in made:
                    if made[path][0] != full:
                        raise ProcessingError(
                            f"Artefacts {display(made[path][0])!r} and {display(full)!r} would both become "
                            f"{display(path)!r}; choose patterns of which only one matches."
                        )
                    continue
                if len(made) >= MAX_FILES:
                    raise ProcessingError(f"More than {MAX_FILES} files match the stage's artefacts; take dm-upload.")
                _check(full, descriptor, uid)
                made[path] = (full, _copied(path, full, descriptor, target))
            finally:
                os.close(descriptor)
        if not count and not pattern.wild:
            raise ProcessingError(f"Artefact {pattern.text[:300]!r} does not exist after the stage as a regular file.")
    return [copied for _, (_, copied) in sorted(made.items())]


def _check(full: bytes, descriptor: int, uid: int | None) -> None:
    owner = os.fstat(descriptor).st_uid
    if uid is not None and owner != uid:
        raise ProcessingError(
            f"Artefact {display(full)!r} belongs to user id {owner}, not to the stage's account ({uid}); "
            "let the stage write a file of its own."
        )


def _copied(path: bytes, full: bytes, descriptor: int, target: Path) -> Copied:
    place = target / decode(path)
    place.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    digest, size = hashlib.md5(usedforsecurity=False), 0
    try:
        with place.open("xb") as copy:
            os.fchmod(copy.fileno(), 0o640)
            while chunk := os.read(descriptor, _CHUNK):
                digest.update(chunk)
                copy.write(chunk)
                size += len(chunk)
            copy.flush()
            status = os.fstat(descriptor)
            os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        raise ProcessingError(f"Artefact {display(full)!r} cannot be copied: {error.strerror}.") from None
    return Copied(path, size, digest.hexdigest())


def _matches(pattern: Pattern) -> Iterator[tuple[bytes, int]]:
    """Yield relative path and open descriptor of each regular file; the caller closes it."""
    try:
        root = os.open(pattern.root or b"/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if not pattern.wild:
            raise _unreadable(pattern.root or b"/", error) from None
        if isinstance(error, FileNotFoundError):
            return
        raise _unreadable(pattern.root or b"/", error) from None
    try:
        yield from _Walk(pattern.root).below(root, b"", pattern.parts)
    finally:
        os.close(root)


class _Walk:
    """One pass through a directory. :param root: said in errors."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._entries = 0

    def below(self, directory: int, prefix: bytes, parts: tuple[bytes, ...]) -> Iterator[tuple[bytes, int]]:
        """Yield what matches in an open directory."""
        part, rest = parts[0], parts[1:]
        if part == b"**":
            if rest:
                yield from self.below(directory, prefix, rest)
            else:
                yield from self.below(directory, prefix, (b"*",))
            for name in self._names(directory, prefix, b"*"):
                yield from self._inside(directory, prefix, name, parts)
            return
        names = self._names(directory, prefix, part) if _WILD.search(part) else [part]
        for name in names:
            if rest:
                yield from self._inside(directory, prefix, name, rest)
            elif (descriptor := self._file(directory, prefix + name, name)) is not None:
                yield prefix + name, descriptor

    def _inside(
        self, directory: int, prefix: bytes, name: bytes, parts: tuple[bytes, ...]
    ) -> Iterator[tuple[bytes, int]]:
        try:
            inner = os.open(name, _DIRECTORY_FLAGS, dir_fd=directory)
        except (NotADirectoryError, FileNotFoundError):
            return
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link
                return
            raise _unreadable(self._root + b"/" + prefix + name, error) from None
        try:
            yield from self.below(inner, prefix + name + b"/", parts)
        finally:
            os.close(inner)

    def _names(self, directory: int, prefix: bytes, part: bytes) -> list[bytes]:
        """Return the names in a directory that match a wildcard, sorted; it has to begin with a dot for hidden ones."""
        wanted = re.compile(fnmatch.translate(decode(part)).encode("utf-8", "surrogateescape"), re.DOTALL)
        try:
            names = [os.fsencode(name) for name in os.listdir(directory)]
        except OSError as error:
            raise _unreadable(self._root + b"/" + prefix, error) from None
        self._entries += len(names)
        if self._entries > MAX_ENTRIES:
            raise ProcessingError(
                f"More than {MAX_ENTRIES} files lie below {display(self._root)!r}, too many to look for artefacts; "
                "give patterns that lead to a directory of results."
            )
        hidden = part.startswith(b".")
        return sorted(name for name in names if wanted.match(name) and (hidden or not name.startswith(b".")))

    def _file(self, directory: int, path: bytes, name: bytes) -> int | None:
        """Open a regular file; links and anything else are none."""
        try:
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                return None
            descriptor = os.open(name, _FILE_FLAGS, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self._root + b"/" + path, error) from None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None


def _unreadable(path: bytes, error: OSError) -> ProcessingError:
    return ProcessingError(
        f"Artefacts cannot be read at {display(path)!r} by the processing service's account: {error.strerror}."
    )
