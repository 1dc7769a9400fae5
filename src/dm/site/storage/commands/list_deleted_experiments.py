"""``dm-list-deleted-experiments``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import Experiment, ExperimentDsApi
from dm.site.storage.commands.options import station_option

KEYS = "id,name,startDate,deletedTimestamp,purgeTimestamp,countFiles,countBytes"


@command("dm-list-deleted-experiments", api="dm.site.storage.api:ExperimentDsApi")
@station_option
def main(api: ExperimentDsApi, station: str | None) -> list[Experiment]:
    """List the deleted experiments of a station that can still be restored, the one purged next last."""
    return [Deleted(record.data) for record in api.getDeletedExperiments(station)]


class Deleted(Experiment):
    """As it is shown here."""

    DEFAULT_KEY_LIST = KEYS.split(",")
