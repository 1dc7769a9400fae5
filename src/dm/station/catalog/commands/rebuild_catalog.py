"""``dm-rebuild-catalog``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from dm.common.command import command, option, say
from dm.common.environment import station_name
from dm.common.errors import ProcessingError
from dm.common.records import DmObject
from dm.site.storage.api import Experiment, ExperimentDsApi, FileDsApi
from dm.station.catalog.api import CatalogServiceApi, FileCatApi
from dm.station.catalog.rebuild import complete, rebuild

APIS = [
    "dm.site.storage.api:ExperimentDsApi",
    "dm.site.storage.api:FileDsApi",
    "dm.station.catalog.api:FileCatApi",
    "dm.station.catalog.api:CatalogServiceApi",
]
_KEYS = ["root", "experimentFilePath", "version"]


class Rebuilt(DmObject):
    """What became of an experiment's records."""


@command("dm-rebuild-catalog", api=APIS)
@option("--experiment", metavar="NAME", help="This experiment.")
@option("--all-experiments", "everything", is_flag=True, help="All experiments of the station.")
@option("--station", metavar="NAME", help="Station name; default: the station of the setup file.")
@option("--dry-run", is_flag=True, help="Only say what is missing.")
@option("--storage", is_flag=True, help="First have storage record again what its own database lost.")
@option("--list", "listed", is_flag=True, help="List each file that is written on standard error.")
def main(
    experiments: ExperimentDsApi,
    files: FileDsApi,
    catalog: FileCatApi,
    service: CatalogServiceApi,
    *,
    experiment: str | None,
    everything: bool,
    station: str | None,
    dry_run: bool,
    storage: bool,
    listed: bool,
) -> Iterator[Rebuilt]:
    """Make missing catalog records anew from the record storage keeps of every published file (managers).

    Paths, sizes, times, digests and versions come back; free metadata, datasets and runs do not. Records that are there
    stay as they are. Exit status 11 when records were refused.
    """
    if everything == (experiment is not None):
        raise click.UsageError("Give --experiment or --all-experiments.")
    chosen: list[Experiment]
    if experiment is not None:
        chosen = [experiments.getExperimentByName(experiment, station)]
    else:
        chosen = experiments.getExperimentsByStation(station_name(station))

    def told(what: str, entry: dict[str, Any]) -> None:
        if listed or what.startswith("refused"):
            name = f"{entry['root']}/{entry['path']}".encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            say(f"{what}: {name}")

    refused = 0
    for one in chosen:
        again = files.recordFilesAgain(one["id"], dry_run)["countMissing"] if storage else 0
        known = {
            (found["root"], found["experimentFilePath"]): found.get("version")
            for found in catalog.iterateExperimentFiles(one["name"], {}, keyList=_KEYS)
        }
        report = rebuild(one, complete(files.iterateManifest(one["id"])), known, service, dry_run=dry_run, told=told)
        refused += report["nErrors"]
        yield Rebuilt(report | ({"nRecordedAgain": again} if storage else {}))
    if refused:
        raise ProcessingError(f"The catalog refused {refused} records; they are listed above.")
