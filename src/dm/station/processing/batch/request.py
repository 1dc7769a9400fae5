"""What is asked of the scheduler: the command and what it needs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SPANS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_NAME = 60
_UNTOLD = ("DM_PROCESSING_KEY", "DM_ATTACH_KEY", "DM_OUTPUT_FILE")  # of the stage's process, not of the batch job


@dataclass(frozen=True)
class Request:
    """One batch job to run.

    :param command: program and arguments; those of ``script`` when there is one.
    :param script: the content of a job script of the user's own; its directives are honoured.
    :param name: what lists show; made fit for schedulers by :func:`fit_name`.
    :param walltime: seconds, 0 for the queue's own limit. :param memory: bytes of the whole job, 0 likewise.
    :param slots: processor cores on one host.
    :param native: more arguments of ``qsub`` or ``sbatch``.
    :param environment: variables of the job. :param directory: its working directory.
    :param parallel_environment: :param memory_resource: how the Grid Engine calls several slots on a host, and memory.
    """

    command: Sequence[str]
    directory: str
    script: bytes | None = field(default=None, repr=False)
    name: str = "dm"
    queue: str = ""
    walltime: int = 0
    memory: int = 0
    slots: int = 1
    native: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    parallel_environment: str = "smp"
    memory_resource: str = "h_vmem"

    def fingerprint(self) -> str:
        """Return a file-name-safe text that tells this command from others; what it needs does not count."""
        digest = hashlib.sha256()
        for part in (*(os.fsencode(each) for each in (self.directory, *self.command)), self.script or b""):
            digest.update(b"%d:" % len(part) + part)
        return digest.hexdigest()[:32]


def fit_name(name: str) -> str:
    """Return a name that every scheduler takes and every regular expression finds: letters, digits, ``_.-``."""
    fit = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:_LONGEST_NAME]
    return fit if fit[:1].isalpha() else f"j{fit}"


def seconds(text: str) -> int:
    """Read a time: ``90`` (seconds), ``30m``, ``1h``, ``1h30m``, ``2d``, ``1:30:00``, ``2-12:00:00``.

    :raises ValueError: with a sentence.
    """
    text = text.strip().lower()
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text):
        days, hours, minutes, rest = (int(each or 0) for each in found.groups())
        total = days * 86400 + hours * 3600 + minutes * 60 + rest
    elif re.fullmatch(r"(\d+[smhd])+|\d+", text):
        total = sum(int(number) * _SPANS[unit] for number, unit in re.findall(r"(\d+)([smhd]?)", text))
    else:
        raise ValueError(f"{text!r} is no time; write for example 90m, 1h30m or 01:30:00.")
    if total < 1:
        raise ValueError(f"{text!r} is no time to run in; give at least one second.")
    return total


def size(text: str) -> int:
    """Read an amount of memory: ``500M``, ``4G``, ``4GB``, ``1.5g``.

    :returns: bytes. :raises ValueError: with a sentence.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    total = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if total < 1 << 20:
        raise ValueError(f"{text!r} is no amount of memory; write for example 500M or 4G.")
    return total


def job_environment(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables a job gets: those named, and what the processing service tells of job and stage.

    :raises ValueError: with a sentence; a named variable is not set.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable.")
        if name not in environment:
            raise ValueError(f"The environment variable {name} that the job is to get is not set.")
    told = [name for name in environment if re.fullmatch(r"DM_[A-Z_]+", name) and name not in _UNTOLD]
    return {name: environment[name] for name in sorted({*names, *told})}
