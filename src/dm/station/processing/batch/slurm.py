"""Slurm, by ``sbatch``, ``squeue``, ``sacct`` (where it is not configured ``scontrol``) and ``scancel``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dm.station.processing.batch import outcome
from dm.station.processing.batch.outcome import Record, Refused, Unavailable
from dm.station.processing.batch.request import Request
from dm.station.processing.batch.schedulers import BROKEN, RUNS, WAITS, Listed, number, run, said

_AWAY = re.compile(
    r"unable to (contact|connect)|connection (refused|timed out)|timed out|not responding|zero bytes were transmitted|"
    r"standby mode|authentication error|temporarily unavailable",
    re.I,
)
_FIELDS = (
    "JobID",
    "JobName",
    "State",
    "ExitCode",
    "ElapsedRaw",
    "TotalCPU",
    "MaxRSS",
    "NodeList",
    "ReqMem",
    "Timelimit",
)
_OPEN = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING",
         "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "REQUEUE_FED", "RESV_DEL_HOLD", ""}  # fmt: skip
_LOST = {"NODE_FAIL": "its node failed", "BOOT_FAIL": "its node did not boot", "PREEMPTED": "it was preempted",
         "REVOKED": "it was moved to another cluster"}  # fmt: skip
_KILL = 9


class Slurm:
    """See :class:`~dm.station.processing.batch.schedulers.Scheduler`."""

    name: ClassVar[str] = "slurm"
    title: ClassVar[str] = "Slurm"
    prefix: ClassVar[str] = "#SBATCH"
    forbidden: ClassVar[re.Pattern[str]] = re.compile(
        r"(-a|--array|--wait|-W|--wrap|--parsable|--test-only)([\s=\d]|$)"
    )

    def submit(self, request: Request, name: str, script: Path, keep: int) -> str:
        """See the protocol."""
        command = [
            "sbatch", "--parsable", f"--job-name={name}", "--chdir=/", "--output=/dev/null", "--error=/dev/null",
            "--no-requeue", "--open-mode=append",
        ]  # fmt: skip
        if request.walltime:
            hours, rest = divmod(request.walltime, 3600)
            command.append(f"--time={hours}:{rest // 60:02}:{rest % 60:02}")
        if request.memory:
            command.append(f"--mem={-(-request.memory // 1024)}K")
        if request.slots > 1:
            command += ["--nodes=1", "--ntasks=1", f"--cpus-per-task={request.slots}"]
        if request.queue:
            command.append(f"--partition={request.queue}")
        done = run(*command, *request.native, script, keep=keep)
        found = re.search(r"^(\d+)(;\S*)?\s*$", done.stdout, re.M)
        if done.returncode == 0 and found:
            return found[1]
        if _AWAY.search(done.stderr):
            raise Unavailable(f"sbatch says: {said(done)}")
        raise Refused(f"Slurm does not accept the job: {said(done)}")

    def listing(self) -> dict[str, Listed]:
        """See the protocol."""
        done = run("squeue", "-h", "-u", str(os.geteuid()), "-o", "%A|%T|%r|%j")
        if done.returncode != 0:
            raise Unavailable(f"squeue says: {said(done)}")
        found = {}
        for line in done.stdout.splitlines():
            job, state, reason, name = (*line.split("|", 3), "", "", "", "")[:4]
            stuck = state == "PENDING" and "launch_failed" in reason.lower().replace(" ", "_")
            kind = BROKEN if stuck else WAITS if state == "PENDING" else RUNS
            found[job] = Listed(name, kind)
        return found

    def record(self, job: str, name: str, last: bool) -> Record | None:
        """See the protocol."""
        done = run("sacct", "-n", "-P", "-j", job, "-o", ",".join(_FIELDS))
        rows = [dict(zip(_FIELDS, line.split("|"), strict=False)) for line in done.stdout.splitlines()]
        whole = next((row for row in rows if row.get("JobID") == job), None)
        # What came in before the notice of its start bears another name, and tells nothing of what was asked for.
        if whole and _state(whole) not in _OPEN and (last or whole["JobName"] == name):
            steps = [number(row.get("MaxRSS", "")) for row in rows]
            return _judged(whole, int(max(steps)) or None)
        return self._shown(job, name) if last or done.returncode != 0 else None

    def find(self, name: str) -> str:
        """See the protocol."""
        for command in (["sacct", "-n", "-P", "-X", f"--name={name}", "-o", "JobID"],
                        ["squeue", "-h", "-t", "all", f"--name={name}", "-o", "%A"]):  # fmt: skip
            found = re.search(r"^\d+$", run(*command).stdout, re.M)
            if found:
                return found[0]
        return ""

    def why(self, job: str) -> str:
        """See the protocol."""
        found = re.search(r"\bReason=(\S+)", run("scontrol", "show", "job", "-o", job).stdout)
        return f"Slurm says {found[1]}." if found else ""

    def deletion(self, job: str) -> Sequence[str]:
        """See the protocol."""
        return ("scancel", job)

    def place(self) -> str:
        """See the protocol."""
        return os.environ.get("SLURM_CONF", "")

    def _shown(self, job: str, name: str) -> Record | None:
        """Return what the controller still remembers of an ended job, where there is no accounting."""
        done = run("scontrol", "show", "job", "-o", job)
        if done.returncode != 0:
            if _AWAY.search(done.stderr):
                raise Unavailable(f"scontrol says: {said(done)}")
            return None
        fields = dict(re.findall(r"(\w+)=(\S+)", done.stdout))
        if fields.get("JobName") != name or fields.get("JobState", "") in _OPEN:
            return None
        row = {
            "State": fields["JobState"],
            "ExitCode": fields.get("ExitCode", ""),
            "ElapsedRaw": str(_seconds(fields.get("RunTime", ""))),
            "NodeList": fields.get("BatchHost", fields.get("NodeList", "")),
            "ReqMem": fields.get("MinMemoryNode", ""),
            "Timelimit": fields.get("TimeLimit", ""),
        }
        return _judged(row, None)


def _state(row: dict[str, str]) -> str:
    return row.get("State", "").split(" ")[0].rstrip("+")


def _judged(row: dict[str, str], memory: int | None) -> Record:
    state = _state(row)
    code, _, signal = row.get("ExitCode", "").partition(":")
    killed = int(number(signal))
    status = 128 + killed if killed and killed < 100 else int(number(code))
    limit = number(re.sub(r"[nc]$", "", row.get("ReqMem", "")))
    kind, reason = _kind(state, killed, row)
    if kind == outcome.KILLED and state == "FAILED" and memory and limit and memory >= limit:
        kind, reason = outcome.OVER_LIMIT, f"was killed as it used more memory than it asked for ({row['ReqMem']})."
    nodes = row.get("NodeList", "")
    return Record(
        kind,
        None if kind == outcome.NOT_STARTED else status,
        reason,
        "" if nodes.startswith("None") or nodes == "(null)" else nodes,
        number(row.get("ElapsedRaw", "")),
        _seconds(row["TotalCPU"]) if row.get("TotalCPU") else None,
        memory,
        int(limit) or None,
    )


def _kind(state: str, killed: int, row: dict[str, str]) -> tuple[str, str]:
    if state in ("TIMEOUT", "DEADLINE"):
        return outcome.OVER_LIMIT, f"was killed as it ran longer than its limit ({row.get('Timelimit', '')})."
    if state == "OUT_OF_MEMORY":
        return outcome.OVER_LIMIT, f"was killed as it used more memory than it asked for ({row.get('ReqMem', '')})."
    if state == "CANCELLED":
        return outcome.KILLED, "was cancelled with scancel."
    if state in _LOST:
        return outcome.GONE, f"was lost: {_LOST[state]}."
    if killed == _KILL:
        return outcome.KILLED, f"was ended by signal {killed}: killed on its host."
    return outcome.EXITED, f"was ended by signal {killed}." if killed else ""


def _seconds(text: str) -> float:
    """Read ``[[days-]hours:]minutes:seconds[.fraction]``."""
    days, _, rest = text.rpartition("-")
    total = 0.0
    for part in rest.split(":"):
        total = total * 60 + number(part)
    return number(days) * 86400 + total
