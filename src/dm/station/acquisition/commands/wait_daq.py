"""``dm-wait-daq``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.progress import followed
from dm.station.acquisition.commands.task_options import Duration


@command("dm-wait-daq", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ id.")
@option("--timeout", type=Duration(), help="Give up waiting after this time, e.g. 30m.")
def main(api: ExperimentDaqApi, id: str, timeout: float | None) -> Iterator[DmObject]:
    """Wait for the end of a DAQ that was stopped, or that stops by itself; fail when a file failed."""
    seconds = None if timeout is None else timeout * 3600
    return followed(api, api.getDaqInfo(id), timeout=seconds, interval=None)
