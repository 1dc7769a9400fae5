"""Processes that work on experiments and can be told to die: ``python experiment_process.py SETTINGS``.

SETTINGS is JSON of the storage settings. Each line of standard input is JSON: ``call`` (a use case, see ``CALLS``),
``arguments``, ``death``. It is done by a child process that then carries out operations until none is left; with
``death`` = n it kills itself (SIGKILL) the n-th time it is about to change the file system or to commit. The answer is
a line with the child's exit status (-9: killed; 3: the use case refused).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from sqlalchemy import event

from dm.common.errors import DmException
from dm.common.web.routes import Principal
from dm.site.storage.changes import Changes
from dm.site.storage.experiments import Reference
from dm.site.storage.routes import UseCases
from dm.site.storage.service import build_from_settings
from dm.site.storage.settings import StorageSettings

CHANGES = {
    "os.rename", "os.mkdir", "os.chmod", "os.chown", "os.utime", "os.link", "os.remove", "os.rmdir", "os.truncate",
    "shutil.rmtree",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR
ADMIN = Principal("dmadmin", frozenset({"administrator"}), {})


def calls(use: UseCases) -> dict[str, Any]:
    """Return what can be asked for, by name."""
    life = use.life
    return {
        "nothing": lambda: None,
        "delete": lambda number: life.deletion.delete(ADMIN, Reference(id=number)),
        "restore": lambda number, new_name=None: life.deletion.restore(ADMIN, number, new_name),
        "purge": lambda number: life.deletion.purge(ADMIN, number),
        "update": lambda number, new_name=None, root_path=None: life.updates.update(
            ADMIN, Reference(id=number), Changes(root_path=root_path), new_name
        ),
        "move": lambda number, storage: life.moving.move(ADMIN, Reference(id=number), storage),
        "archive": lambda number: life.vault.archive(ADMIN, Reference(id=number)),
        "bring_back": lambda number: life.vault.restore(ADMIN, Reference(id=number)),
        "compress": lambda number, path: life.files.compress(ADMIN, Reference(id=number), path),
        "decompress": lambda number, path: life.files.decompress(ADMIN, Reference(id=number), path),
        "delete_files": lambda number, paths: life.files.delete(ADMIN, Reference(id=number), paths),
    }


def die_at(death: int, engine: Any) -> None:
    """Have this process killed at its ``death``-th change."""
    count, lock = itertools.count(1), threading.Lock()

    def step(*_: object) -> None:
        with lock:
            if next(count) == death:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name in CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            step()

    sys.addaudithook(watch)
    event.listen(engine, "commit", step)


def child(settings: StorageSettings, asked: dict[str, Any]) -> int:
    service = build_from_settings(settings)
    if asked.get("death"):
        die_at(asked["death"], service.store.engine)
    operations, status = service.use_cases.operations, 0
    try:
        calls(service.use_cases)[asked["call"]](**asked.get("arguments", {}))
    except DmException as error:
        print(error, file=sys.stderr)
        status = 3
    idle, deadline = 0, time.monotonic() + 60
    while idle < 2 and time.monotonic() < deadline:
        idle = 0 if operations.round() else idle + 1
    service.store.close()
    return status


def main() -> None:
    settings = StorageSettings(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                status = child(settings, json.loads(line))
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                status = 4
            sys.stderr.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
