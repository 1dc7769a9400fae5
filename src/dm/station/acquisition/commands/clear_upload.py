"""``dm-clear-upload``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo


@command("dm-clear-upload", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="Upload id.")
def main(api: ExperimentDaqApi, id: str) -> UploadInfo:
    """Take a finished upload off the list; stored files stay."""
    return api.clearUpload(id)
