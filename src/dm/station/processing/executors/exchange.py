"""``DM_OUTPUT_FILE``: where a stage of any account can leave values, and how they are read without being fooled.

Each account has a directory here, and each process a file name in it:

* the service's own account: a private directory;
* another account, the service being root: a directory that belongs to that account alone;
* another account by sudo: a directory that account can only pass, with a name nobody else can guess; the file is made
  beforehand, writable for everybody who knows the way, and stays the service's, so that it can be read back.

A service whose spool directory other accounts cannot reach has these directories below the system's temporary one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from dm.common.accounts import Account
from dm.common.errors import ProcessingError
from dm.station.processing.executors.base import MAX_OUTPUT_FILE, OUTPUT_FILE

_OWN = "own"
_LARGE = 16 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Exchange:
    """The files of running processes. All calls block, shortly.

    :param spool: directory of the executor; the files are below ``exchange``, which may be a link to another place.
    """

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._link = spool / "exchange"
        self._places: dict[str, Path] = {}  # by account
        self._files: dict[str, Path] = {}  # by key

    def path(self, key: str, account: Account) -> Path:
        """Return the file for a process that is about to start.

        :raises ProcessingError: it cannot be provided.
        """
        try:
            name = account.name if account.user or account.prefix else _OWN
            place = self._places.get(name)
            if place is None or not place.is_dir():
                place = self._places[name] = self._directory(name, account)
            file = self._files[key] = place / key
            if account.prefix and account.user is None:
                descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.fchmod(descriptor, 0o622)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise ProcessingError(f"The file for {OUTPUT_FILE} cannot be provided: {error}.") from error
        return file

    def _directory(self, name: str, account: Account) -> Path:
        if name == _OWN:
            place = self._root(reachable=False) / _OWN
            place.mkdir(mode=0o700, exist_ok=True)
        elif account.user is not None:
            place = self._root(reachable=True) / f"u{account.user[0]}"
            place.mkdir(mode=0o700, exist_ok=True)
            os.chown(place, account.user[0], account.user[1], follow_symlinks=False)
        else:
            root = self._root(reachable=True)
            found = [entry for entry in root.iterdir() if entry.name.rpartition("-")[0] == f"s{name}"]
            place = found[0] if found else root / f"s{name}-{secrets.token_hex(16)}"
            place.mkdir(mode=0o711, exist_ok=True)
            place.chmod(0o711)
        return place

    def _root(self, *, reachable: bool) -> Path:
        """Return the directory of the directories, made when missing."""
        if self._link.is_symlink():
            target = self._link.readlink()
            with contextlib.suppress(FileNotFoundError):
                status = target.lstat()
                if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                    return target
            self._link.unlink()  # the temporary directory was cleaned
        self._link.mkdir(mode=0o711, exist_ok=True)
        for place in (self._spool, self._link):
            place.chmod(0o711)
        if reachable and not _passable(self._link):
            target = Path(tempfile.mkdtemp(prefix="dm-exchange-"))
            target.chmod(0o711)
            shutil.rmtree(self._link)
            self._link.symlink_to(target)
            self._places.clear()
            return target
        return self._link

    def _find(self, key: str) -> Path | None:
        """Return the file of a process, also of one an earlier executor started."""
        if (file := self._files.get(key)) is not None:
            return file
        try:
            places = [Path(entry.path) for entry in os.scandir(self._link) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return None
        return next((place / key for place in places if os.path.lexists(place / key)), None)

    def read(self, key: str) -> tuple[bytes, str]:
        """Return what a process wrote, at most one byte more than allowed, and why it cannot be read."""
        file = self._find(key)
        if file is None:
            return b"", ""
        try:
            return _contents(file), ""
        except FileNotFoundError:
            return b"", ""
        except OSError as error:
            why = "it is a link" if error.errno == errno.ELOOP else error.strerror
            return b"", f"What it left as {OUTPUT_FILE} cannot be used: {why}."

    def remove(self, key: str) -> Path | None:
        """Remove what a process left under its name.

        :returns: what takes longer to remove, for :meth:`remove_large` in a thread.
        """
        file = self._find(key)
        self._files.pop(key, None)
        if file is None:
            return None
        try:
            status = file.lstat()
            if stat.S_ISDIR(status.st_mode) or status.st_size > _LARGE:
                return file
            file.unlink()
        except OSError:  # there is none, or it goes with the directory
            return None
        return None

    @staticmethod
    def remove_large(place: Path) -> None:
        """Remove a large file or a directory, perhaps a deep one; what cannot be removed goes with its directory."""
        with contextlib.suppress(OSError, RecursionError):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)

    def close(self, keep: bool) -> None:
        """Remove the directories.

        :param keep: leave them: something still runs that may write there.
        """
        if keep:
            return
        with contextlib.suppress(OSError):
            if self._link.is_symlink():
                shutil.rmtree(self._link.readlink(), ignore_errors=True)
                self._link.unlink()
            else:
                shutil.rmtree(self._link, ignore_errors=True)
        self._places.clear()


def _contents(file: Path) -> bytes:
    """Return the beginning of a file that a stranger may have put there. :raises OSError: it is none to be read."""
    descriptor = os.open(file, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if status.st_uid not in (os.geteuid(), file.parent.stat().st_uid):
            raise OSError(errno.EPERM, "it belongs to another account")
        data = b""
        while len(data) <= MAX_OUTPUT_FILE and (piece := os.read(descriptor, MAX_OUTPUT_FILE + 1 - len(data))):
            data += piece
        return data
    finally:
        os.close(descriptor)


def _passable(place: Path) -> bool:
    """Whether every account can pass all directories down to this one."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in (place, *place.absolute().parents))
