"""What ``dm-batch-run`` reads and writes, without a scheduler."""

from __future__ import annotations

import subprocess

import pytest

from dm.station.processing.batch import outcome, script, sge, slurm
from dm.station.processing.batch.outcome import End, Record, judged
from dm.station.processing.batch.request import Request, fit_name, job_environment, seconds, size
from dm.station.processing.batch.schedulers import number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2D", 172800), ("01:30:00", 5400), ("1:30", 5400),
        ("2-12:00:00", 216000),
    ],
)  # fmt: skip
def test_times(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "1h 30m", "-5", "1.5h", "h", "1:2:3", "ten"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500M", 500 << 20), ("4g", 4 << 30), ("4GB", 4 << 30), ("1.5GiB", 3 << 29), ("2000000", 2000000)],
)
def test_sizes(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "4", "0G", "-1G", "4X", "G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="amount of memory"):
        size(text)


def test_names_are_made_fit() -> None:
    assert [fit_name(name) for name in ("A001", "xpcs A001/2", "1st", "", "é", "a" * 100)] == [
        "A001", "xpcs_A001_2", "j1st", "j", "j_", "a" * 60,
    ]  # fmt: skip


def test_what_a_job_is_told() -> None:
    environment = {
        "DM_JOB_ID": "1",
        "DM_STAGE": "s",
        "DM_PROCESSING_KEY": "k",
        "DM_OUTPUT_FILE": "f",
        "A": "a",
        "B": "b",
    }
    assert job_environment(["A"], environment) == {"A": "a", "DM_JOB_ID": "1", "DM_STAGE": "s"}
    for name in ("C", "A B", "A=1"):
        with pytest.raises(ValueError, match=r"not set|no name"):
            job_environment([name], environment)


@pytest.mark.parametrize("value", ["", "a", "a b", "'", "\n#$ -t 1\r\n", '$x `y` \\ "', "\udcff", "-n", "'\n'\r'"])
def test_a_word_is_that_word_in_a_shell(value: str) -> None:
    word = script.quoted(value)
    assert "\n" not in word and "\r" not in word
    text = f"NL='\n'\nCR=$(printf '\\015')\nprintf %s {word}".encode(errors="surrogateescape")
    assert subprocess.run(["/bin/sh"], input=text, capture_output=True, check=True).stdout == value.encode(
        errors="surrogateescape"
    )


def test_directives_are_those_of_the_users_script_alone() -> None:
    own = b"#!/bin/bash\n#$ -l h_rt=5\r\n#SBATCH --time=5\n#$no\necho '#$ -x'\n"
    request = Request(["a\n#$ -l evil"], "/tmp\n#$ -l evil", script=own, environment={"A": "\n#$ -l evil"})
    lines = script.job_script(request, "/d\n#$ -l evil", "#$").decode().splitlines()
    assert [line for line in lines if line.startswith("#")] == ["#!/bin/sh", "#$ -l h_rt=5"]
    assert script.directives(own, "#SBATCH") == ["#SBATCH --time=5"]


def test_requests_are_told_apart_by_their_words() -> None:
    made = [
        Request(["a", "b"], "/"), Request(["ab"], "/"), Request(["a", "b"], "/x"), Request(["a", "b"], "/", script=b""),
        Request(["a", "b"], "/", script=b"x"),
    ]  # fmt: skip
    assert len({request.fingerprint() for request in made}) == 4  # an empty script is none
    assert Request(["a"], "/", walltime=5).fingerprint() == Request(["a"], "/", queue="q").fingerprint()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3.5MB", 3670016), ("316808K", 316808 * 1024), ("0.009s", 0.009), ("17", 17), ("", 0), ("NONE", 0), ("1.2.3", 0)],
)
def test_amounts(text: str, expected: float) -> None:
    assert number(text) == expected


