"""Directories of experiments: how they are made, who owns them, how they are reached without following a link.

Nothing here is ever readable by the world, not even for a moment: directories are made with mode 0700 and opened up
to their group afterwards, whatever the umask. An experiment's directories are set-group-id, so that what is made in
them has the experiment's group, and carry a default access control list where the file system has such, so that it is
nobody else's whatever the umask of who makes it. Accounts of movers pass to their batches by an entry of their own in
the lists of the directories on the way; only where there are no lists, anybody may pass (and not look).
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping

from dm.common import paths
from dm.common.errors import ConfigurationError, InvalidObjectState, ObjectNotFound, ServiceUnavailable
from dm.site.storage import acl
from dm.site.storage.settings import StorageSettings

DIRECTORY_MODE = 0o2750
PASSAGE_MODE = 0o711  # stations and root paths: anybody may pass, nobody may look
STAGING_MODE = 0o2770  # of a batch's directory that the group of the movers writes to
PRIVATE_MODE = 0o2700
_SET_GROUP_ID = 0o2000
FILE_MODE = 0o640
ROOTS = ("data", "analysis")
STAGING = ".staging"
MARKER = "experiment.json"
_NEW_MARKER = ".experiment.json.new"
PARTS = ("data", "analysis", "system")
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Row = Mapping[str, Any] | RowMapping


@dataclass(frozen=True)
class Owner:
    """Who owns a file or directory; -1 leaves what the system gives."""

    uid: int = -1
    gid: int = -1

    def apply(self, descriptor: int, mode: int) -> None:
        """Give an open file or directory its owner and mode; set-id bits that chown clears are set after it."""
        if self.uid != -1 or self.gid != -1:
            os.fchown(descriptor, self.uid, self.gid)
        os.fchmod(descriptor, mode)


@dataclass(frozen=True)
class Look:
    """Owner, mode and access control lists of a directory.

    :param passers: entries of accounts that may pass it besides.
    """

    owner: Owner
    mode: int
    passers: acl.List = ()

    def apply(self, descriptor: int) -> None:
        """Give them to an open directory; what others put into its lists is gone. :raises OSError: not allowed."""
        if self.mode & _SET_GROUP_ID:
            acl.put(descriptor, acl.DEFAULT, acl.PRIVATE)
        acl.clear(descriptor, acl.ACCESS)
        self.owner.apply(descriptor, self.mode)
        if self.passers and not acl.put(descriptor, acl.ACCESS, acl.of_mode(self.mode, self.passers)):
            self.owner.apply(descriptor, self.mode | 0o001)

    def _shown_mode(self, lists: bool) -> int:
        """Return the mode as ``stat`` has it: with a list, its group's bits are the list's mask."""
        if not self.passers:
            return self.mode
        if not lists:
            return self.mode | 0o001
        mask = next(entry.permissions for entry in acl.of_mode(self.mode, self.passers) if entry.tag == acl.MASK)
        return self.mode & ~0o070 | mask << 3

    def faults(self, descriptor: int, status: os.stat_result) -> list[str]:
        """Return what is wrong with an open directory, one text for each thing."""
        found = owner_faults(self.owner, status)
        access, default = acl.get(descriptor, acl.ACCESS), acl.get(descriptor, acl.DEFAULT)
        wanted = acl.of_mode(self.mode, self.passers) if self.passers else None
        lists = acl.supported(descriptor)
        if (mode := stat.S_IMODE(status.st_mode)) != (right := self._shown_mode(lists)):
            found.append(f"mode {mode:04o} instead of {right:04o}")
        if lists and access != wanted:
            found.append(f"access list {_shown(access)} instead of {_shown(wanted)}")
        if lists and self.mode & _SET_GROUP_ID and default != acl.PRIVATE:
            found.append(f"default access list {_shown(default)} instead of {_shown(acl.PRIVATE)}")
        return found


def owner_faults(owner: Owner, status: os.stat_result) -> list[str]:
    """Return what is wrong with owner and group; what is left to the system is never wrong."""
    found = []
    if owner.uid not in (-1, status.st_uid):
        found.append(f"owner {status.st_uid} instead of {owner.uid}")
    if owner.gid not in (-1, status.st_gid):
        found.append(f"group {status.st_gid} instead of {owner.gid}")
    return found


def file_faults(owner: Owner, descriptor: int, status: os.stat_result) -> list[str]:
    """Return what is wrong with owner, mode and access control list of an open plain file of ours."""
    found = owner_faults(owner, status)
    mode, wanted = stat.S_IMODE(status.st_mode), file_mode(status.st_mode)
    if mode != wanted:
        found.append(f"mode {mode:04o} instead of {wanted:04o}")
    if (access := acl.get(descriptor, acl.ACCESS)) is not None:
        found.append(f"access list {_shown(access)}")
    return found


def dress_file(descriptor: int, owner: Owner, mode: int) -> None:
    """Give an open file owner and mode, and nobody anything besides: an access control list goes.

    :param mode: see :func:`file_mode`. :raises OSError: not allowed.
    """
    acl.clear(descriptor, acl.ACCESS)
    owner.apply(descriptor, file_mode(mode))


def file_mode(mode: int) -> int:
    """Return the mode of a published file: never set-id, never for others; executable if it was."""
    return FILE_MODE | (0o110 if mode & 0o111 else 0)


def _shown(entries: acl.List | None) -> str:
    return "none" if entries is None else acl.text(entries)


class Owners:
    """The accounts of the settings, looked up once at start.

    :raises ConfigurationError: an account or group that does not exist or that this service may not give files to.
    """

    def __init__(self, settings: StorageSettings) -> None:
        self._root = os.geteuid() == 0
        self._uid = self._account(settings.file_owner, "file_owner")
        self._gid = self._group(settings.file_group, "file_group")
        self.staging = Owner(
            self._account(settings.staging_owner, "staging_owner"),
            self._group(settings.staging_group, "staging_group"),
        )
        self.shared_staging = settings.staging_owner is not None or settings.staging_group is not None
        passer = acl.Entry(acl.GROUP, acl.EXECUTE, self.staging.gid)
        if self.staging.gid == -1:
            passer = acl.Entry(acl.USER, acl.EXECUTE, self.staging.uid if self.staging.uid != -1 else os.geteuid())
        self._passers = (passer,) if self.shared_staging else ()

    def top(self, owner: Owner) -> Look:
        """Return the look of an experiment's own directory, ``owner`` being :meth:`of_experiment`."""
        return Look(owner, DIRECTORY_MODE, self._passers)

    def area(self, owner: Owner) -> Look:
        """Return the look of its ``.staging``: nobody looks into it, only movers pass."""
        if self.staging.gid != -1:
            return Look(Owner(owner.uid, self.staging.gid), PRIVATE_MODE | 0o010)
        return Look(owner, PRIVATE_MODE, self._passers)

    def batch(self) -> Look:
        """Return the look of a batch's staging directory: the movers' alone."""
        return Look(self.staging, PRIVATE_MODE if self.staging.gid == -1 else STAGING_MODE)

    def limits(self, row: Row) -> list[str]:
        """Return what cannot be kept of an experiment's permissions, a sentence each; as root, nothing."""
        if self._root:
            return []
        found = [f"The service is not run as root: what it publishes belongs to account {account_name(os.geteuid())}."]
        gid = self.own_group(row)
        if gid is None:
            found.append("The experiment has no Unix group of its own.")
        elif not self._may_give(gid):
            found.append(f"Its files cannot have group {gid} of the experiment: the service is no member of it.")
        return found

    @property
    def as_root(self) -> bool:
        """Whether every owner and group can be given."""
        return self._root

    def of_experiment(self, row: Row) -> Owner:
        """Return the owner of an experiment's files: its own Unix group if there is one that we may give.

        :param row: of the experiment, with ``gid`` (the number of its group where the site gives the groups) and
            ``auth_group_name`` (looked up where there is no number).
        """
        gid = self.own_group(row)
        return Owner(self._uid, self._gid if gid is None or not self._may_give(gid) else gid)

    @staticmethod
    def own_group(row: Row) -> int | None:
        """Return the number of an experiment's own Unix group, whether we may give it or not, or ``None``."""
        if row["gid"] is not None:
            return int(row["gid"])
        with contextlib.suppress(KeyError):
            return grp.getgrnam(row["auth_group_name"]).gr_gid
        return None

    def _may_give(self, gid: int) -> bool:
        return self._root or gid == os.getegid() or gid in os.getgroups()

    def _account(self, name: str | None, field: str) -> int:
        if name is None:
            return -1
        try:
            uid = pwd.getpwnam(name).pw_uid
        except KeyError:
            raise ConfigurationError(f"storage.{field} names account {name!r}, which does not exist.") from None
        if uid != os.geteuid() and not self._root:
            raise ConfigurationError(f"storage.{field} = {name!r} can only be set by a service run as root.")
        return uid if self._root else -1

    def _group(self, name: str | None, field: str) -> int:
        if name is None:
            return -1
        try:
            gid = grp.getgrnam(name).gr_gid
        except KeyError:
            raise ConfigurationError(f"storage.{field} names group {name!r}, which does not exist.") from None
        if not self._may_give(gid):
            raise ConfigurationError(f"storage.{field} = {name!r}: the service's account is no member of that group.")
        return gid


