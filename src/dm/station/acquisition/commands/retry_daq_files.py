"""``dm-retry-daq-files``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.file_options import choice_options, is_upload


@command("dm-retry-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@choice_options
@option(
    "--state",
    type=click.Choice(["failed", "skipped"]),
    default="failed",
    show_default=True,
    help="Files in this state; skipped ones are those that a person or a stop left out.",
)
def main(api: ExperimentDaqApi, id: str, path: str | None, pattern: str | None, state: str) -> DmObject:
    """Try the failed files of a DAQ or upload again, also when it has ended; prints how many."""
    return (api.retryUploadFiles if is_upload(api, id) else api.retryDaqFiles)(id, path, pattern, state)