@pytest.mark.parametrize(
    ("noted", "record", "status", "exit_status", "words"),
    [
        (0, Record(outcome.EXITED, 0), 0, 0, ""),
        (3, Record(outcome.EXITED, 3), 3, 3, ""),
        (99, Record(outcome.EXITED, 1), 99, 99, ""),
        (1, Record(outcome.EXITED, 1, max_memory=95, memory_limit=100), 1, 1, "nearly all memory"),
        (0, Record(outcome.GONE, None, "was lost."), 0, 0, ""),
        (None, Record(outcome.GONE, None, "was lost."), 82, None, "Batch job 7 was lost."),
        (0, Record(outcome.OVER_LIMIT, 0, "was killed."), 83, 0, "Batch job 7 was killed."),
        (None, Record(outcome.OVER_LIMIT, 137, "was killed."), 83, 137, "Batch job 7 was killed."),
        (0, Record(outcome.KILLED, 0, "was deleted."), 84, 0, "Batch job 7 was deleted."),
        (-143, Record(outcome.KILLED, 0, "was deleted."), 84, 143, "Batch job 7 was deleted."),
        (-143, Record(outcome.GONE, 0, "was lost."), 82, 143, "Batch job 7 was lost."),
        (-5, Record(outcome.EXITED, 5), 5, 5, ""),
        (None, Record(outcome.NOT_STARTED, None, "could not."), 81, None, "Batch job 7 could not."),
        (None, Record(outcome.EXITED, 75), 75, 75, ""),
        (None, Record(outcome.EXITED), 82, None, ""),
    ],
)
def test_how_a_job_ended(noted: int | None, record: Record, status: int, exit_status: int | None, words: str) -> None:
    end = None if noted is None else End(abs(noted), noted < 0, 0, 0)  # negative: after a signal
    ended = judged("7", "n.abc", end, record)
    assert (ended.status, ended.exit_status) == (status, exit_status)
    assert words in ended.reason and bool(words) == bool(ended.reason)


@pytest.mark.parametrize(
    ("failed", "status", "kind"),
    [
        ("0", 0, outcome.EXITED), ("0", 139, outcome.EXITED), ("15  : in epilog", 0, outcome.EXITED),
        ("37  : qmaster enforced h_rt, h_cpu, or h_vmem limit", 137, outcome.OVER_LIMIT),
        ("100 : assumedly after job", 137, outcome.KILLED), ("100 : assumedly after job", 152, outcome.OVER_LIMIT),
        ("28  : changing into working directory", 0, outcome.NOT_STARTED),
        ("19  : before writing exit_status", 0, outcome.GONE), ("21  : in recognizing job", 0, outcome.GONE),
    ],
)  # fmt: skip
def test_the_grid_engines_accounting(failed: str, status: int, kind: str) -> None:
    row = {
        "failed": failed, "exit_status": f"{status}     (Killed)", "hostname": "h", "ru_wallclock": "4s", "cpu": "0.5s",
        "maxvmem": "2.000MB", "ru_maxrss": "4.000KB", "category": "-l h_rt=3,h_vmem=100M -pe smp 2", "slots": "2",
    }  # fmt: skip
    record = sge._judged(row)
    assert record is not None
    assert (record.kind, bool(record.reason)) == (kind, kind != outcome.EXITED or status > 128)
    assert (record.max_memory, record.memory_limit) == (4 << 20, 200 << 20)
    assert (record.host, record.wall_seconds) == (("", None) if kind == outcome.NOT_STARTED else ("h", 4))


def test_a_job_that_the_grid_engine_runs_again_has_not_ended() -> None:
    assert sge._judged({"failed": "25  : rescheduling", "exit_status": "0"}) is None


@pytest.mark.parametrize(
    ("state", "code", "kind", "status"),
    [
        ("COMPLETED", "0:0", outcome.EXITED, 0), ("FAILED", "3:0", outcome.EXITED, 3),
        ("FAILED", "0:11", outcome.EXITED, 139),
        ("TIMEOUT", "0:0", outcome.OVER_LIMIT, 0), ("OUT_OF_MEMORY", "0:125", outcome.OVER_LIMIT, 0),
        ("CANCELLED by 0", "0:15", outcome.KILLED, 143), ("FAILED", "0:9", outcome.KILLED, 137),
        ("NODE_FAIL", "0:0", outcome.GONE, 0), ("PREEMPTED", "0:0", outcome.GONE, 0),
    ],
)  # fmt: skip
def test_slurms_accounting(state: str, code: str, kind: str, status: int) -> None:
    row = {
        "State": state,
        "ExitCode": code,
        "ElapsedRaw": "4",
        "TotalCPU": "1-00:01:02.5",
        "NodeList": "n1",
        "ReqMem": "4Gn",
    }
    record = slurm._judged(row, 1 << 20)
    assert (record.kind, record.exit_status, record.host) == (kind, status, "n1")
    assert (record.wall_seconds, record.cpu_seconds, record.memory_limit) == (4, 86462.5, 4 << 30)


def test_slurm_kills_by_what_it_measures() -> None:
    row = {"State": "FAILED", "ExitCode": "0:9", "ReqMem": "50M"}
    assert slurm._judged(row, 60 << 20).kind == outcome.OVER_LIMIT
