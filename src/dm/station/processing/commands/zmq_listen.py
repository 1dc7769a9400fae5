"""``dm-zmq-listen``"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from dm.common.command import command, option
from dm.station.processing.zeromq.client import JobEvent, ProcZmqApi


@command("dm-zmq-listen", api="dm.station.processing.zeromq.client:ProcZmqApi")
@option("--owner", help="Of this owner's jobs only; default: all that the key may see.")
@option("--id", help="Of this job only; needs --owner.")
@option("--timeout", type=click.FloatRange(min=0.001), help="Seconds without an event after which to end.")
def main(api: ProcZmqApi, owner: str | None, id: str | None, timeout: float | None) -> Iterator[JobEvent]:
    """Show what becomes of jobs and their files as it happens, one line per event, until Ctrl-C.

    The key of DM_ZMQ_KEY_FILE decides what is shown: events of its account's jobs, or of everybody's.
    """
    if id and not owner:
        raise click.UsageError("--id needs --owner.")
    for event in api.events(owner, id, timeout):
        yield event
        sys.stdout.flush()
