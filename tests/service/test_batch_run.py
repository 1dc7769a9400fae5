"""``dm-batch-run`` on a real Grid Engine and a real Slurm: how a batch job ends is how the command ends."""

from __future__ import annotations

import json
import os
import shutil
import signal

import psutil
import pytest

from tests.service.batch_runs import Runs, all_runs, batch_program, runs, sge, slurm, until

__all__ = ["all_runs", "batch_program", "runs", "sge", "slurm"]

HOSTILE = [
    "a\n#$ -l h_rt=1\n#SBATCH --time=1\n", "\r\n", "'\"`$(touch canary)`", "$HOME %j ${X}", "; touch canary #", "",
    "--x", "a\tb  c*", "\udcff\udcfe", "\N{GREEK SMALL LETTER MU}", "\\n\\", "!!", "&& touch canary", "| touch canary",
]  # fmt: skip


def test_each_end_is_told(all_runs: Runs) -> None:
    """Several at once: done, failed, over its memory, deleted while it ran and before, refused, broken."""
    runs = all_runs
    hold = "-h" if runs.scheduler == "sge" else "--hold"
    broken = ["--native=-S", "--native=/no/such/shell"] if runs.scheduler == "sge" else ["--native=--nosuch"]
    started = {
        "done": runs.start("--name", "te st/1", "--", "sh", "-c", "echo out; echo err >&2; cat"),
        "failed": runs.start("--", "sh", "-c", 'echo \'{"a": 1, "jobId": 5}\' >"$DM_OUTPUT_FILE"; exit 3'),
        "signal": runs.start("--", "sh", "-c", "kill -11 $$"),
        "ninety-nine": runs.start("--", "sh", "-c", "echo once >>count; exit 99"),
        "deleted": runs.start("--slots", "2", "--", "sleep", "100"),
        "waiting": runs.start(f"--native={hold}", "--accounting", "2s", "--", "touch", "canary"),
        "refused": runs.start("--queue", "no-such-queue", "--", "touch", "canary"),
        "unseen": runs.start(f"--native={hold}", "--", "touch", "canary"),
        "broken": runs.start(*broken, "--", "touch", "canary"),
        "unknown": runs.start("--", "/no/such/program"),
        "memory": runs.start("--memory", "150M", "--", "sh", "-c", f"{_HUNGRY} & {_HUNGRY} & {_HUNGRY} & wait"),
    }
    for name in ("deleted", "waiting"):
        job = started[name].job()
        if name == "deleted":
            until(lambda: any(runs.directory.glob(f".dm-batch/*/sleep.*/begin/{job}")), "it does not begin")  # noqa: B023
        runs.delete(job)
    job = started["unseen"].job()
    for place in runs.directory.glob(".dm-batch/*/touch.*"):
        if json.loads((place.parent / "job.json").read_text())["job"] == job:
            shutil.rmtree(place)
    runs.release(job)
    ended = {name: run.ended() for name, run in started.items()}

    done = ended["done"]
    assert (done.status, done.printed, done.stderr) == (0, "out\n", "err\n")
    assert done.stdout.splitlines()[1].startswith("Job name: te_st_1.")
    assert done.values["jobId"] == done.job
    assert (done.values["exitStatus"], done.values["outcome"], done.values["reason"]) == (0, "exited", None)
    assert done.values["host"]
    assert done.values["wallSeconds"] is not None
    failed = ended["failed"]
    assert (failed.status, failed.stderr) == (3, "")
    assert (failed.values["a"], failed.values["jobId"], failed.values["exitStatus"]) == (1, failed.job, 3)
    assert ended["signal"].status == 128 + 11
    assert ended["ninety-nine"].status == 99, "the Grid Engine runs what ends with 99 again, unless it is told another"
    assert (runs.directory / "count").read_text() == "once\n"
    deleted = ended["deleted"]
    assert (deleted.status, deleted.values["outcome"]) == (84, "deleted")
    assert f"dm-batch-run: Batch job {deleted.job} was " in deleted.said
    waiting = ended["waiting"]
    assert (waiting.status, waiting.values["outcome"]) == (84, "deleted")
    for name in ("refused", "broken", "unseen"):
        assert ended[name].status == 81, ended[name]
        assert ended[name].said.count("\n") == 1
    assert "no-such-queue" in ended["refused"].said or "partition" in ended["refused"].said
    assert "does not see" in ended["unseen"].said
    assert ended["unknown"].status == 127
    memory = ended["memory"]
    assert (memory.status, memory.values["outcome"]) == (83, "limit"), memory
    assert "memory" in memory.values["reason"]
    assert memory.values["maxMemory"] > 150 << 20
    assert not (runs.directory / "canary").exists()
    assert runs.left() == []
    assert runs.cluster.jobs() == []


_HUNGRY = "python3 -c 'b = bytearray(70 << 20); import time; time.sleep(60)'"


