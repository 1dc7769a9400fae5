"""A publisher in a process of its own, that can be told to die: ``python storage_process.py SETTINGS BATCH [DEATH]``.

SETTINGS is JSON of the storage settings. It publishes until BATCH is committed. With DEATH = n it kills itself
(SIGKILL) the n-th time it is about to change the file system; with DEATH = ``fsize:n`` no file may grow beyond n bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys
import threading
import time

from dm.site.database.store import Store
from dm.site.storage import batch_store
from dm.site.storage.batches import Signal
from dm.site.storage.directories import Owners
from dm.site.storage.publisher import Publisher
from dm.site.storage.settings import StorageSettings

CHANGES = {
    "os.rename",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.link",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
}


def main() -> int:
    settings = StorageSettings(**json.loads(sys.argv[1]))
    batch = sys.argv[2]
    death = sys.argv[3] if len(sys.argv) > 3 else ""
    store = Store(settings.database_url, 3)
    ended = Signal()
    publisher = Publisher(store, Owners(settings), settings, Signal(), ended)
    if death.startswith("fsize:"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = int(death.removeprefix("fsize:"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    elif death:
        count, lock, last = itertools.count(1), threading.Lock(), int(death)

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event in CHANGES:
                with lock:
                    if next(count) == last:
                        os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
    publisher.start()
    deadline = time.monotonic() + 60
    state = None
    while state != "committed" and time.monotonic() < deadline:
        seen = ended.count()
        with store.transaction() as connection:
            state = batch_store.state(connection, batch)
        if state != "committed":
            ended.wait(seen, 0.2)
    publisher.stop()
    store.close()
    return 0 if state == "committed" else 1


if __name__ == "__main__":
    sys.exit(main())
