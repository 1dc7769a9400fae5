"""``dm-get-upload-info``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo


@command("dm-get-upload-info", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="Upload id.")
def main(api: ExperimentDaqApi, id: str) -> UploadInfo:
    """Show an upload."""
    return api.getUploadInfo(id)
