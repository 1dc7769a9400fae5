"""``dm-get-daq-info``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import DaqInfo, ExperimentDaqApi


@command("dm-get-daq-info", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ id.")
def main(api: ExperimentDaqApi, id: str) -> DaqInfo:
    """Show a DAQ."""
    return api.getDaqInfo(id)
