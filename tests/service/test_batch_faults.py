"""What goes wrong around batch jobs: kill -9 at any moment, many at once, hosts that lose jobs, no accounting."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.service.batch_runs import Runs, all_runs, batch_program, make_runs, runs, sge, slurm, until
from tests.service.slurm_server import SlurmCluster, small_slurm

__all__ = ["all_runs", "batch_program", "runs", "sge", "slurm", "small_slurm"]

SEED = random.randrange(1 << 30)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_killed_at_any_moment_a_request_runs_once(all_runs: Runs) -> None:
    """kill -9 between nothing and the end, then again until one gets through."""
    runs, chance = all_runs, random.Random(SEED)
    for number in range(12):
        environment, ran = {"DM_ATTACH_KEY": f"job.{number}"}, runs.directory / f"ran.{number}"
        command = ["--", "sh", "-c", f"echo ran >>{ran}; exit 7"]
        run = runs.start(*command, environment=environment)
        for _ in range(chance.randrange(1, 4)):
            time.sleep(chance.uniform(0.1, 1.2))
            run.process.kill()
            if run.process.wait() == 7 or (ran.exists() and not runs.left()):
                break  # its outcome has been told; the next would be another attempt
            run = runs.start(*command, environment=environment)
        assert run.process.wait() in (7, -signal.SIGKILL), (SEED, number, run.ended())
        assert ran.read_text() == "ran\n", (SEED, number, run.ended())
    assert runs.left() == []


@pytest.mark.long
def test_killed_while_the_job_is_submitted(all_runs: Runs) -> None:
    """The submitting command goes on by itself; who comes next waits for it and takes up its job."""
    runs = all_runs
    name = "qsub" if runs.scheduler == "sge" else "sbatch"
    path = _instead(runs, name, 'sleep 2; exec {program} "$@"')
    environment = {"DM_ATTACH_KEY": "job", "PATH": path}
    command = ["--", "sh", "-c", "echo ran >>ran"]
    first = runs.start(*command, environment=environment)
    until(lambda: _began(runs, name) == 1, "nothing is submitted")
    first.process.kill()
    first.process.wait()
    assert runs.run(*command, environment=environment).status == 0
    assert (runs.directory / "ran").read_text() == "ran\n"
    assert _began(runs, name) == 1


@pytest.mark.long
def test_an_answer_to_a_submission_that_was_lost(all_runs: Runs) -> None:
    """The job was accepted, and the submitting command says that the scheduler is away: no second job."""
    runs = all_runs
    name = "qsub" if runs.scheduler == "sge" else "sbatch"
    path = _instead(runs, name, '{program} "$@" >/dev/null; echo unable to contact the scheduler >&2; exit 1')
    done = runs.run("--", "sh", "-c", "echo ran >>ran; exit 8", environment={"PATH": path})
    assert done.status == 8
    assert (runs.directory / "ran").read_text() == "ran\n"
    assert _began(runs, name) == 1


@pytest.mark.long
def test_thirty_at_once_ask_no_more_than_one(all_runs: Runs) -> None:
    runs = all_runs
    name = "qstat" if runs.scheduler == "sge" else "squeue"
    path = _instead(runs, name, 'exec {program} "$@"')
    began, environment = time.monotonic(), {"PATH": path}
    started = [runs.start("--", "sh", "-c", f"sleep 4; echo {n}; exit {n}", environment=environment) for n in range(30)]
    for number, run in enumerate(started):
        ended = run.ended()
        assert (ended.status, ended.printed) == (number, f"{number}\n")
    looks = _began(runs, name)
    assert looks <= 5 + (time.monotonic() - began), f"{looks} times in {time.monotonic() - began:.1f} s"
    assert runs.left() == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_job_that_runs_too_long(all_runs: Runs) -> None:
    runs = all_runs
    done = runs.run("--walltime", "3s", "--", "sh", "-c", "echo begin; sleep 200; touch canary")
    assert (done.status, done.printed, done.values["outcome"]) == (83, "begin\n", "limit")
    assert "limit" in done.said and done.said.count("\n") == 1
    assert done.values["wallSeconds"] >= 3
    assert not (runs.directory / "canary").exists()


@pytest.mark.long
def test_a_host_that_loses_its_job(all_runs: Runs) -> None:
    """The Grid Engine's own process beside the job is killed; Slurm takes the node down."""
    runs = all_runs
    run = runs.start("--accounting", "10s", "--", "sh", "-c", "echo $$; exec sleep 300")
    run.job()
    until(lambda: run.text("out").count("\n") == 3, "it does not begin")
    pid = int(run.text("out").split("\n")[2])
    if isinstance(runs.cluster, SlurmCluster):
        runs.cluster.node("DOWN")
    else:
        keeper = next(each for each in psutil.Process(pid).parents() if each.name().startswith("sge_shepherd"))
        for process in (keeper, *keeper.children(recursive=True)):
            process.kill()
    ended = run.ended()
    if isinstance(runs.cluster, SlurmCluster):
        runs.cluster.node("RESUME")
        assert (ended.status, ended.values["outcome"]) == (82, "lost"), ended
        assert "its node failed" in ended.said
    assert ended.status in (82, 84), ended
    assert ended.values["outcome"] in ("lost", "deleted")
    assert ended.said.count("\n") == 1
    assert runs.left() == []


