"""Explains access where it runs: ``python explain_process.py SETTINGS EXPERIMENT-ID PATH USER...``."""

from __future__ import annotations

import json
import sys

from dm.common.web.routes import Principal
from dm.site.database.store import Store
from dm.site.storage.directories import Owners
from dm.site.storage.experiments import Reference
from dm.site.storage.explain import Explanations
from dm.site.storage.settings import StorageSettings


def main() -> None:
    """Print the answers that an administrator gets, as JSON."""
    settings = StorageSettings.model_validate_json(sys.argv[1])
    reference, path = Reference(id=int(sys.argv[2])), sys.argv[3]
    store = Store(settings.database_url, 2)
    everybody = Principal("administrator", frozenset({"administrator"}))
    explanations = Explanations(store, Owners(settings))
    told = [explanations.explain(everybody, username, reference, path) for username in sys.argv[4:]]
    store.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
