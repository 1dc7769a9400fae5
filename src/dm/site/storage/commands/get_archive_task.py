"""``dm-get-archive-task``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Operation


@command("dm-get-archive-task", api="dm.site.storage.api:ExperimentDsApi")
@option("--id", required=True, help="Task id, as printed by dm-archive-experiment.")
def main(api: ExperimentDsApi, id: str) -> Operation:
    """Show a task of the archive."""
    return api.getArchiveTask(id)
