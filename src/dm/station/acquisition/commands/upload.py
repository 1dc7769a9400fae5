"""``dm-upload``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi, UploadInfo
from dm.station.acquisition.commands.progress import follow_option, followed, hint, interval_option
from dm.station.acquisition.commands.task_options import Duration, task_info, task_options


@command("dm-upload", api="dm.station.acquisition.api:ExperimentDaqApi", keyvalue_arguments=True)
@task_options
@option("--experiment-file-path", help="Only this file, relative to the data directory.")
@option("--wait", is_flag=True, help="Wait for the end; fail when a file failed.")
@follow_option
@option("--timeout", type=Duration(), help="With --wait or --follow: give up waiting after this time, e.g. 30m.")
@interval_option
def main(
    api: ExperimentDaqApi,
    experiment: str,
    data_directory: str,
    *,
    wait: bool,
    follow: bool,
    interval: float,
    timeout: float | None,
    words: dict[str, str],
    **flags: Any,
) -> UploadInfo | Iterator[DmObject]:
    """Upload what a directory holds now: move, verify, catalog and process every file.

    KEY:VALUE words set further keys; keys DM does not know are kept as metadata of the files.
    """
    info = api.upload(experiment, data_directory, task_info(flags, words))
    if not (wait or follow):
        hint(info)
        return info
    seconds = None if timeout is None else timeout * 3600
    return followed(api, info, timeout=seconds, interval=interval if follow else None)
