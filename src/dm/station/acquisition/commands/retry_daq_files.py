"""``dm-retry-daq-files``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.common.errors import ObjectNotFound
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi


@command("dm-retry-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ or upload id.")
@option("--path", help="Only this file, relative to the data directory.")
def main(api: ExperimentDaqApi, id: str, path: str | None) -> DmObject:
    """Try the failed files of a DAQ or upload again; prints how many."""
    try:
        return api.retryDaqFiles(id, path)
    except ObjectNotFound:
        return api.retryUploadFiles(id, path)
