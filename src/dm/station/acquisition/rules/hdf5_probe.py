"""Opens HDF5 files in a process of its own, as damaged or hostile ones can crash or hang the library.

Run as a program it answers one JSON line per JSON line. :class:`Probe` is the other end: one thread and one process
for all DAQs of a service.

The file is opened without the library's file lock, which would keep its writer from opening it; that a writer holds
such a lock is read from ``/proc/locks`` instead.
"""

from __future__ import annotations

import logging
import os
import queue
import stat
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from dm.common.errors import ProcessingError
from dm.station.acquisition.helper import Helper, answer_forever

_log = logging.getLogger(__name__)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Job = tuple[str, list[str], float, Callable[[str], None]]


def problem(path: str, requires: list[str]) -> str:
    """Return why a file is not a whole HDF5 file, in a few words; empty when it is.

    :param path: text by ``os.fsdecode``. :param requires: HDF5 paths that must be there.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "it is no regular file"
        if locked(status):
            return "its writer holds a lock on it"
        return _library(f"/proc/self/fd/{descriptor}", requires)
    finally:
        os.close(descriptor)


def _library(opened: str, requires: list[str]) -> str:
    import h5py

    if not h5py.is_hdf5(opened):
        return "it has no HDF5 signature"
    try:
        with h5py.File(opened, "r", locking=False) as file:
            list(file)
            for name in requires:
                if name not in file:
                    return f"{name} is missing in it"
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def locked(status: os.stat_result, table: str = "/proc/locks") -> bool:
    """Whether somebody on this machine holds a lock for writing on a file."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open(table, encoding="ascii") as lines:
            return any(device in (words := line.split()) and "WRITE" in words and "->" not in words for line in lines)
    except OSError:
        return False


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    return {"problem": problem(question["path"], question["requires"])}


class Probe:
    """The other end; see the module. Shared: :meth:`acquire` it and :meth:`release` it."""

    _shared: ClassVar[Probe | None] = None
    _users: ClassVar[int] = 0
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._helper = Helper(__name__)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hdf5-probe", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls) -> Probe:
        """Return the probe of this process, made when first needed."""
        with cls._guard:
            if cls._shared is None:
                cls._shared = Probe()
            cls._users += 1
            return cls._shared

    def release(self) -> None:
        """Need it no more; the last one to do so ends thread and process."""
        with Probe._guard:
            Probe._users -= 1
            if Probe._users > 0:
                return
            Probe._shared = None
        self._ended.set()
        self._jobs.put(None)
        self._helper.kill()
        self._thread.join(10)
        self._helper.close()

    def check(self, path: str, requires: list[str], seconds: float, answered: Callable[[str], None]) -> None:
        """Have a file checked; ``answered`` is called by the probe's thread with :func:`problem`'s answer."""
        self._jobs.put((path, requires, seconds, answered))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._ended.is_set():
            path, requires, seconds, answered = job
            try:
                answer = self._helper.ask({"path": path, "requires": requires}, seconds)
                answered(str(answer.get("problem", answer.get("error", ""))))
            except TimeoutError:
                answered(f"opening it took longer than {seconds:g} s")
            except (OSError, ValueError):
                answered("it makes the HDF5 library crash")
            except ProcessingError as error:
                _log.warning("HDF5 files cannot be checked: %s", error.message)
                answered(error.message)


if __name__ == "__main__":
    answer_forever(_answer)
