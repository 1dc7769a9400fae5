"""``dm-restore-permissions``"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dm.common.command import command, option
from dm.common.errors import DmException
from dm.common.records import DmObject
from dm.site.storage.api import ExperimentDsApi
from dm.site.storage.commands.options import station_option


@command("dm-restore-permissions", api="dm.site.storage.api:ExperimentDsApi")
@option("--experiment", help="Experiment name.")
@option("--all-experiments", is_flag=True, help="All experiments of the station, one after the other.")
@option("--relative-path", default="", help="Only this path below the experiment's directory, e.g. data/run1.")
@station_option
def main(
    api: ExperimentDsApi, experiment: str | None, all_experiments: bool, relative_path: str, station: str | None
) -> Iterator[DmObject]:
    """Give files and directories of an experiment their owner, modes and access lists again.

    What the service cannot give, because it is not run as root, is said on standard error.
    """
    if (experiment is None) != all_experiments or (all_experiments and relative_path):
        raise click.UsageError("Name one --experiment (and perhaps a --relative-path in it), or --all-experiments.")
    if experiment is not None:
        return _each(api, [experiment], relative_path, station)
    found = api.getExperimentsByStation(station)
    return _each(api, [one["name"] for one in found if one.get("status", "active") == "active"], "", station)


def _each(api: ExperimentDsApi, names: list[str], relative_path: str, station: str | None) -> Iterator[DmObject]:
    said: set[str] = set()
    failed: DmException | None = None
    for name in names:
        try:
            done = api.restorePermissions(name, relative_path, station)
        except DmException as error:
            if len(names) == 1:
                raise
            click.echo(f"{name}: {error}", err=True)
            failed = error
            continue
        for sentence in done["limits"]:
            if sentence not in said:
                click.echo(f"{name}: {sentence}", err=True)
        said.update(done["limits"])
        yield done
    if failed is not None:
        raise click.exceptions.Exit(failed.getErrorCode())
