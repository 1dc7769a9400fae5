"""What the demo shows people: progress, a table of the files, a table of the claims, and how to go on from there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from dm.deploy import components
from dm.deploy.demo import EXPERIMENT
from dm.deploy.demo_outcome import Outcome, Progress
from dm.deploy.layout import Layout

PIPE_COLUMNS = 120
_FACTS = (
    "instrument", "beamline", "title", "scanNumbers", "energy", "scanCommand", "sampleName", "signalShape",
)  # fmt: skip
_MOST_FACTS = 3
_LONGEST_FACT = 32
_NUMBERS = ("scans", "points", "maximum")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # what is running must be stopped first: no ending on the spot


class Screen:
    """Where it is shown: standard output, a terminal or not.

    When nobody reads along any more (a closed terminal or pipe), the rest goes nowhere and the work to its end.
    """

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.console = _Console(highlight=False)
        if not terminal:  # nobody folds the lines of a log; COLUMNS may ask for more
            self.console = _Console(highlight=False, width=max(PIPE_COLUMNS, self.console.width))

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line as it is: paths in it stay whole, so that they can be pasted."""
        self._print(Text(printable(line)), style=style, soft_wrap=True)

    def _print(self, *what: Any, **how: Any) -> None:
        try:
            self.console.print(*what, **how)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)

    def error(self, line: str) -> None:
        """Print a line about something that went wrong."""
        self.say(line, "bold red")

    @contextmanager
    def progress(self) -> Iterator[Any]:
        """Yield a function that shows :class:`Progress`: as bars on a terminal, else as a line now and then."""
        if not self.console.is_terminal:
            yield self._progress_lines()
            return
        columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, console=self.console, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def show(progress: Progress) -> None:
                for name in ("written", "stored", "processed"):
                    if name not in tasks:
                        tasks[name] = bars.add_task(name, total=progress.total)
                    bars.update(tasks[name], completed=min(progress.total, getattr(progress, name)))

            yield show

    def _progress_lines(self) -> Any:
        seen: list[tuple[int, int, int]] = []

        def line(progress: Progress) -> None:
            now = (progress.written, progress.stored, progress.processed)
            if now not in seen and (progress.processed == progress.total or not seen or now[2] >= seen[-1][2] + 5):
                seen.append(now)
                self.say(f"          written {now[0]}, stored {now[1]}, processed {now[2]} of {progress.total}")

        return line

    def report(self, outcome: Outcome) -> None:
        """Print what became of each file, and which claims were found true."""
        self._print()
        self._print(_files(outcome))
        self._print(_claims(outcome))
        for check in outcome.checks:
            for wrong in check.wrong[:5]:
                self.error(f"{check.claim}: {wrong}")

    def running(self, layout: Layout, experiment: bool = True) -> None:
        """Print how to talk to a running suite, ready to be pasted."""
        self.say("Running:")
        for part in components.components(layout.settings).values():
            if isinstance(part, components.Service):
                self.say(f"  {part.name:<12} https://localhost:{part.port}")
        self.say("Look around:")
        self.commands(str(layout.setup), experiment)
        if experiment:
            self.say("Stop:")
            self.say(f"  {layout.bin}/dm-control all stop --config {layout.settings}")

    def commands(self, setup: str, experiment: bool = True) -> None:
        """Print commands to look around with. :param setup: the setup file. :param experiment: there is the demo's."""
        lines = [f"source {setup}"]
        if experiment:
            lines += [
                f"dm-get-experiment --experiment {EXPERIMENT} -a -pp",
                f"dm-list-experiment-files --experiment {EXPERIMENT}",
                f"dm-get-file-collection-stats --experiment {EXPERIMENT}",
                "dm-list-daqs",
                "dm-list-processing-jobs --display-keys id,status,stage,experimentFilePath,points,maximum",
                "dm-get-last-processing-job -a -pp",
            ]
        else:
            lines += ["dm-list-experiments", "dm-list-workflows", "dm-list-daqs"]
        for line in lines:
            self.say(f"  {line}")


def printable(text: str) -> str:
    """Return text that any terminal takes: file names may hold bytes that are no UTF-8, and control characters."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _files(outcome: Outcome) -> Table:
    table = _table("Files", "file", "bytes", "job", "numbers found", "from inside the file")
    for name, record in sorted(outcome.records.items()):
        jobs = outcome.jobs.get(name, [])
        last: Mapping[str, Any] = jobs[-1] if jobs else {}
        numbers = " ".join(f"{key}={last[key]}" for key in _NUMBERS if last.get(key))
        # a file that was written again had a job, and became a version, each time
        status = str(last.get("status", "none")) + (f" ({len(jobs)}x)" if len(jobs) > 1 else "")
        facts = [f"{key}: {_brief(record[key])}" for key in _FACTS if key in record][:_MOST_FACTS]
        inside = "; ".join(facts) or str(record.get("mimeType", ""))
        table.add_row(*(Text(printable(cell)) for cell in (name, str(record.get("fileSize")), status, numbers, inside)))
    table.columns[1].justify = "right"
    return table


def _claims(outcome: Outcome) -> Table:
    table = _table("Claims checked against the disk", "", "times", "claim")
    for check in outcome.checks:
        mark = Text("ok", "green") if check.ok else Text("WRONG", "bold red")
        table.add_row(mark, str(check.count), Text(check.claim))
    table.columns[1].justify = "right"
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONGEST_FACT else text[: _LONGEST_FACT - 3] + "..."
