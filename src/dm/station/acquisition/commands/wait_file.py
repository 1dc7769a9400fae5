"""``dm-wait-file``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common.command import command, option
from dm.common.errors import ObjectNotFound, ProcessingError
from dm.station.acquisition.api import ExperimentDaqApi, LedgerFile
from dm.station.acquisition.commands.file_options import WantedFile, wanted_options
from dm.station.acquisition.commands.task_options import timeout_option


@command("dm-wait-file", api="dm.station.acquisition.api:ExperimentDaqApi")
@wanted_options
@option(
    "--until",
    type=click.Choice(["stored", "cataloged", "done"]),
    default="done",
    show_default=True,
    help="stored: in storage, verified; cataloged: and in the catalog; done: and seen by every plugin.",
)
@timeout_option
def main(api: ExperimentDaqApi, wanted: WantedFile, until: str, timeout: float | None) -> Iterator[LedgerFile]:
    """Wait until a file is stored, cataloged or done.

    Name the file by --id and --path, by --experiment and --path, or by --source. Exit status: 0 it is so far; 11 it
    failed or was left out; 14 its DAQ or upload ended without it; 22 not in time.
    """
    record = api.waitFile(*wanted, until, timeout)
    yield record
    if not record["reached"]:
        if record["state"] == "unknown":
            raise ObjectNotFound(f"File {record['path']!a} does not exist for {record['daqId']}, which has ended.")
        reason = str(record.get("lastError") or "no reason is recorded").rstrip(".")
        raise ProcessingError(f"File {record['path']!a} is {record['state']}: {reason}.")
