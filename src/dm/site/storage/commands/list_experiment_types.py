"""``dm-list-experiment-types``"""

from __future__ import annotations

from dm.common.command import command
from dm.site.storage.api import ExperimentDsApi, ExperimentType


@command("dm-list-experiment-types", api="dm.site.storage.api:ExperimentDsApi")
def main(api: ExperimentDsApi) -> list[ExperimentType]:
    """List all experiment types."""
    return api.getExperimentTypes()
