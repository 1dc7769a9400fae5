r"""The shell script that is submitted: the command with every value quoted, and notes of its begin and end.

The job notes its begin by making a directory, so one request never runs twice, however often it was submitted; its
output goes to files in the request's own directory, and at the end its exit status and the sizes of these. All of that
lies on a file system that the execution hosts share with this one.

No value begins a line or carries a carriage return, so no scheduler finds directives or other line ends in it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from dm.station.processing.batch.request import Request

BEGIN, END, CANCELLED, OUTPUT = "begin", "end", "cancelled", "output.json"
STDOUT, STDERR, SCRIPT = "stdout", "stderr", "script"
NOT_RUN = 75  # exit status of a job that was not to run any more

_HEAD = """NL='
'
CR=$(printf '\\015')
d={directory}
id=${{JOB_ID:-${{SLURM_JOB_ID:-0}}}}
[ -d "$d" ] && [ ! -e "$d/{CANCELLED}" ] || exit {NOT_RUN}
mkdir "$d/{BEGIN}" 2>/dev/null || [ -e "$d/{BEGIN}/$id" ] || exit {NOT_RUN}
uname -n >"$d/{BEGIN}/$id"
umask {mask:04o}
signalled=0
trap signalled=1 HUP INT TERM USR1 USR2 XCPU
exec >>"$d/{STDOUT}" 2>>"$d/{STDERR}" </dev/null
"""
_TAIL = """status=$?
printf '%d %d %d %d\\n' $status $signalled $(wc -c <"$d/{STDOUT}") $(wc -c <"$d/{STDERR}") >"$d/{END}.new" && \
mv "$d/{END}.new" "$d/{END}"
case $status in 99|100) exit 1 ;; esac
exit $status
"""


def quoted(value: str) -> str:
    """Return a shell word for a value; line ends in it are written as variables."""
    word = shlex.quote(value)
    return word.replace("\n", "'\"$NL\"'").replace("\r", "'\"$CR\"'")


def job_script(request: Request, directory: str, prefix: str) -> bytes:
    """Return the script to submit.

    :param directory: of this request, on the shared file system. :param prefix: how directives begin.
    """
    names = {name: globals()[name] for name in ("CANCELLED", "NOT_RUN", "BEGIN", "STDOUT", "STDERR", "END")}
    mask = os.umask(0o077)
    os.umask(mask)
    lines = [f"export {name}={quoted(value)}\n" for name, value in request.environment.items()]
    lines.append(f'export DM_OUTPUT_FILE="$d/{OUTPUT}"\n')
    where = quoted(request.directory)
    lines.append(
        f'cd -- {where} || {{ echo "dm-batch-run: this host has no directory "{where} >&2; exit {NOT_RUN}; }}\n'
    )
    program: list[str] = []
    if request.script is not None:
        program = [*_interpreter(request.script), f"{directory}/{SCRIPT}"]
    words = " ".join(quoted(word) for word in (*program, *request.command))
    lines.append(f"(exec {words})\n")  # a program, never a word of the shell's own such as exit
    parts = [
        "#!/bin/sh\n",
        *(f"{line}\n" for line in directives(request.script, prefix)),
        _HEAD.format(directory=quoted(directory), mask=mask, **names),
        *lines,
        _TAIL.format(**names),
    ]
    return b"".join(os.fsencode(part) for part in parts)


def directives(script: bytes | None, prefix: str) -> list[str]:
    """Return the lines of a user's job script that are meant for the scheduler."""
    lines = os.fsdecode(script or b"").split("\n")
    return [line.rstrip() for line in lines if re.match(rf"{re.escape(prefix)}\s", line)]


def _interpreter(script: bytes) -> Sequence[str]:
    first = os.fsdecode(script.split(b"\n", 1)[0]).rstrip("\r")
    if not first.startswith("#!") or not first[2:].strip():
        return ["/bin/sh"]
    return first[2:].strip().split(None, 1)  # an interpreter and at most one argument, as the kernel reads it
