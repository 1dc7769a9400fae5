"""``dm-stop-daq``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import DaqInfo, ExperimentDaqApi
from dm.station.acquisition.commands.progress import followed


@command("dm-stop-daq", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--experiment", required=True, help="Experiment name.")
@option("--data-directory", required=True, help="Directory, exactly as it was given to dm-start-daq.")
@option("--wait", is_flag=True, help="Wait until the files it has seen are finished; fail when one of them failed.")
def main(api: ExperimentDaqApi, experiment: str, data_directory: str, wait: bool) -> DaqInfo | Iterator[DmObject]:
    """Stop a DAQ; files it has seen are finished."""
    info = api.stopDaq(experiment, data_directory)
    if not wait:
        return info
    return followed(api, info, interval=None)
