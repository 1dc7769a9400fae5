"""``dm-clear-daq``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import DaqInfo, ExperimentDaqApi


@command("dm-clear-daq", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ id.")
def main(api: ExperimentDaqApi, id: str) -> DaqInfo:
    """Take a finished DAQ off the list; stored files stay."""
    return api.clearDaq(id)
