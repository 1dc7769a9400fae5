"""``dm-add-experiment-type``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.site.storage.api import ExperimentDsApi, ExperimentType


@command("dm-add-experiment-type", api="dm.site.storage.api:ExperimentDsApi")
@option("--type", "type_name", required=True, metavar="NAME", help="Name of the experiment type.")
@option("--description", default="", help="What it is.")
def main(api: ExperimentDsApi, type_name: str, description: str) -> ExperimentType:
    """Add an experiment type (administrators)."""
    return api.addExperimentType(type_name, description)
