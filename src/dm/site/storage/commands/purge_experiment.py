"""``dm-purge-experiment``"""

from __future__ import annotations

import click

from dm.common.command import command, confirm, option
from dm.site.storage.api import ExperimentDsApi, Operation
from dm.site.storage.commands.options import finished


@command("dm-purge-experiment", api="dm.site.storage.api:ExperimentDsApi")
@option("--id", "experiment_id", type=int, required=True, help="Its number, see dm-list-deleted-experiments.")
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@option("--wait", is_flag=True, help="Wait until everything is gone.")
def main(api: ExperimentDsApi, experiment_id: int, yes: bool, wait: bool) -> Operation:
    """Remove a deleted experiment for good, before its time (administrators)."""
    question = f"What is left of deleted experiment {experiment_id} will be gone for good. Purge it?"
    if not yes and not confirm(question):
        click.echo("Nothing was purged.", err=True)
        raise click.exceptions.Exit(1)
    operation = api.purgeDeletedExperiment(experiment_id)
    return finished(api, operation, "Experiment is not purged") if wait else operation