@contextlib.contextmanager
def opened_directory(path: str | bytes) -> Iterator[int]:
    """Open a directory that the service itself made. :raises ServiceUnavailable: it is not there or not readable."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise ServiceUnavailable(f"Directory {os.fsdecode(path)!a} cannot be opened: {error.strerror}.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def enter(parent: int, name: bytes, owner: Owner, mode: int) -> tuple[int, bool]:
    """Open the directory ``name`` in ``parent``, making it with owner and mode if it is missing.

    :returns: its descriptor, which the caller closes, and whether it was made.
    :raises InvalidObjectState: there is something else, or a link, of that name. :raises OSError: it cannot be made.
    """
    made = False
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        made = True
    except FileExistsError:
        pass
    try:
        descriptor = os.open(name, _FLAGS, dir_fd=parent)
    except NotADirectoryError:
        raise InvalidObjectState(f"{paths.display(name)!r} is a link or no directory; move it away.") from None
    try:
        if made:
            Look(owner, mode).apply(descriptor)
            os.fsync(parent)
        else:
            mend(descriptor, owner, mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor, made


def mend(descriptor: int, owner: Owner, mode: int) -> None:
    """Finish an open directory that a crash or an error left between its making and its opening to the group.

    By then it may have its owner already: that is given before the mode.
    """
    status = os.fstat(descriptor)
    if mode & _SET_GROUP_ID and status.st_uid in (os.geteuid(), owner.uid) and not status.st_mode & 0o077:
        Look(owner, mode).apply(descriptor)


def account_name(uid: int) -> str:
    """Return the name of an account, or its number as text."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return the name of a group, or its number as text."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


