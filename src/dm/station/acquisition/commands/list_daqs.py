"""``dm-list-daqs``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import DaqInfo, ExperimentDaqApi


@command("dm-list-daqs", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--experiment", help="Only of this experiment.")
@option("--status", help="Only with this status, e.g. running.")
def main(api: ExperimentDaqApi, experiment: str | None, status: str | None) -> list[DaqInfo]:
    """List DAQs, newest last."""
    return api.listDaqs(experiment, status)
