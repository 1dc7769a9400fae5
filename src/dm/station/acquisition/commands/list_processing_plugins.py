"""``dm-list-processing-plugins``"""

from __future__ import annotations

from dm.common.command import command
from dm.station.acquisition.api import ExperimentDaqApi, PluginInfo


@command("dm-list-processing-plugins", api="dm.station.acquisition.api:ExperimentDaqApi")
def main(api: ExperimentDaqApi) -> list[PluginInfo]:
    """List what this station does with files after they are stored, in order."""
    return api.listProcessingPlugins()
