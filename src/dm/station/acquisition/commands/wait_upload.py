"""``dm-wait-upload``"""

from __future__ import annotations

from collections.abc import Iterator

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.progress import followed
from dm.station.acquisition.commands.task_options import timeout_option


@command("dm-wait-upload", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="Upload id.")
@timeout_option
def main(api: ExperimentDaqApi, id: str, timeout: float | None) -> Iterator[DmObject]:
    """Wait for the end of an upload; fail when a file failed."""
    return followed(api, api.getUploadInfo(id), timeout=timeout, interval=None)
