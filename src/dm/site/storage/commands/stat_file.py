"""``dm-stat-file``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.site.storage.api import FileDsApi, FileMetadata
from dm.site.storage.commands.options import experiment_option, root_option, station_option


@command("dm-stat-file", api="dm.site.storage.api:FileDsApi")
@experiment_option
@option("--file-path", "--file", "file_path", required=True, help="Path below the experiment's directory.")
@root_option
@option("--md5-sum", is_flag=True, help="Compute the MD5 sum if it is not known yet.")
@option("--compression", type=click.Choice(["gz", "bz2", "xz", "zst", "lz4"]), help="Look for the file compressed so.")
@station_option
def main(  # noqa: PLR0917
    api: FileDsApi,
    experiment: str,
    file_path: str,
    root: str | None,
    md5_sum: bool,
    compression: str | None,
    station: str | None,
) -> FileMetadata:
    """Show a file in storage: size, time, MD5 sum, and (-a) whether it is verified (readyForProcessing)."""
    return api.statFile(
        file_path, experiment, compression or "", md5_sum, stationName=station, compression=compression, root=root
    )
