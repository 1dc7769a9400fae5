"""``dm-delete-experiment``"""

from __future__ import annotations

import click

from dm.common.command import command, confirm, option
from dm.site.storage.api import Experiment, ExperimentDsApi, FileDsApi, Operation
from dm.site.storage.commands.options import chosen_experiment, experiment_choice, finished

APIS = ["dm.site.storage.api:ExperimentDsApi", "dm.site.storage.api:FileDsApi"]


@command("dm-delete-experiment", api=APIS)
@experiment_choice
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@option("--force", is_flag=True, help="Do not ask; delete also while DAQs, uploads or jobs run, or if pinned.")
@option("--wait", is_flag=True, help="Wait until everything is deleted.")
def main(
    api: ExperimentDsApi,
    file_api: FileDsApi,
    *,
    experiment: str | None,
    experiment_id: int | None,
    station: str | None,
    yes: bool,
    force: bool,
    wait: bool,
) -> Operation:
    """Delete an experiment with all its files; prints the operation, see dm-get-operation.

    It can be restored for as long as the site keeps deleted experiments; see dm-list-deleted-experiments.
    """
    record = chosen_experiment(api, experiment, experiment_id, station)
    if not (yes or force) and not confirm(question(file_api, record)):
        click.echo("Nothing was deleted.", err=True)
        raise click.exceptions.Exit(1)
    operation = api.deleteExperimentById(record["id"], force)
    return finished(api, operation, f"Experiment {record['name']} is not deleted") if wait else operation


def question(api: FileDsApi, record: Experiment) -> str:
    """Return what to ask: how much will be gone, and from where."""
    page = api.client.get("/files", experimentName=record["name"], stationName=record["stationName"], limit=1)
    return (
        f"Experiment {record['name']} of {record['stationName']} has {page['countFiles']} files "
        f"({page['countBytes']} bytes). Everything in {record['storageDirectory']} will be deleted. Delete?"
    )
