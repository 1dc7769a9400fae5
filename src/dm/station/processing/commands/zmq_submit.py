"""``dm-zmq-submit``"""

from __future__ import annotations

import click

from dm.common.command import command, option
from dm.station.processing.api import ProcessingJob
from dm.station.processing.zeromq.client import ProcZmqApi


@command("dm-zmq-submit", api="dm.station.processing.zeromq.client:ProcZmqApi", keyvalue_arguments=True)
@option("--workflow-name", required=True, help="Workflow name.")
@option("--workflow-owner", help="Its owner; default: yourself.")
@option("--job-owner", help="Whose job it is; default: yourself. For managers of the station.")
@option("--idempotency-key", help="Started again with the same key, the job is not started twice.")
@option(
    "--priority",
    type=click.IntRange(-100, 100),
    help="Jobs of a higher one go first; default: the workflow's. Only managers of the station raise it.",
)
def main(  # noqa: PLR0917 - given by name
    api: ProcZmqApi,
    workflow_name: str,
    workflow_owner: str | None,
    job_owner: str | None,
    idempotency_key: str | None,
    priority: int | None,
    words: dict[str, str],
) -> ProcessingJob:
    """Start a processing job through ZeroMQ.

    KEY:VALUE words are the job's arguments, as of dm-start-processing-job. Address and keys are those of
    DM_ZMQ_ADDRESS, DM_ZMQ_SERVER_KEY and DM_ZMQ_KEY_FILE.
    """
    return api.submit(workflow_owner or api.username, workflow_name, words, idempotency_key, job_owner, priority)
