"""Setting owners, modes and access control lists right again after somebody changed them on the file system."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

from dm.common import paths
from dm.common.errors import InvalidArgument, InvalidObjectState, ObjectNotFound
from dm.site.database.store import PUBLISH_LOCK, Store, lock
from dm.site.identity import audit
from dm.site.storage.directories import (
    DIRECTORY_MODE,
    STAGING,
    Look,
    Owner,
    Owners,
    dress_file,
    file_faults,
    opened_directory,
)
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
        """Give a part of an experiment its owner, modes and lists again; links and special files are left alone.

        :param relative_path: below the experiment's directory (``data/run1``); empty for all of it.
        :returns: experimentName, relativePath, countDirectories, countFiles, countChanged (of both), countSkipped,
            skipped (the first ten), limits (sentences: what this service cannot give).
        :raises ObjectNotFound: no such path. :raises InvalidArgument: it leaves the experiment or passes a link.
        """
        with self._store.transaction() as connection:
            experiment = find(connection, reference)
            # Batches being put in place now have what they had when the experiment was read; later ones read it anew.
            lock(connection, PUBLISH_LOCK, experiment["id"])
            experiment = find(connection, Reference(id=experiment["id"]))
        if experiment["state"] != "active":
            raise InvalidObjectState(f"Experiment {experiment['name']!a} is {experiment['state']} now.")
        owner = self._owners.of_experiment(experiment)
        walk = _Walk(owner)
        top = os.fsencode(experiment["storage_directory"])
        if relative_path.strip("/."):
            path = paths.relative(relative_path)
            if path.split(b"/")[0] == STAGING.encode():
                raise InvalidArgument("Staging areas keep their own permissions.")
            with paths.opened_parent(top, path) as (parent, name):
                if not paths.exists(parent, name):
                    raise ObjectNotFound(f"Path {paths.display(path)!a} does not exist in the experiment.")
                walk.entry(parent, name, path)
        else:
            with opened_directory(top) as descriptor:
                for name in (b"data", b"analysis", b"system"):
                    if paths.exists(descriptor, name):
                        walk.entry(descriptor, name, name)
                self._outer(descriptor, owner)
        result = {
            "experimentName": experiment["name"],
            "relativePath": relative_path,
            "countDirectories": walk.directories,
            "countFiles": walk.files,
            "countChanged": walk.changed,
            "countSkipped": walk.count_skipped,
            "skipped": walk.skipped,
            "limits": self._owners.limits(experiment),
        }
        with self._store.transaction() as connection:
            audit.record(
                connection,
                "permissions.repaired",
                f"{experiment['name']}/{experiment['station_name']}",
                experimentId=experiment["id"],
                path=relative_path or None,
                changed=walk.changed,
            )
        return result

    def _outer(self, top: int, owner: Owner) -> None:
        """Set the experiment's own directory and its staging area right; batches on their way keep their own look."""
        with contextlib.suppress(FileNotFoundError):
            area = os.open(STAGING, _DIRECTORY, dir_fd=top)
            try:
                self._owners.area(owner).apply(area)
            finally:
                os.close(area)
        self._owners.top(owner).apply(top)


class _Walk:
    """Counts what it sets right."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.directories = 0
        self.files = 0
        self.changed = 0
        self.count_skipped = 0
        self.skipped: list[str] = []

    def entry(self, parent: int, name: bytes, path: bytes) -> None:
        """Set one file or a whole directory right."""
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            self._file(parent, name, path, status)
            return
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            pending = [(path, b"")]
            while pending:
                here, below = pending.pop()
                try:
                    pending += self._directory(descriptor, here, below)
                except (OSError, ObjectNotFound, InvalidArgument):  # gone meanwhile, replaced, or somebody else's
                    self._skip(here)
        finally:
            os.close(descriptor)

    def _directory(self, top: int, path: bytes, below: bytes) -> list[tuple[bytes, bytes]]:
        """Set a directory and its files right; return its sub-directories as (path, path below the top)."""
        found = []
        with paths.opened_parent(f"/proc/self/fd/{top}", below + b"/_" if below else b"_") as (descriptor, _):
            look = Look(self._owner, DIRECTORY_MODE)
            self.changed += bool(look.faults(descriptor, os.fstat(descriptor)))
            look.apply(descriptor)
            self.directories += 1
            for name in os.listdir(descriptor):  # noqa: PTH208
                entry = os.fsencode(name)
                try:
                    status = os.stat(entry, dir_fd=descriptor, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    found.append((path + b"/" + entry, below + b"/" + entry if below else entry))
                else:
                    self._file(descriptor, entry, path + b"/" + entry, status)
        return found

    def _file(self, parent: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self._skip(path)
            return
        try:
            descriptor = os.open(name, _ANY, dir_fd=parent)
        except OSError:
            self._skip(path)
            return
        try:
            now = os.fstat(descriptor)
            # A second name may lie anywhere, also in another experiment.
            if not stat.S_ISREG(now.st_mode) or now.st_nlink > 1:
                self._skip(path)
                return
            self.changed += bool(file_faults(self._owner, descriptor, now))
            dress_file(descriptor, self._owner, now.st_mode)
            self.files += 1
        except OSError:
            self._skip(path)
        finally:
            os.close(descriptor)

    def _skip(self, path: bytes) -> None:
        self.count_skipped += 1
        if len(self.skipped) < _SHOWN:
            self.skipped.append(paths.decode(path))
