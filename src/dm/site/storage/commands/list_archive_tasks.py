"""``dm-list-archive-tasks``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import ExperimentDsApi, Operation


@command("dm-list-archive-tasks", api="dm.site.storage.api:ExperimentDsApi")
def main(api: ExperimentDsApi) -> list[Operation]:
    """List the newest tasks of the archive at stations you manage, newest last."""
    return api.listArchiveTasks()
