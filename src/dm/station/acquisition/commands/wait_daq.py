"""``dm-wait-daq``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option, progress
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.task_options import Duration, counted, printed_then_judged


@command("dm-wait-daq", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ id.")
@option("--timeout", type=Duration(), help="Give up waiting after this time, e.g. 30m.")
def main(api: ExperimentDaqApi, id: str, timeout: float | None) -> Iterator[DmObject]:
    """Wait for the end of a DAQ that was stopped, or that stops by itself; fail when a file failed."""
    seconds = None if timeout is None else timeout * 3600
    with progress("Finishing") as update:
        info = api.waitDaq(id, seconds, progress=lambda seen: update(*counted(seen)))
    return printed_then_judged(info)
