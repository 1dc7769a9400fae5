"""``dm-complete-daq-files``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common.command import command, option
from dm.common.errors import ProcessingError
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi


@command("dm-complete-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@option("--id", required=True, help="DAQ id.")
@option(
    "--path",
    required=True,
    multiple=True,
    help="A file that is whole, relative to the data directory or absolute; a directory means all files in it. "
    "May be given several times.",
)
@option("--timeout", "seconds", type=click.FloatRange(0, 30), default=10.0, help="Seconds to wait; default 10.")
def main(api: ExperimentDaqApi, id: str, path: tuple[str, ...], seconds: float) -> Iterator[DmObject]:
    """Say that files of a running DAQ are whole, as their writer knows; prints how many are taken.

    Meant for the program that writes the files, above all with the completion rule "message". Exits with an error when
    a file is missing, or not taken yet: say it again then.
    """
    answer = api.completeDaqFiles(id, list(path), seconds)
    yield answer
    for kind, said in (("missing", "not there"), ("pending", "not taken yet; say it again")):
        if answer[kind]:
            raise ProcessingError(f"{len(answer[kind])} files are {said}, such as {answer[kind][0]!r}.")
