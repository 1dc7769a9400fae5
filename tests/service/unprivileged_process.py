"""A storage service as an ordinary account: ``python unprivileged_process.py CERTIFICATES DIRECTORY``.

Prints what it says of itself, and what became of files and permissions, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[2]))

from dm.common.embedded import EmbeddedPostgres
from dm.site.storage.api import InspectionDsApi
from tests.service import storage_fixtures as fx

FAST = {"files_per_second": 1e6, "megabytes_per_second": 1e6}
NOBODYS_GROUP = 76_000


def main() -> None:
    """Run it and print."""
    told: dict[str, Any] = {"uid": os.geteuid()}
    certificates, directory = Path(sys.argv[1]), Path(sys.argv[2])
    database = EmbeddedPostgres(directory / "postgres", durable=False)
    database.start()
    try:
        look(database.create_database("plain"), certificates, directory, told)
    finally:
        database.stop()
    print(json.dumps(told))


def look(url: str, certificates: Path, directory: Path, told: dict[str, Any]) -> None:
    """Try everything and note what becomes of it."""
    with fx.running_site(url, certificates, directory, inspection=FAST) as site:
        manager = site.experiments(fx.MANAGER)
        added = manager.addExperiment("plain", fx.STATION, usernameList=[fx.ALICE])
        grant = site.station(fx.MANAGER).addGrant("plain", "daq", fx.STATION)
        outcome = fx.publish(site.station(), grant, {"a.h5": b"a", "deep/b.h5": b"b"})
        told["stored"] = {path: one["status"] for path, one in outcome.items()}
        health = {one["name"]: one for one in site.rest().get("/status")["checks"]}
        told["health"] = health["permissions"]
        with site.service.store.transaction() as connection:
            connection.execute(sa.text("UPDATE experiments SET gid = :gid"), {"gid": NOBODYS_GROUP})
        data = Path(added["dataDirectory"])
        (data / "a.h5").chmod(0o666)
        (data / "deep").chmod(0o777)
        told["restored"] = manager.restorePermissions("plain", "", fx.STATION).data
        inspections = InspectionDsApi(fx.MANAGER, fx.password_of(fx.MANAGER), site.url, ca_file=site.ca_file)
        record = inspections.waitForInspection(inspections.inspectExperiment("plain", fx.STATION), timeout=60)
        told["limits"] = record["limits"]
        told["findings"] = [one.data for one in inspections.getFindings("plain", fx.STATION)]
        told["access"] = inspections.explainAccess(fx.ALICE, "plain", "data/a.h5", fx.STATION).data
        inspections.close()
        found = [path.lstat() for path in [data, *data.rglob("*")]]
        told["modes"] = sorted({status.st_mode & 0o7777 for status in found})
        told["owners"] = sorted({status.st_uid for status in found})
        site.service.use_cases.health.clear()
        health = {one["name"]: one for one in site.rest().get("/status")["checks"]}
        told["later"] = health["permissions"]


if __name__ == "__main__":
    main()
