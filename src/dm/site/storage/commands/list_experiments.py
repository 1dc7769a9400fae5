"""``dm-list-experiments``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import station_option


@command("dm-list-experiments", api="dm.site.storage.api:ExperimentDsApi")
@station_option
def main(api: ExperimentDsApi, station: str | None) -> list[Experiment]:
    """List the experiments of a station that you may see, newest last."""
    return api.getExperimentsByStation(station)
