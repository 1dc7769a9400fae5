"""``dm-batch-run``: one batch job as one process of a stage.

Click alone, without the base of the other commands: there is one of these per running stage, so it starts quickly and
stays small.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dm.station.processing.batch import follow, script
from dm.station.processing.batch.outcome import BatchError, Outcome
from dm.station.processing.batch.request import Request, fit_name, job_environment, seconds, size
from dm.station.processing.batch.schedulers import Scheduler, detected
from dm.station.processing.batch.state import State

ATTACH_KEY, OUTPUT_FILE = "DM_ATTACH_KEY", "DM_OUTPUT_FILE"
_NAME = "dm-batch-run"


class _Amount(click.ParamType):
    def __init__(self, name: str, read: Callable[[str], int]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_TIME, _SIZE = _Amount("time", seconds), _Amount("size", size)


@click.command(_NAME, context_settings={"allow_interspersed_args": False, "show_default": True})
@click.option("--name", default="", help="Name of the job in lists; made unique by a suffix.  [default: the stage's]")
@click.option("--queue", default="", help="Queue (Grid Engine) or partition (Slurm).  [default: the scheduler's]")
@click.option("--walltime", type=_TIME, default=None, help="Longest time to run, e.g. 90m, 1h30m, 01:30:00.")
@click.option("--memory", type=_SIZE, default=None, help="Memory of the whole job, e.g. 500M, 4G.")
@click.option("--slots", type=click.IntRange(1), default=1, help="Processor cores on one host.")
@click.option(
    "--script",
    "job_script",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Job script to run with the arguments that follow; its #$ or #SBATCH lines count.",
)
@click.option("--env", "names", multiple=True, help="Environment variable the job is to get; repeatable.")
@click.option("--native", multiple=True, help="One more argument of qsub or sbatch, as --native=-P; repeatable.")
@click.option(
    "--scheduler", type=click.Choice(["sge", "slurm"]), default=None, help="Which one.  [default: the one there is]"
)
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="For the job's files while it runs; execution hosts must share it.",
)
@click.option(
    "--attach-key",
    default="",
    help="By this the job is found again when the stage is run again; told apart by job, stage and file in any case.  "
    "[default: the command]",
)
@click.option(
    "--patience", type=_TIME, default="10m", help="How long the scheduler may be silent before this command gives up."
)
@click.option(
    "--accounting", type=_TIME, default="60s", help="How long after its end a job may be missing in the accounting."
)
@click.option("--pe", default="smp", help="Parallel environment for several slots (Grid Engine).")
@click.option("--memory-resource", default="h_vmem", help="How the memory limit is called (Grid Engine).")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(  # noqa: PLR0917 - click gives them by name
    name: str,
    queue: str,
    walltime: int | None,
    memory: int | None,
    slots: int,
    job_script: Path | None,
    names: tuple[str, ...],
    native: tuple[str, ...],
    scheduler: str | None,
    directory: Path,
    attach_key: str,
    patience: int,
    accounting: int,
    pe: str,
    memory_resource: str,
    command: tuple[str, ...],
) -> None:
    """Run a command as one job of a Grid Engine or Slurm, wait for its end, and exit as it did.

    Write "--" before the command. The first line is "Job id: ...", the second "Job name: ...", then comes what the job
    prints. Its working directory is the current one, its standard input is empty.

    Run again after a restart for the same job, stage and file, it goes on with the batch job that it submitted, and
    submits no second one. SIGTERM deletes the batch job. Where DM_OUTPUT_FILE is set, it writes a JSON object there:
    jobId, jobName, exitStatus, outcome, reason, host, wallSeconds, cpuSeconds, maxMemory, and what the job wrote to its
    own DM_OUTPUT_FILE.

    The exit status is that of the job; 81 when it was not accepted or could not be started, 82 when it was lost (its
    host failed), 83 when it went over its limit of time or memory, 84 when somebody deleted or killed it, 85 when the
    scheduler was silent for too long (the job goes on), 143 after SIGTERM.
    """
    if not command and job_script is None:
        raise click.UsageError("Give a command after --, or a job script with --script.")
    try:
        environment = job_environment(names, os.environ)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        chosen = _made(detected(os.environ, scheduler or ""))
        request = Request(
            command=command,
            directory=str(Path.cwd()),
            script=job_script.read_bytes() if job_script else None,
            name=fit_name(name or os.environ.get("DM_STAGE") or Path(job_script or command[0]).name),
            queue=queue,
            walltime=walltime or 0,
            memory=memory or 0,
            slots=slots,
            native=native,
            environment=environment,
            parallel_environment=pe,
            memory_resource=memory_resource,
        )
        _check(chosen, request)
        state = State(directory.resolve(), _key(request, attach_key))
        run = follow.BatchRun(chosen, request, state, patience, accounting)
        outcome = run.run()
        _deliver(outcome, run.files.directory / script.OUTPUT)
        run.forget()
    except BatchError as error:
        follow.tell(str(error))
        sys.exit(error.status)
    except OSError as error:
        follow.tell(f"{error.strerror}: {error.filename}.")
        sys.exit(1)
    if outcome.reason:
        follow.tell(outcome.reason)
    sys.exit(outcome.status)


def _made(name: str) -> Scheduler:
    if name == "sge":
        from dm.station.processing.batch.sge import GridEngine

        return GridEngine()
    from dm.station.processing.batch.slurm import Slurm

    return Slurm()


def _check(scheduler: Scheduler, request: Request) -> None:
    """Refuse what would be something else than one job that is waited for here."""
    lines = script.directives(request.script, scheduler.prefix)
    given = [word for line in lines for word in line.split()[1:]] + [*request.native]
    for word in given:
        if scheduler.forbidden.match(word):
            raise click.UsageError(f"{word} cannot be used: this command submits one job and waits for it by itself.")


def _key(request: Request, attach_key: str) -> str:
    """Return the file name under which a later run finds this request."""
    of_stage = os.environ.get(ATTACH_KEY, "")
    if not of_stage and not attach_key:
        return f"once-{secrets.token_hex(8)}"  # the same command by hand is another job
    which = f"key {attach_key}" if attach_key else f"command {request.fingerprint()}"
    return hashlib.sha256(f"{of_stage}\0{which}".encode(errors="surrogateescape")).hexdigest()[:32]


def _deliver(outcome: Outcome, of_job: Path) -> None:
    """Write the structured output, durably, with what the job itself wrote."""
    target = os.environ.get(OUTPUT_FILE)
    if not target:
        return
    written = b""
    with contextlib.suppress(FileNotFoundError):
        written = of_job.read_bytes()
    try:
        members = json.loads(written) if written.strip() else {}
    except ValueError:
        members = None
    if isinstance(members, dict):
        written = json.dumps(members | outcome.values()).encode()
    with Path(target).open("wb") as stream:  # what is no object goes on as it is: the engine says what is wrong
        stream.write(written)
        stream.flush()
        os.fsync(stream.fileno())


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    main()
