"""Options that ``dm-start-daq`` and ``dm-upload`` share: every published key of 6.1 as a flag."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from dm.common.command import option
from dm.common.errors import ProcessingError
from dm.common.records import DmObject
from dm.station.acquisition.api import DaqInfo

F = TypeVar("F", bound=Callable[..., Any])
_HOURS = {"w": 168.0, "d": 24.0, "h": 1.0, "m": 1 / 60, "s": 1 / 3600}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[wdhms])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([wdhms])")

_TEXTS = {
    "--dest-directory": "Sub-folder of the experiment to put the files in.",
    "--target-directory": "Older name of --dest-directory.",
    "--file-path-pattern": "Only files that match one of these shell wildcards (comma list).",
    "--skip-file-path-pattern": "No files that match one of these shell wildcards (comma list).",
    "--include-file-extensions": "Only files with these extensions (comma list, without dots).",
    "--exclude-file-extensions": "No files with these extensions (comma list, without dots).",
    "--workflow-name": "Start a job of this workflow for every file.",
    "--workflow-owner": "Owner of the workflow.",
    "--workflow-job-owner": "Owner of the jobs; default: you.",
    "--skip-plugins": "Processing plugins to leave out (comma list; see dm-list-processing-plugins).",
}
_FLAGS = {
    "--use-analysis-directory-as-root": "Put the files below analysis/ instead of data/.",
    "--process-hidden-files": "Take files below names that start with a dot, too.",
    "--remove-source-files": "Remove each source file after it is stored and verified.",
    "--skip-transfer": "Catalog and process only; the files are in storage already.",
    "--skip-checksum": "Record no MD5 sums (transfers are verified all the same).",
    "--skip-catalog": "Do not catalog the files.",
}


def task_options(function: F) -> F:
    """Add the shared options; the function gets them all in ``flags`` order, to be given to :func:`task_info`."""
    decorators: list[Callable[[F], F]] = [
        option("--experiment", required=True, help="Experiment name."),
        option("--data-directory", required=True, help="Directory: absolute path, @host:/path, or URL."),
    ]
    decorators += [option(name, help=text) for name, text in _TEXTS.items()]
    decorators += [option(name, is_flag=True, default=None, help=text) for name, text in _FLAGS.items()]
    decorators += [
        option("--reprocess", "--reprocess-files", "reprocess_files", is_flag=True, default=None,
               help="Take files again that were taken before."),
        option("--workflow-args", multiple=True, metavar="KEY:VALUE...",
               help="Arguments of the jobs; several in one text or several times."),
        option("--completion-rule", metavar="RULE",
               help="When a file is whole: closed, stable, marker, renamed, hdf5 or message; a+b: both, a,b: either."),
        option("--completion-args", multiple=True, metavar="KEY:VALUE...",
               help="Settings of that rule, e.g. marker:{stem}.done; several in one text or several times."),
        option("--processing-mode", type=click.Choice(["files", "directory"], case_sensitive=False),
               help="A job per file, or one for the whole directory."),
        option("--workflow-per", type=click.Choice(["file", "batch"]),
               help="A job for each file, or for each batch of files moved together; default: as the station says."),
        option("--on-conflict", type=click.Choice(["fail", "replace", "version"]),
               help="What to do when storage has another file of the same path."),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def task_info(flags: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Return the ``taskInfo`` of the options and ``key:value`` words.

    :param flags: option name (snake case) -> value; ``None`` and empty ones were not given.
    :raises click.UsageError: a key is given both ways with different values.
    """
    info: dict[str, Any] = dict(words)
    for name, value in flags.items():
        if value is None or value in {"", ()}:
            continue
        head, *rest = name.split("_")
        key = head + "".join(part.capitalize() for part in rest)
        given = " ".join(value) if isinstance(value, tuple) else value
        if str(info.setdefault(key, given)).lower() != str(given).lower():
            raise click.UsageError(f"Key {key!r} is given twice, as {info[key]!r} and {given!r}.")
    return info


class Duration(click.ParamType):
    """A time like ``1d``, ``12h``, ``1d12h``, ``90m`` or ``30s``; a bare number is hours. The value is in hours."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return hours."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        if not _DURATION.fullmatch(text):
            self.fail(f"{value!r} is no duration; write for example 1d, 12h, 90m or 1d12h.", param, ctx)
        return sum(float(number) * _HOURS[unit] for number, unit in _PART.findall(text))


timeout_option = option(
    "--timeout",
    type=Duration(),
    callback=lambda _context, _option, hours: None if hours is None else hours * 3600,
    help="Give up waiting after this time, e.g. 30m.",
)
"""Adds the option that ends a wait; the function gets seconds."""


def printed_then_judged(info: DaqInfo) -> Iterator[DmObject]:
    """Yield a final record for printing, then fail when not everything went well.

    :raises ProcessingError: it did not end as ``done``, or files failed.
    """
    yield info
    errors = int(info.get("nProcessingErrors") or 0)
    if info.get("status") != "done" or errors:
        reason = info.get("errorMessage") or f"{errors} files failed; see dm-list-daq-files --id {info['id']}"
        raise ProcessingError(f"{info['id']} ended as {info.get('status')}: {str(reason).rstrip('.')}.")
