"""``dm-get-daq-file``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.file_options import is_upload


@command("dm-get-daq-file", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ or upload id.")
@option("--path", required=True, help="The file, relative to the data directory.")
@option("--timeline", is_flag=True, help="Print what happened to it, one event per line, instead.")
def main(api: ExperimentDaqApi, id: str, path: str, timeline: bool) -> Iterator[DmObject]:
    """Show one file of a DAQ or upload: its state, and with --timeline what happened to it and when."""
    record = (api.getUploadFile if is_upload(api, id) else api.getDaqFile)(id, path)
    if not timeline:
        yield record
        return
    for event in record["timeline"]:
        yield DmObject({key: event[key] for key in ("timestamp", "event", "text")})
