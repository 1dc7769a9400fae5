"""``dm-stop-upload``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo


@command("dm-stop-upload", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="Upload id.")
def main(api: ExperimentDaqApi, id: str) -> UploadInfo:
    """Stop an upload; files on their way are finished, the others are left."""
    return api.stopUpload(id)
