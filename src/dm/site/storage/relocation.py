"""Moving whole experiment directories: elsewhere, aside while they can be restored, and away for good.

Every step proves first that the directory is that of this very experiment (``system/experiment.json`` bears its number)
and that no link leads to it; every step may be repeated after a crash. What is deleted lies in ``.deleted/<number>``
beside its former place, where only the service's account may pass, until it is purged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dm.common.errors import InvalidObjectState, ServiceUnavailable
from dm.site.storage.directories import PASSAGE_MODE, ExperimentDirectory, Owner, enter, opened_directory

ASIDE = ".deleted"


def put_aside(storage_root: str, storage_directory: str, experiment_id: int) -> None:
    """Rename an experiment's directory to where nobody reaches it; one that is gone already is fine.

    :raises InvalidObjectState: it lies outside the storage, is reached through a link, or bears no mark, or another
        mark, than this experiment's; nothing was touched. :raises ServiceUnavailable: its file system is away.
    """
    directory = Path(storage_directory)
    _refuse_detours(storage_root, storage_directory)
    _refuse_absence(storage_root, storage_directory)
    if not directory.parent.is_dir():
        return
    with opened_directory(str(directory.parent)) as parent:
        # A release before this one removed it at once, under this name; a crash may have left some of that.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(f"{ASIDE}-{experiment_id}", dir_fd=parent)
        if not os.path.lexists(directory):
            return
        _refuse_strangers(storage_directory, experiment_id)
        with _aside(parent) as aside:
            os.rename(directory.name, str(experiment_id), src_dir_fd=parent, dst_dir_fd=aside)
            os.fsync(aside)
        os.fsync(parent)


def bring_back(storage_root: str, former: str, experiment_id: int, storage_directory: str, owner: Owner) -> None:
    """Rename an experiment that was put aside from ``former`` to its directory.

    :raises InvalidObjectState: nothing is there any more, or something is in the way.
    """
    move(storage_root, f"{Path(former).parent}/{ASIDE}/{experiment_id}", storage_directory, experiment_id, owner)
    forget_aside(former)


def move(storage_root: str, source: str, target: str, experiment_id: int, owner: Owner) -> None:
    """Rename an experiment's directory within its storage, making the directories on the way.

    :param owner: of directories made on the way.
    :raises InvalidObjectState: it is neither here nor there, bears another mark, or something is in the way.
    """
    _refuse_detours(storage_root, source)
    if os.path.lexists(target) and _marked(target, experiment_id) and not os.path.lexists(source):
        _refuse_detours(storage_root, target)
        return  # done before a crash
    _refuse_strangers(source, experiment_id)
    below = Path(target).relative_to(storage_root).parts
    with contextlib.ExitStack() as stack:
        current = stack.enter_context(opened_directory(storage_root))
        for part in below[:-1]:
            current, _ = enter(current, os.fsencode(part), Owner(owner.uid), PASSAGE_MODE)
            stack.callback(os.close, current)
        old = stack.enter_context(opened_directory(str(Path(source).parent)))
        try:
            # What is in the way stays, also if it came this instant; only an empty directory would be replaced.
            os.rename(Path(source).name, below[-1], src_dir_fd=old, dst_dir_fd=current)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise InvalidObjectState(
                    f"Directory {target!a} exists and is not empty; move it away or choose another name."
                ) from None
            if error.errno == errno.EXDEV:
                raise InvalidObjectState(f"{target!a} lies on another file system than {source!a}; kept.") from None
            raise
        os.fsync(current)
        os.fsync(old)


def discard(storage_root: str, former: str, experiment_id: int) -> None:
    """Remove what was put aside from ``former`` for good, following no link; gone already is fine.

    :raises InvalidObjectState: what is there bears the mark of another experiment; kept.
    :raises ServiceUnavailable: its file system is away.
    """
    _refuse_detours(storage_root, former)
    _refuse_absence(storage_root, former)
    place = Path(former).parent / ASIDE
    if not place.is_dir():
        return
    mark = ExperimentDirectory(str(place / str(experiment_id)), Owner()).marker()
    if mark is not None and mark.get("experimentId") != experiment_id:
        raise InvalidObjectState(f"Directory {f'{place}/{experiment_id}'!a} bears another experiment's mark; kept.")
    with opened_directory(str(place)) as aside:
        if os.path.lexists(place / str(experiment_id)):
            shutil.rmtree(str(experiment_id), dir_fd=aside)
            os.fsync(aside)
    forget_aside(former)


def forget_aside(former: str) -> None:
    """Remove the directory of things put aside if it is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(Path(former).parent / ASIDE)  # noqa: PTH106


def forget_passages(storage_root: str, storage_directory: str) -> None:
    """Remove the directories that led to an experiment and are empty now, but not its station's."""
    for parent in Path(storage_directory).parents:
        if Path(storage_root) not in parent.parent.parents:
            return
        try:
            parent.rmdir()
        except OSError:
            return


@contextlib.contextmanager
def _aside(parent: int) -> Iterator[int]:
    descriptor, _ = enter(parent, ASIDE.encode(), Owner(), 0o700)
    try:
        os.fchmod(descriptor, 0o700)
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_detours(storage_root: str, directory: str) -> None:
    path, root = Path(directory), Path(storage_root)
    if root not in path.parents or os.path.realpath(path.parent) != str(path.parent):
        raise InvalidObjectState(f"Directory {directory!a} is not plainly beneath {storage_root!a}; kept.")


def _refuse_absence(storage_root: str, directory: str) -> None:
    """Tell what is gone from what is not mounted: nobody removes the directory of a station."""
    station = Path(storage_root, Path(directory).relative_to(storage_root).parts[0])
    if not station.is_dir():
        raise ServiceUnavailable(
            f"Directory {str(station)!a} is not there; mount its file system, or make the directory if all is lost."
        )


def _marked(directory: str, experiment_id: int) -> bool:
    if Path(directory).is_symlink():
        return False
    mark = ExperimentDirectory(directory, Owner()).marker()
    return mark is not None and mark.get("experimentId") == experiment_id


def _refuse_strangers(directory: str, experiment_id: int) -> None:
    if not _marked(directory, experiment_id):
        raise InvalidObjectState(f"Directory {directory!a} does not bear the mark of experiment {experiment_id}; kept.")
