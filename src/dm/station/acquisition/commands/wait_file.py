"""``dm-wait-file``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common.command import command, option
from dm.common.errors import ObjectNotFound, ProcessingError
from dm.station.acquisition.api import ExperimentDaqApi, LedgerFile
from dm.station.acquisition.commands.file_options import wanted_options
from dm.station.acquisition.commands.task_options import Duration


@command("dm-wait-file", api="dm.station.acquisition.api:ExperimentDaqApi")
@wanted_options
@option(
    "--until",
    type=click.Choice(["stored", "cataloged", "done"]),
    default="done",
    show_default=True,
    help="stored: in storage, verified; cataloged: and in the catalog; done: and seen by every plugin.",
)
@option("--timeout", type=Duration(), help="Give up waiting after this time, e.g. 30m.")
def main(  # noqa: PLR0917
    api: ExperimentDaqApi,
    id: str | None,
    path: str | None,
    experiment: str | None,
    root: str | None,
    source_path: str | None,
    until: str,
    timeout: float | None,
) -> Iterator[LedgerFile]:
    """Wait until a file is stored, cataloged or done.

    Name the file by --id and --path, by --experiment and --path, or by --source. Exit status: 0 it is so far; 11 it
    failed or was left out; 14 its DAQ or upload ended without it; 22 not in time.
    """
    seconds = None if timeout is None else timeout * 3600
    record = api.waitFile(path, id, experiment, root, source_path, until, seconds)
    yield record
    if not record["reached"]:
        if record["state"] == "unknown":
            raise ObjectNotFound(f"File {record['path']!a} does not exist for {record['daqId']}, which has ended.")
        reason = str(record.get("lastError") or "no reason is recorded").rstrip(".")
        raise ProcessingError(f"File {record['path']!a} is {record['state']}: {reason}.")