class ExperimentDirectory:
    """The directory of one experiment.

    :param storage_directory: absolute path of the experiment's directory.
    :param owner: of everything in it.
    """

    def __init__(self, storage_directory: str, owner: Owner) -> None:
        self.path = storage_directory
        self.owner = owner

    def make(self, storage_root: str, experiment_id: int, owners: Owners) -> None:
        """Make whatever is missing of it, durably, and mark it as this experiment's; idempotent.

        :raises InvalidObjectState: a foreign directory with contents is in the way.
        :raises ServiceUnavailable: the file system refuses.
        """
        below = Path(self.path).relative_to(storage_root).parts
        try:
            with contextlib.ExitStack() as stack, opened_directory(storage_root) as root:
                current = root
                for part in below[:-1]:
                    current, _ = enter(current, os.fsencode(part), Owner(self.owner.uid), PASSAGE_MODE)
                    stack.callback(os.close, current)
                current, made = enter(current, os.fsencode(below[-1]), self.owner, PRIVATE_MODE)
                stack.callback(os.close, current)
                if not made:
                    self._adopt(current, experiment_id)
                for part in PARTS:
                    inner, _ = enter(current, part.encode(), self.owner, DIRECTORY_MODE)
                    stack.callback(os.close, inner)
                inner, _ = enter(current, STAGING.encode(), self.owner, PRIVATE_MODE)
                stack.callback(os.close, inner)
                owners.area(self.owner).apply(inner)
                owners.top(self.owner).apply(current)
                self._mark(experiment_id)
        except OSError as error:
            raise ServiceUnavailable(f"Directory {self.path!a} cannot be made: {error.strerror}.") from error

    def _adopt(self, descriptor: int, experiment_id: int) -> None:
        """Accept a directory that was there: our own, an empty one, or one left by a creation that was cut short."""
        marked = self.marker()
        if marked is not None and marked.get("experimentId") == experiment_id:
            return
        if any(self.files()):
            raise InvalidObjectState(
                f"Directory {self.path!a} exists and is not empty; move it away or choose another name."
            )
        Look(self.owner, PRIVATE_MODE).apply(descriptor)

    def files(self) -> Iterator[str]:
        """Yield the path of everything in it that is no directory and not our own marker, whole or cut short."""
        ours = {os.path.join(self.path, "system", name) for name in (MARKER, _NEW_MARKER)}  # noqa: PTH118
        for directory, names, files in os.walk(self.path):
            for name in files + [name for name in names if os.path.islink(os.path.join(directory, name))]:  # noqa: PTH118, PTH114
                found = os.path.join(directory, name)  # noqa: PTH118
                if found not in ours:
                    yield found

    def marker(self) -> dict[str, Any] | None:
        """Return the mark that says whose directory this is, or ``None``."""
        try:
            with paths.opened_file(self.path, b"system/" + MARKER.encode()) as descriptor:
                value = json.loads(os.pread(descriptor, 1 << 16, 0))
        except (ObjectNotFound, FileNotFoundError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def _mark(self, experiment_id: int) -> None:
        with opened_directory(os.path.join(self.path, "system")) as system:  # noqa: PTH118
            temporary = _NEW_MARKER.encode()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=system)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=system)
            try:
                os.write(descriptor, json.dumps({"experimentId": experiment_id}).encode() + b"\n")
                self.owner.apply(descriptor, FILE_MODE)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, MARKER, src_dir_fd=system, dst_dir_fd=system)
            os.fsync(system)
