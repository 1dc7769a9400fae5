"""Setting owners and modes right again after somebody changed them on the file system."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

from dm.common import paths
from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.site.database.store import Store
from dm.site.storage.directories import DIRECTORY_MODE, FILE_MODE, STAGING, Owner, Owners
from dm.site.storage.experiments import Reference, find

_SHOWN = 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ANY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Permissions:
    """The use case."""

    def __init__(self, store: Store, owners: Owners) -> None:
        self._store = store
        self._owners = owners

    def restore(self, reference: Reference, relative_path: str = "") -> dict[str, Any]:
        """Give a part of an experiment its owner and modes again; links and special files are left alone.

        :param relative_path: below the experiment's directory (``data/run1``); empty for all of it.
        :returns: experimentName, relativePath, countDirectories, countFiles, countSkipped, skipped (the first ten).
        :raises ObjectNotFound: no such path. :raises InvalidArgument: it leaves the experiment or passes a link.
        """
        with self._store.transaction() as connection:
            experiment = find(connection, reference)
        if experiment["state"] != "active":
            raise InvalidObjectState(f"Experiment {experiment['name']!a} is being deleted.")
        owner = self._owners.of_experiment(experiment)
        walk = _Walk(owner)
        top = os.fsencode(experiment["storage_directory"])
        if relative_path.strip("/."):
            path = paths.relative(relative_path)
            if path.split(b"/")[0] == STAGING.encode():
                raise InvalidArgument("Staging areas keep their own permissions.")
            with paths.opened_parent(top, path) as (parent, name):
                if not _exists(parent, name):
                    raise ObjectNotFound(f"Path {paths.display(path)!a} does not exist in the experiment.")
                walk.entry(parent, name, path)
        else:
            with _opened(top) as descriptor:
                # The experiment's own directory and .staging may let movers pass and keep their modes.
                for name in (b"data", b"analysis", b"system"):
                    walk.entry(descriptor, name, name)
        return {
            "experimentName": experiment["name"],
            "relativePath": relative_path,
            "countDirectories": walk.directories,
            "countFiles": walk.files,
            "countSkipped": walk.count_skipped,
            "skipped": walk.skipped,
        }


class _Walk:
    """Counts what it sets right."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.directories = 0
        self.files = 0
        self.count_skipped = 0
        self.skipped: list[str] = []

    def entry(self, parent: int, name: bytes, path: bytes) -> None:
        """Set one file or a whole directory right."""
        pending = [(path, name)]
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            self._file(parent, name, path, status)
            return
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            pending = [(path, b"")]
            while pending:
                here, below = pending.pop()
                pending += self._directory(descriptor, here, below)
        finally:
            os.close(descriptor)

    def _directory(self, top: int, path: bytes, below: bytes) -> list[tuple[bytes, bytes]]:
        """Set a directory and its files right; return its sub-directories as (path, path below the top)."""
        found = []
        with paths.opened_parent(f"/proc/self/fd/{top}", below + b"/_" if below else b"_") as (descriptor, _):
            self._owner.apply(descriptor, DIRECTORY_MODE)
            self.directories += 1
            for name in os.listdir(descriptor):  # noqa: PTH208
                entry = os.fsencode(name)
                status = os.stat(entry, dir_fd=descriptor, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    found.append((path + b"/" + entry, below + b"/" + entry if below else entry))
                else:
                    self._file(descriptor, entry, path + b"/" + entry, status)
        return found

    def _file(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            self._skip(path)
            return
        try:
            descriptor = os.open(name, _ANY, dir_fd=parent)
        except OSError:
            self._skip(path)
            return
        try:
            now = os.fstat(descriptor)
            if not stat.S_ISREG(now.st_mode):
                self._skip(path)
                return
            self._owner.apply(descriptor, FILE_MODE | (0o110 if now.st_mode & 0o111 else 0))
            self.files += 1
        finally:
            os.close(descriptor)

    def _skip(self, path: bytes) -> None:
        self.count_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append(paths.decode(path))


def _exists(parent: int, name: bytes) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=parent, follow_symlinks=False)
        return True
    return False


@contextlib.contextmanager
def _opened(path: bytes) -> Any:
    descriptor = os.open(path, _DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
