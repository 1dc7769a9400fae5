"""``dm-skip-daq-files``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.file_options import choice_options, is_upload


@command("dm-skip-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@choice_options
@option(
    "--state", type=click.Choice(["failed", "ready"]), help="Only failed ones, or only those that wait; default: both."
)
@option("--reason", help="Why; kept with each file.")
def main(  # noqa: PLR0917
    api: ExperimentDaqApi, id: str, path: str | None, pattern: str | None, state: str | None, reason: str | None
) -> DmObject:
    """Leave files of a DAQ or upload out: they count as skipped and are not tried again; prints how many."""
    return (api.skipUploadFiles if is_upload(api, id) else api.skipDaqFiles)(id, path, pattern, state, reason)
