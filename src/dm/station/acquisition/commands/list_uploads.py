"""``dm-list-uploads``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo


@command("dm-list-uploads", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--experiment", help="Only of this experiment.")
@option("--status", help="Only with this status, e.g. running.")
def main(api: ExperimentDaqApi, experiment: str | None, status: str | None) -> list[UploadInfo]:
    """List uploads, newest last."""
    return api.listUploads(experiment, status)