def test_names_and_values_are_data(runs: Runs) -> None:
    """Also those of the working directory, of the job and of the environment."""
    directory = runs.directory / "a'\n#$ -t 1-9\n#SBATCH -a 1-9\r$USER,b:c %x"
    directory.mkdir()
    directory.chmod(0o777)
    show = 'pwd; printf "%s\\0" "$@" "$VALUE" >arguments'
    done = runs.run(
        "--name", HOSTILE[2], "--env", "VALUE", "--", "sh", "-c", show, *HOSTILE,
        cwd=directory, environment={"VALUE": HOSTILE[0] + HOSTILE[2], "DM_STAGE": "a'b"},
    )  # fmt: skip
    assert done.status == 0, done
    assert done.printed == f"{directory}\n"
    told = os.fsdecode((directory / "arguments").read_bytes()).split("\0")
    assert told == [*HOSTILE[1:], HOSTILE[0] + HOSTILE[2], ""]  # the first is the shell's $0
    assert sorted(os.listdir(directory)) == ["arguments"]
    assert not (runs.directory / "canary").exists()


@pytest.mark.long  # make test has it through a stage
def test_a_run_that_was_killed_is_taken_up_by_the_next(runs: Runs) -> None:
    environment = {"DM_ATTACH_KEY": "job.1.0.0"}
    command = ["--", "sh", "-c", "echo begin; while [ ! -e go ]; do sleep 0.1; done; echo ran >>count; exit 4"]
    first = runs.start(*command, environment=environment)
    job = first.job()
    until(lambda: "begin" in first.text("out"), "its output does not come")
    first.process.kill()
    first.process.wait()
    other = runs.start("--", "true", environment=environment)  # another command of the same stage is another job
    second = runs.start(*command, environment=environment)
    assert second.job() == job
    third = runs.start(*command, environment={"DM_ATTACH_KEY": "job.1.0.1"})
    assert third.job() != job
    (runs.directory / "go").touch()
    ended = second.ended()
    assert (ended.status, ended.printed) == (4, "begin\n")
    assert ended.said == f"dm-batch-run: Following batch job {job}, which an earlier run submitted.\n"
    assert (third.ended().status, other.ended().status) == (4, 0)
    assert (runs.directory / "count").read_text() == "ran\nran\n"
    again = runs.run(*command, environment=environment)  # its outcome has been told: this is another attempt
    assert (again.status, again.job != job) == (4, True)


@pytest.mark.long  # make test has it through a stage
def test_sigterm_deletes_the_job(runs: Runs) -> None:
    """Also for a run that only took it up; and what was deleted is not taken up later."""
    environment = {"DM_ATTACH_KEY": "job.2.0.0"}
    command = ["--", "sh", "-c", "echo $$ >>pids; sleep 60; touch canary"]
    run = runs.start(*command, environment=environment)
    job = run.job()
    until((runs.directory / "pids").exists, "it does not begin")
    run.process.send_signal(signal.SIGTERM)
    ended = run.ended()
    assert (ended.status, ended.job) == (143, job)
    assert "SIGTERM" in ended.said
    until(lambda: job not in runs.cluster.jobs(), "the job is still there")
    pid = int((runs.directory / "pids").read_text())
    until(lambda: not _lives(pid), "its process goes on")
    run = runs.start(*command, environment=environment)
    assert run.job() != job
    run.process.send_signal(signal.SIGTERM)
    assert run.ended().status == 143
    assert runs.left() == []


@pytest.mark.long
def test_a_silent_scheduler_is_waited_for(runs: Runs) -> None:
    """A job that runs meanwhile is not lost, and one submitted meanwhile is accepted afterwards."""
    running = runs.start("--", "sh", "-c", "echo begin; while [ ! -e go ]; do sleep 0.1; done; exit 5")
    until(lambda: "begin" in running.text("out"), "its output does not come")
    stop, start = _control(runs)
    stop(signal.SIGKILL if runs.scheduler == "sge" else signal.SIGTERM)  # killed, a Slurm forgets its last seconds
    late = runs.start("--", "sh", "-c", "exit 6")
    given_up = runs.start("--patience", "1s", "--", "touch", "canary")
    assert given_up.ended().status == 85
    assert given_up.path("err").read_text().count("\n") == 2
    (runs.directory / "go").touch()
    until(lambda: "Trying again" in late.text("err"), "the outage is not noticed")
    start()
    assert running.ended().status == 5
    assert late.ended().status == 6
    assert not (runs.directory / "canary").exists()
    assert runs.left() == []


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # whoever has it as a child now may not collect it
    except psutil.NoSuchProcess:
        return False


def _control(runs: Runs) -> tuple:
    if runs.scheduler == "sge":
        return runs.cluster.stop_qmaster, runs.cluster.start_qmaster
    return runs.cluster.stop_controller, runs.cluster.start_controller
