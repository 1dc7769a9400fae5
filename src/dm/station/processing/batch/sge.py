"""The Grid Engine, by ``qsub``, ``qstat``, ``qacct`` and ``qdel``."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dm.station.processing.batch import outcome
from dm.station.processing.batch.outcome import Record, Refused, Unavailable
from dm.station.processing.batch.request import Request
from dm.station.processing.batch.schedulers import BROKEN, RUNS, WAITS, Listed, number, run, said

_ACCOUNTING_SECONDS = 300.0  # qacct reads the whole accounting file, of years sometimes
_AWAY = re.compile(r"unable to (contact|send message|connect)|commlib|communication|got no|timeout|timed out", re.I)
_AFTER_KILL, _OVER_LIMIT, _AGAIN = 100, 37, (24, 25)  # values of "failed" in the accounting
_BEFORE = {1, 3, 4, 6, 7, 8, 9, 10, 11, 26, 27, 28, 29, 31, 32, 33, 34, 35}
_RAN = {12, 13, 14, 15, 16, 17, 30}


class GridEngine:
    """See :class:`~dm.station.processing.batch.schedulers.Scheduler`."""

    name: ClassVar[str] = "sge"
    title: ClassVar[str] = "Grid Engine"
    prefix: ClassVar[str] = "#$"
    forbidden: ClassVar[re.Pattern[str]] = re.compile(r"-(t|sync|now|terse|b|@)(\s|$)")

    def submit(self, request: Request, name: str, script: Path, keep: int) -> str:
        """See the protocol."""
        command = ["qsub", "-terse", "-N", name, "-wd", "/", "-o", "/dev/null", "-e", "/dev/null", "-S", "/bin/sh"]
        command += ["-r", "n", "-b", "n", "-sync", "n"]
        resources = []
        if request.walltime:
            resources.append(f"h_rt={request.walltime}")
        if request.memory:
            resources.append(f"{request.memory_resource}={-(-request.memory // request.slots)}")  # it counts per slot
        if resources:
            command += ["-l", ",".join(resources)]
        if request.slots > 1:
            command += ["-pe", request.parallel_environment, str(request.slots)]
        if request.queue:
            command += ["-q", request.queue]
        done = run(*command, *request.native, script, keep=keep)
        found = re.search(r"^(\d+)\s*$", done.stdout, re.M)
        if done.returncode == 0 and found:
            return found[1]
        if _AWAY.search(done.stderr):
            raise Unavailable(f"qsub says: {said(done)}")
        raise Refused(f"The Grid Engine does not accept the job: {said(done)}")

    def listing(self) -> dict[str, Listed]:
        """See the protocol."""
        done = run("qstat", "-xml")
        if done.returncode != 0:
            raise Unavailable(f"qstat says: {said(done)}")
        try:
            root = ET.fromstring(done.stdout)  # noqa: S314 - the scheduler's own
        except ET.ParseError as error:
            raise Unavailable(f"qstat shows what is no XML: {error}.") from None
        found = {}
        for job in root.iter("job_list"):
            state = job.findtext("state", "")
            kind = BROKEN if "E" in state else WAITS if "q" in state else RUNS
            found[job.findtext("JB_job_number", "")] = Listed(job.findtext("JB_name", ""), kind)
        return found

    def record(self, job: str, name: str, last: bool) -> Record | None:
        """See the protocol."""
        return _judged(rows[-1]) if (rows := self._rows(job, name)) else None

    def find(self, name: str) -> str:
        """See the protocol."""
        rows = self._rows(name, name)
        return rows[-1]["jobnumber"] if rows else ""

    def why(self, job: str) -> str:
        """See the protocol."""
        lines = run("qstat", "-j", job).stdout.splitlines()
        reasons = [line.split(":", 1)[1] for line in lines if line.startswith("error reason")]
        return " ".join(re.sub(r"^.*?\]:", "", reason).strip() for reason in reasons)

    def deletion(self, job: str) -> Sequence[str]:
        """See the protocol."""
        return ("qdel", job)

    def place(self) -> str:
        """See the protocol."""
        return "|".join(os.environ.get(f"SGE_{name}", "") for name in ("ROOT", "CELL", "QMASTER_PORT"))

    def _rows(self, wanted: str, name: str) -> list[dict[str, str]]:
        """Return the accounting's records by their labels; job numbers begin anew some day, names do not."""
        done = run("qacct", "-j", wanted, seconds=_ACCOUNTING_SECONDS)
        if done.returncode != 0 and not re.search(r"not found|no jobs running", done.stderr + done.stdout):
            raise Unavailable(f"qacct says: {said(done)}")
        rows = []
        for part in re.split(r"^=+\s*$", done.stdout, flags=re.M)[1:]:
            pairs = [line.split(None, 1) for line in part.splitlines()]
            row = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
            if row.get("jobname") == name:
                rows.append(row)
        return rows


def _judged(row: dict[str, str]) -> Record | None:
    code = int(number(row.get("failed", "0").split(":")[0]))
    text = row.get("failed", "").partition(":")[2].strip()
    if code in _AGAIN:
        return None
    status = int(number(row.get("exit_status", "0").split("(")[0]))
    kind, reason = _kind(code, text, status, row.get("category", ""))
    limit = re.search(r"\b[hs]_vmem=(\S+?)(?:,|\s|$)", row.get("category", ""))
    slots = int(number(row.get("slots", "1"))) or 1
    memory = max(number(row.get("maxvmem", "")), number(row.get("ru_maxrss", "")) * 1024)  # the latter in KiB
    started = kind != outcome.NOT_STARTED
    return Record(
        kind,
        status if started else None,
        reason,
        row.get("hostname", "") if started else "",
        number(row.get("ru_wallclock", "")) if started else None,
        number(row.get("cpu", "")) if started else None,
        int(memory) or None,
        int(number(limit[1].upper()) * slots) if limit else None,
    )


def _kind(code: int, text: str, status: int, category: str) -> tuple[str, str]:
    if code == 0 or code in _RAN:
        return outcome.EXITED, "" if status <= 128 else f"was ended by signal {status - 128}."
    if code == _OVER_LIMIT or (code == _AFTER_KILL and status in (128 + 24, 128 + 30, 128 + 10)):
        asked = re.search(r"-l (\S+)", category)
        limits = asked[1] if asked else "of its queue"
        return outcome.OVER_LIMIT, f"was killed as it went over its limit of time or memory ({limits})."
    if code == _AFTER_KILL:
        return outcome.KILLED, f"was ended by signal {status - 128}: deleted with qdel, or killed on its host."
    if code in _BEFORE:
        return outcome.NOT_STARTED, f"could not be started: the Grid Engine failed {text}."
    return outcome.GONE, f"was lost by its host: the Grid Engine says {text!r}."
