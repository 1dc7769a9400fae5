"""Following a DAQ or upload on standard error: a bar on a terminal, else a line now and then; a summary at the end.

Standard output stays the command's own: the record, as without following.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from shlex import quote
from typing import Any

import click

from dm.common import timestamps
from dm.common.command import EXIT_INTERRUPTED, option
from dm.common.errors import DmException
from dm.common.records import DmObject
from dm.station.acquisition.api import DaqInfo, ExperimentDaqApi, UploadInfo
from dm.station.acquisition.commands.task_options import printed_then_judged

INTERVAL = 10.0
_SHOWN_FAILURES = 10
_SLOWEST = 0.05  # files per second; what is slower is told in bytes alone
_IDLE = 5.0
_SILENCE = 15.0  # answers come every five seconds at the latest
_SHORTEST_BAR = 15
_LARGE = 10_000_000  # bytes per file from which on files are too few to tell how far it is
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

follow_option = option(
    "--follow", is_flag=True, help="Stay and show how far it is; Ctrl-C ends the showing only. Fail when a file failed."
)
interval_option = option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=INTERVAL,
    show_default=True,
    metavar="SECONDS",
    help="How often to tell when standard error is no terminal.",
)


# --- words ------------------------------------------------------------------------------------------------------------
def size_text(count: float) -> str:
    """Return a number of bytes as people read it: three digits and a decimal unit."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def time_text(seconds: float) -> str:
    """Return a time span as ``12 s``, ``3:07 min`` or ``2:05 h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def numbers(info: DaqInfo, since: float = 0.0) -> list[str]:
    """Return what a record says of its progress, most important first.

    :param since: seconds since the record was fetched, by which the remaining time is shorter.
    """
    done, total = int(info.get("nProcessedFiles") or 0), int(info.get("countFiles") or 0)
    size, whole = moved_bytes(info), int(info.get("countBytes") or 0)
    if not total and not info.is_over:
        return ["no files yet"]
    # As long as an upload looks through its directory, what it knows is not all there is.
    more = "+" if isinstance(info, UploadInfo) and info.get("status") in ("pending", "running") else ""
    bytes_text = size_text(size) if size >= whole else f"{size_text(size)} of {size_text(whole)}{more}"
    words = [f"{done:,} of {total:,}{more} files", bytes_text]
    if (idle := idle_for(info, since)) > _IDLE:
        words.append(f"nothing new for {time_text(idle)}")
    elif not info.is_over and (done or size):
        rate = float(info.get("fileRate") or 0)
        if rate >= _SLOWEST or not size:
            words.append(f"{rate:,.{0 if rate >= 9.95 else 1}f} files/s")
        words.append(f"{size_text(float(info.get('byteRate') or 0))}/s")
        left = info.get("secondsRemaining")
        if left is not None and total > done:
            words.append(f"{time_text(float(left) - since)} left")
    if errors := int(info.get("nProcessingErrors") or 0):
        words.append(f"{errors:,} failed")
    return words


def idle_for(info: DaqInfo, since: float = 0.0) -> float:
    """Return for how many seconds a DAQ has had nothing to do; 0 when it has, or for an upload.

    :param since: seconds since the record was fetched.
    """
    if isinstance(info, UploadInfo) or info.is_over or info.get("nWaitingFiles") or "lastProgressTime" not in info:
        return 0.0
    now = float(info.get("startTime") or 0) + float(info.get("runTime") or 0)  # by the clock of the service
    return max(0.0, now - float(info["lastProgressTime"]) + since)


def moved_bytes(info: DaqInfo) -> int:
    """Return how many bytes of a record were moved, those of unfinished files among them."""
    return int(info.get("completedBytes") or 0) + int(info.get("movingBytes") or 0)


def fraction(info: DaqInfo) -> float:
    """Return how much of what a record knows is done, from 0 to 1; of large files also what was moved of them."""
    done, total = int(info.get("nProcessedFiles") or 0), int(info.get("countFiles") or 0)
    whole = int(info.get("countBytes") or 0)
    if not total:
        return 0.0
    if whole < _LARGE * total:
        return done / total
    return min(1.0, max(done / total, moved_bytes(info) / whole))


def harmless(text: str) -> str:
    """Return a text without characters that a terminal would obey."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def trouble(info: DaqInfo) -> str:
    """Return what is in the way of a task at the moment, as one line; empty for nothing."""
    return "" if info.is_over else harmless(str(info.get("errorMessage") or ""))


def summary(info: DaqInfo) -> str:
    """Return one sentence about a task that is over."""
    what = "Upload" if isinstance(info, UploadInfo) else "DAQ"
    completed, size = int(info.get("nCompletedFiles") or 0), int(info.get("completedBytes") or 0)
    seconds = float(info.get("runTime") or 0)
    rates = ""
    if completed:
        span = max(seconds, 1e-3)
        rates = f" ({completed / span:,.1f} files/s, {size_text(size / span)}/s)"
    words = [f"{what} {info['id']}: {info.get('status')}. {completed:,} files, {size_text(size)}"]
    if skipped := int(info.get("nSkippedFiles") or 0):
        words.append(f"{skipped:,} skipped")
    if errors := int(info.get("nProcessingErrors") or 0):
        words.append(f"{errors:,} failed")
    return f"{', '.join(words)} in {time_text(seconds)}{rates}."


