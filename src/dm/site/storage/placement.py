"""Putting files in place: renames beneath the experiment's root, with every directory on the way held open.

No path is ever resolved by the system: each component is opened in its parent, no link is followed, so nothing can be
written outside the root however the tree changes meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from types import TracebackType

from dm.common import digests
from dm.common.errors import InvalidObjectState
from dm.site.storage.directories import DIRECTORY_MODE, Owner, enter, mend, opened_directory
from dm.site.storage.verification import Staged, copy_to, digest, digests_name

_OPEN_AT_ONCE = 128
_NONE = b""


class Tree:
    """A directory tree being written to. Use as a context manager.

    :param root: absolute directory of the service. :param owner: of directories made on the way.
    """

    def __init__(self, root: str, owner: Owner) -> None:
        self.root = root
        self.owner = owner
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._changed: set[bytes] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Tree:
        self._root = self._stack.enter_context(opened_directory(self.root))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._stack.close()

    def directory(self, path: bytes) -> int:
        """Return a descriptor of a directory beneath the root, making what is missing; it stays the tree's.

        :raises InvalidObjectState: a link or file is in the way.
        """
        if path == _NONE:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        above, _, name = path.rpartition(b"/")
        descriptor, _made = enter(self.directory(above), name, self.owner, DIRECTORY_MODE)
        self._open[path] = descriptor
        if len(self._open) > _OPEN_AT_ONCE:
            oldest, old = self._open.popitem(last=False)
            if oldest in self._changed:
                os.fsync(old)
                self._changed.discard(oldest)
            os.close(old)
        return descriptor

    def status(self, path: bytes) -> os.stat_result | None:
        """Return what is at a path (a link itself, not its target), or ``None``; makes no directory.

        :raises InvalidObjectState: a directory on the way is a link or a file.
        """
        above, _, name = path.rpartition(b"/")
        held = self._open.get(above) if above else self._root
        if held is None:
            descriptor = self._existing(above)
            if descriptor is None:
                return None
            self._open[above] = held = descriptor
        try:
            return os.stat(name, dir_fd=held, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _existing(self, path: bytes) -> int | None:
        """Open a directory beneath the root that may not exist."""
        descriptor = os.dup(self._root)
        for name in path.split(b"/"):
            try:
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            except FileNotFoundError:
                return None
            except NotADirectoryError:
                raise InvalidObjectState(f"{name!a} in {path!a} is a link or no directory.") from None
            finally:
                os.close(descriptor)
            descriptor = inner
            mend(descriptor, self.owner, DIRECTORY_MODE)
        return descriptor

    def digest(self, path: bytes) -> str:
        """Return the verification digest of a file in place. :raises OSError: it is no readable plain file."""
        above, _, name = path.rpartition(b"/")
        descriptor = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.directory(above)
        )
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a plain file")
            return digest(descriptor, {digests.VERIFICATION})[1][digests.VERIFICATION]
        finally:
            os.close(descriptor)

    def keep(self, path: bytes, kept: int, name: bytes) -> None:
        """Give the file now at ``path`` a second name in directory ``kept``, before it is replaced; again is fine."""
        above, _, last = path.rpartition(b"/")
        with contextlib.suppress(FileExistsError):
            os.link(last, name, src_dir_fd=self.directory(above), dst_dir_fd=kept, follow_symlinks=False)
        os.fsync(kept)

    def place(self, staging: Tree, item: Staged) -> None:
        """Rename a staged file to its final place; across devices by a verified copy beside it.

        :raises OSError: refused; the staged file is still there.
        """
        above, _, name = item.path.rpartition(b"/")
        source_above, _, source_name = item.name.rpartition(b"/")
        source, target = staging.directory(source_above), self.directory(above)
        try:
            os.rename(source_name, name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._across(source, source_name, target, name, item)
        self._changed.add(above)

    def _across(self, source: int, source_name: bytes, target: int, name: bytes, item: Staged) -> None:
        hidden = b".dm-" + digests_name(item.path)
        descriptor = os.open(source_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            copy_to(descriptor, target, hidden, item, owner=self.owner)
        finally:
            os.close(descriptor)
        os.rename(hidden, name, src_dir_fd=target, dst_dir_fd=target)

    def changed(self, directory: bytes) -> None:
        """Note that something was renamed or removed in a directory beneath the root."""
        self._changed.add(directory)

    def sync(self) -> None:
        """Return when all renames are on disk. :raises OSError: they are not."""
        for path in sorted(self._changed):
            os.fsync(self.directory(path))
        self._changed.clear()
