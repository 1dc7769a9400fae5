"""``dm-get-operation``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, Operation


@command("dm-get-operation", api="dm.site.storage.api:ExperimentDsApi")
@option("--id", required=True, help="Operation id, as printed by dm-delete-experiment.")
def main(api: ExperimentDsApi, id: str) -> Operation:
    """Show how far an operation of the storage service is: pending, running, done or failed."""
    return api.getOperation(id)