# --- showing ----------------------------------------------------------------------------------------------------------
class Lines:
    """Tells in lines, one every so many seconds and one for each change of the status.

    :param interval: seconds.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._next = 0.0
        self._status = ""

    def show(self, info: DaqInfo) -> None:
        """Tell about a record if it is time to."""
        now, status = time.monotonic(), str(info.get("status"))
        if info.is_over or (now < self._next and status == self._status):
            return
        self._next, self._status = now + self.interval, status
        line = f"{timestamps.text(timestamps.now())} {status}: {', '.join(numbers(info))}"
        if obstacle := trouble(info):
            line += f" - {obstacle}"
        click.echo(line, err=True)


class Bar:
    """A bar with numbers, drawn anew a few times a second below the output; to be used as a context.

    :param console: of standard error.
    """

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self._info: DaqInfo | None = None
        self._seen = time.monotonic()
        self._width = 0
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what a command prints into a pipe must not go to standard error
        )

    def __enter__(self) -> Bar:
        # Whoever is ended by a signal gives the cursor back, too.
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)
        signal.signal(signal.SIGTERM, self._before)

    def show(self, info: DaqInfo) -> None:
        """Show a record from now on."""
        self._info, self._seen = info, time.monotonic()

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        info = self._info
        if info is None:
            return Text("")
        listing = isinstance(info, UploadInfo) and info.get("status") in ("pending", "running")
        unknown = listing or not info.get("countFiles")
        bar = ProgressBar(total=1.0, completed=fraction(info), pulse=unknown, animation_time=time.time())
        text = "  ".join(numbers(info, time.monotonic() - self._seen))
        self._width = max(self._width, len(text))  # so that the bar keeps its length while numbers grow
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1)
        if self._width + _SHORTEST_BAR < self._live.console.width:
            row.add_column(no_wrap=True, width=self._width)
            row.add_row(bar, Text(text))
        else:
            row.add_row(bar)
            row.add_row(Text(text))
        lines: list[Any] = [row]
        obstacle, age = trouble(info), time.monotonic() - self._seen
        if age > _SILENCE:
            obstacle = f"No answer for {time_text(age)}; the service may be restarting."
        if obstacle:
            lines.append(Text(obstacle, style="yellow", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


@contextmanager
def showing(interval: float | None) -> Iterator[Callable[[DaqInfo], None]]:
    """Show progress on standard error.

    :param interval: seconds between lines where it is no terminal; ``None``: nothing there.
    :yields: what to call with each new record.
    """
    shown: AbstractContextManager[Any] = nullcontext()
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            shown = Bar(console)
    with shown as bar:
        if bar is not None:
            yield bar.show
        elif interval is not None:
            yield Lines(interval).show
        else:
            yield lambda _info: None


# --- following --------------------------------------------------------------------------------------------------------
def followed(
    api: ExperimentDaqApi, info: DaqInfo, *, timeout: float | None = None, interval: float | None = INTERVAL
) -> Iterator[DmObject]:
    """Wait for the end of a DAQ or upload, showing how far it is; then yield its last record, and judge it.

    :param timeout: seconds to wait at most. :param interval: see :func:`showing`; ``None`` also leaves out the summary
        where standard error is no terminal.
    :raises ProcessingError: it did not end as ``done``, or files failed. :raises TaskTimeout: it is not finished in
        time; it goes on.
    """
    upload = isinstance(info, UploadInfo)
    try:
        with showing(interval) as show:
            show(info)
            last: DaqInfo = (
                api.waitUpload(info["id"], timeout, progress=show)
                if upload
                else api.waitDaq(info["id"], timeout, progress=show)
            )
    except KeyboardInterrupt:
        click.echo(goes_on(info), err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if interval is not None or sys.stderr.isatty():
        click.echo(summary(last), err=True)
        for line in _failures(api, last):
            click.echo(line, err=True)
    return printed_then_judged(last)


def goes_on(info: DaqInfo) -> str:
    """Return the sentence for somebody who stops following."""
    identity = info["id"]
    if isinstance(info, UploadInfo):
        return (
            f"Upload {identity} goes on. Follow it again with: dm-follow-upload --id {identity}\n"
            f"Stop it with: dm-stop-upload --id {identity}"
        )
    named = f"--experiment {quote(str(info['experimentName']))} --data-directory {quote(str(info['dataDirectory']))}"
    return (
        f"DAQ {identity} goes on. Follow it again with: dm-follow-daq --id {identity}\n"
        f"Stop it with: dm-stop-daq {harmless(named)}"
    )


def hint(info: DaqInfo) -> None:
    """Tell a person at a terminal how to follow what was started; scripts hear nothing."""
    if sys.stdout.isatty() and sys.stderr.isatty() and not info.is_over:
        what = "upload" if isinstance(info, UploadInfo) else "daq"
        click.echo(f"Follow it with: dm-follow-{what} --id {info['id']}", err=True)


def _failures(api: ExperimentDaqApi, info: DaqInfo) -> Iterator[str]:
    errors = int(info.get("nProcessingErrors") or 0)
    if not errors:
        return
    listed = api.listUploadFiles if isinstance(info, UploadInfo) else api.listDaqFiles
    try:
        rows = listed(info["id"], "failed", 0, _SHOWN_FAILURES)
    except DmException as error:
        yield f"The failed files cannot be listed: {error}"
        return
    for row in rows:
        yield f"  {harmless(str(row.get('displayPath') or row['path']))}: {harmless(str(row.get('lastError') or ''))}"
    if errors > len(rows):
        yield f"  ... and {errors - len(rows):,} more: dm-list-daq-files --id {info['id']} --state failed"
