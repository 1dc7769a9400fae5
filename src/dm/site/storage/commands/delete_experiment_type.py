"""``dm-delete-experiment-type``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, ExperimentType


@command("dm-delete-experiment-type", api="dm.site.storage.api:ExperimentDsApi")
@option("--type", "type_name", required=True, metavar="NAME", help="Type name.")
def main(api: ExperimentDsApi, type_name: str) -> ExperimentType:
    """Delete an experiment type that no experiment ever used (administrators)."""
    return api.deleteExperimentType(type_name)
