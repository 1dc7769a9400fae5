"""``dm-explain-file``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from dm.common.command import command
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.file_options import WantedFile, wanted_options


@command("dm-explain-file", api="dm.station.acquisition.api:ExperimentDaqApi")
@wanted_options
def main(api: ExperimentDaqApi, wanted: WantedFile) -> Iterator[Any]:
    """Say why a file is not where it should be, or where it is.

    Name the file by --id and --path, by --experiment and --path, or by --source. The source on disk, the ledger,
    storage and the catalog are asked. In text, the first line is the explanation and the second has the facts; -a
    shows all of them.
    """
    found = api.explainFile(*wanted)
    if click.get_current_context().params.get("display_format") == "text":
        yield str(found["explanation"])
    yield found