@pytest.mark.long
def test_a_scheduler_whose_accounting_cannot_be_read(runs: Runs) -> None:
    """Its own note of its end is taken, and that is said."""
    name = "qacct" if runs.scheduler == "sge" else "sacct"
    path = _instead(runs, name, "echo no accounting here >&2; exit 1")
    if runs.scheduler == "slurm":
        path = _instead(runs, "scontrol", "echo nothing here either >&2; exit 1")
    done = runs.run("--accounting", "2s", "--", "sh", "-c", "echo out; exit 9", environment={"PATH": path})
    assert (done.status, done.printed, done.values["exitStatus"], done.values["host"]) == (9, "out\n", 9, None)
    assert "its own exit status is taken" in done.said


@pytest.mark.long
def test_a_slurm_without_accounting(small_slurm: SlurmCluster, batch_program: Path, open_directory: Path) -> None:
    """``sacct`` tells nothing; the controller itself still remembers."""
    with contextlib.closing(make_runs(small_slurm, "slurm", batch_program, open_directory)) as made:
        runs = next(made)
        greedy = "b = bytearray(200 << 20); import time; time.sleep(60)"
        started = [
            runs.start("--", "sh", "-c", "echo out; exit 3"),
            runs.start("--", "sleep", "100"),
            runs.start("--memory", "50M", "--", "python3", "-c", greedy),
        ]
        runs.delete(started[1].job())
        failed, deleted, memory = [run.ended() for run in started]
        assert (failed.status, failed.printed, failed.stderr) == (3, "out\n", "")
        assert failed.values["host"]
        assert (deleted.status, deleted.values["outcome"]) == (84, "deleted")
        assert memory.status in (83, 84)
        assert runs.left() == []


def _instead(runs: Runs, name: str, text: str) -> str:
    """Put a shell script before one of the scheduler's commands, which counts its calls; return the PATH."""
    program = runs.cluster.run("sh", "-c", f"command -v {name}").stdout.strip()
    place = runs.directory / "bin"
    place.mkdir(exist_ok=True)
    calls = runs.directory / f"{name}.calls"
    (place / name).write_text(f"#!/bin/sh\necho >>{calls}\n{text.format(program=program)}\n")
    (place / name).chmod(0o755)
    return f"{place}{os.pathsep}{os.environ['PATH']}"


def _began(runs: Runs, name: str) -> int:
    calls = runs.directory / f"{name}.calls"
    return calls.read_text().count("\n") if calls.exists() else 0
