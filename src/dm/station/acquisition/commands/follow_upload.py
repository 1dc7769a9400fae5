"""``dm-follow-upload``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.progress import followed, interval_option


@command("dm-follow-upload", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="Upload id.")
@interval_option
def main(api: ExperimentDaqApi, id: str, interval: float) -> Iterator[DmObject]:
    """Show how far an upload is, until its end; fail when a file failed.

    It ends when the upload does. Ctrl-C ends the showing only.
    """
    return followed(api, api.getUploadInfo(id), interval=interval)
