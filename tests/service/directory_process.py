"""A process that keeps the directory up to date until it is killed: ``python directory_process.py URL SETTINGS``.

SETTINGS is JSON of ``[storage.ldap]``.
"""

from __future__ import annotations

import json
import signal
import sys

from dm.site.database.store import Store
from dm.site.identity.ldap.connection import Directory
from dm.site.identity.ldap.keeper import DirectoryKeeper
from dm.site.identity.ldap.settings import LdapSettings
from dm.site.identity.ldap.worker import DirectoryWorker


def main() -> int:
    store = Store(sys.argv[1], 3)
    settings = LdapSettings(**json.loads(sys.argv[2]))
    worker = DirectoryWorker(DirectoryKeeper(store, Directory(settings)))
    worker.start()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM})
    worker.stop()
    store.close()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.exit(main())
