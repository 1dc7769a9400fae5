"""``dm-start-daq``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import DaqInfo, ExperimentDaqApi
from dm.station.acquisition.commands.progress import follow_option, followed, hint, interval_option
from dm.station.acquisition.commands.task_options import Duration, task_info, task_options


@command("dm-start-daq", api="dm.station.acquisition.api:ExperimentDaqApi", keyvalue_arguments=True)
@task_options
@option(
    "--process-existing",
    "--process-existing-files",
    "process_existing_files",
    is_flag=True,
    default=None,
    help="Take what is in the directory already, too.",
)
@option(
    "--duration",
    "--max-run-time-in-hours",
    "max_run_time_in_hours",
    type=Duration(),
    help="Stop by itself after this time: 1d, 12h, 90m; a bare number is hours.",
)
@option(
    "--watch-method",
    type=click.Choice(["auto", "events", "polling", "both"]),
    help="How new files are seen; auto: as the file system needs.",
)
@option("--upload-data-directory-on-exit", help="Upload this directory when the DAQ ends.")
@option("--upload-dest-directory-on-exit", help="Sub-folder of the experiment for that upload.")
@follow_option
@interval_option
def main(
    api: ExperimentDaqApi,
    experiment: str,
    data_directory: str,
    *,
    follow: bool,
    interval: float,
    words: dict[str, str],
    **flags: Any,
) -> DaqInfo | Iterator[DmObject]:
    """Watch a directory: move, verify, catalog and process every file that appears in it.

    KEY:VALUE words set further keys; keys DM does not know are kept as metadata of the files.
    """
    info = api.startDaq(experiment, data_directory, task_info(flags, words))
    if follow:
        return followed(api, info, interval=interval)
    hint(info)
    return info
