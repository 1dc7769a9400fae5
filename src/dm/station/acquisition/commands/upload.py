"""``dm-upload``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dm.common.command import command, option, progress
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo
from dm.station.acquisition.commands.task_options import (
    Duration,
    counted,
    printed_then_judged,
    task_info,
    task_options,
)


@command("dm-upload", api="dm.station.acquisition.api:ExperimentDaqApi", keyvalue_arguments=True)
@task_options
@option("--experiment-file-path", help="Only this file, relative to the data directory.")
@option("--wait", is_flag=True, help="Wait for the end; fail when a file failed.")
@option("--timeout", type=Duration(), help="With --wait: give up waiting after this time, e.g. 30m.")
def main(
    api: ExperimentDaqApi,
    experiment: str,
    data_directory: str,
    *,
    wait: bool,
    timeout: float | None,
    words: dict[str, str],
    **flags: Any,
) -> UploadInfo | Iterator[DmObject]:
    """Upload what a directory holds now: move, verify, catalog and process every file.

    KEY:VALUE words set further keys; keys DM does not know are kept as metadata of the files.
    """
    info = api.upload(experiment, data_directory, task_info(flags, words))
    if not wait:
        return info
    seconds = None if timeout is None else timeout * 3600
    with progress("Uploading") as update:
        info = api.waitUpload(info["id"], seconds, progress=lambda seen: update(*counted(seen)))
    return printed_then_judged(info)
