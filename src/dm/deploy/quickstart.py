"""``dm-quickstart``: the whole suite and a beamline's day, on this machine, in a minute. ``dm-serve``: it stays up."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from dm.common.errors import DmException
from dm.deploy import components
from dm.deploy.demo import EXPERIMENT, Demo, Outcome, Progress, fresh_root, remove
from dm.deploy.layout import Layout

_WORTH_SHOWING = (
    "instrument", "beamline", "title", "sampleName", "scanNumbers", "scanCommand", "energy", "signalShape",
)  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Folder whose files the detector writes.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory to install into (default: a fresh one).")
@click.option("--keep", is_flag=True, help="Leave everything running.")
def main(data: Path | None, root: Path | None, keep: bool) -> None:
    """Start DM on this machine, run a beamline's day on it, check everything against the disk, and stop."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    begun = time.monotonic()
    given = root is not None
    place = root.absolute() if root is not None else fresh_root()
    outcome = None
    try:
        with _bars(console) as show:
            demo = Demo(place, data.absolute() if data else None, lambda line: console.print(line, markup=False), show)
            _on_signal(demo.interrupted)
            try:
                demo.set_up()
                outcome = demo.run()
            finally:
                if not keep:
                    demo.stop()
    except DmException as error:
        console.print(f"Error: {error}", style="bold red", markup=False)
    except OSError as error:
        console.print(f"Error: {error.filename or place}: {error.strerror}.", style="bold red", markup=False)
    good = outcome is not None and outcome.ok
    if outcome is not None:
        _report(console, outcome)
    console.print(f"{'Everything is as claimed' if good else 'FAILED'}, after {time.monotonic() - begun:.1f} s.")
    if keep:
        _tell(console, Layout.at(place))
    elif good and not given:
        console.print("Everything is stopped and removed. To look around with these, run it again with --keep:")
        _commands(console, Layout.at(place))
        remove(place)
    else:
        console.print(f"Files and logs stay in {place} (logs: {place}/var/log).", markup=False)
    sys.exit(0 if good else 1)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", type=click.Path(path_type=Path), help="Directory to install into (default: a fresh one).")
def serve(root: Path | None) -> None:
    """Start DM on this machine and keep it running in the foreground until Ctrl-C."""
    console = Console(highlight=False)
    place = root.absolute() if root is not None else fresh_root()
    demo = Demo(place, None, lambda line: console.print(line, markup=False))
    _on_signal(demo.interrupted)
    status = 0
    try:
        installed = demo.set_up(fresh=False)
        _tell(console, installed.layout, experiment=False)
        console.print("Ctrl-C stops everything.")
        demo.interrupted.wait()
    except DmException as error:
        console.print(f"Error: {error}", style="bold red", markup=False)
        status = error.getErrorCode() or 1
    finally:
        demo.stop()
    if root is None and status == 0:
        remove(place)
    sys.exit(status)


def _on_signal(event: threading.Event) -> None:
    """Let Ctrl-C and SIGTERM set an event: an exception out of nowhere could be lost, and the services left running."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: event.set())


@contextmanager
def _bars(console: Console) -> Iterator[Any]:
    """Yield a function that shows :class:`Progress`: as bars on a terminal, else as a line now and then."""
    if not console.is_terminal:
        seen: list[tuple[int, int, int]] = []

        def line(progress: Progress) -> None:
            now = (progress.written, progress.stored, progress.processed)
            if now not in seen and (progress.processed == progress.total or not seen or now[2] >= seen[-1][2] + 5):
                seen.append(now)
                console.print(
                    f"          written {now[0]}, stored {now[1]}, processed {now[2]} of {progress.total}", markup=False
                )

        yield line
        return
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            for name in ("written", "stored", "processed"):
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=progress.total)
                bars.update(tasks[name], completed=min(progress.total, getattr(progress, name)))

        yield show


def _report(console: Console, outcome: Outcome) -> None:
    files = Table(title="Files", title_justify="left")
    for name in ("file", "bytes", "version", "job", "numbers", "from inside the file"):
        files.add_column(name, overflow="fold")
    for name, record in sorted(outcome.records.items()):
        jobs = outcome.jobs.get(name, [])
        last: Mapping[str, Any] = jobs[-1] if jobs else {}
        numbers = " ".join(f"{key}={last[key]}" for key in ("scans", "points", "maximum") if last.get(key))
        status = str(last.get("status", "none")) + (f" ({len(jobs)}x)" if len(jobs) > 1 else "")
        facts = "; ".join(f"{key} {_brief(record[key])}" for key in _WORTH_SHOWING if key in record)
        facts = facts or str(record.get("mimeType", ""))
        files.add_row(name, str(record.get("fileSize")), str(record.get("version", "")), status, numbers, facts)
    console.print(files)
    checks = Table(title="Claims checked against the disk", title_justify="left")
    for name in ("claim", "found true", ""):
        checks.add_column(name, overflow="fold")
    for check in outcome.checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]WRONG[/]"
        checks.add_row(check.claim, str(check.count), mark)
    console.print(checks)
    for check in outcome.checks:
        for wrong in check.wrong[:5]:
            console.print(f"{check.claim}: {wrong}", style="bold red", markup=False)
    steps = Table(title="Steps", title_justify="left")
    steps.add_column("seconds", justify="right")
    steps.add_column("step")
    for step in outcome.steps:
        steps.add_row(f"{step.seconds:.1f}", step.name)
    console.print(steps)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _tell(console: Console, layout: Layout, experiment: bool = True) -> None:
    """Print how to talk to a running suite, ready to be pasted."""
    parts = components.components(layout.settings)
    addresses = [f"{part.name} https://localhost:{part.port}" for part in parts.values() if hasattr(part, "port")]
    console.print("Running: " + ", ".join(addresses), markup=False)
    console.print("Look around:")
    _commands(console, layout, experiment)
    if experiment:
        console.print("Stop:")
        console.print(f"  {layout.bin}/dm-control all stop --config {layout.settings}", markup=False)


def _commands(console: Console, layout: Layout, experiment: bool = True) -> None:
    lines = [f"source {layout.setup}"]
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
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    main()
