"""``dm-export-daq-files``"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from dm.common.command import command, option
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.file_options import STATES, Since, is_upload


@command("dm-export-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi", display=False)
@option("--id", required=True, help="DAQ or upload id.")
@option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl"]),
    default="csv",
    show_default=True,
    help="csv: a table that spreadsheets read, no cell of which is a formula; jsonl: one JSON object per line.",
)
@option("--state", type=click.Choice(STATES), help="Only files in this state.")
@option("--pattern", help="Only files whose path, or name, matches this shell wildcard.")
@option("--since", type=Since(), help="Only files found whole or finished since: 90m (ago), or 2026-03-05T14:00.")
@option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; default: standard output.")
def main(  # noqa: PLR0917
    api: ExperimentDaqApi,
    id: str,
    form: str,
    state: str | None,
    pattern: str | None,
    since: float | None,
    output: Path | None,
) -> None:
    """Export the files of a DAQ or upload as a table, any number of them."""
    pieces = (api.exportUploadFiles if is_upload(api, id) else api.exportDaqFiles)(id, form, state, pattern, since)
    if output is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    part = output.with_name(f".{output.name[:200]}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        part.replace(output)  # complete, or not at all
    finally:
        part.unlink(missing_ok=True)
