"""``dm-quickstart``: the whole suite and a beamline's day, on this machine, in a minute. ``dm-serve``: it stays up."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import click

from dm.common.errors import ConfigurationError, DmException
from dm.deploy.demo import Demo, fresh_root, remove
from dm.deploy.demo_report import Screen
from dm.deploy.layout import Layout


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--data", type=click.Path(path_type=Path), help="Folder whose files the detector writes.")
@click.option("--root", type=click.Path(path_type=Path), help="Directory to install into (default: a fresh one).")
@click.option("--keep", is_flag=True, help="Leave everything running.")
def main(data: Path | None, root: Path | None, keep: bool) -> None:
    """Start DM on this machine, run a beamline's day on it, check everything against the disk, and stop."""
    screen = Screen()
    begun = time.monotonic()
    given = root is not None
    place = root.absolute() if root is not None else fresh_root()
    outcome = None
    try:
        with screen.progress() as show:
            demo = Demo(place, data.absolute() if data else None, screen.say, show)
            _on_signal(demo.interrupted)
            try:
                demo.set_up()
                outcome = demo.run()
            finally:
                if not keep:
                    demo.stop()
    except DmException as error:
        screen.error(f"Error: {error}")
    except OSError as error:
        screen.error(f"Error: {error.filename or place}: {error.strerror}.")
    good = outcome is not None and outcome.ok
    if outcome is not None:
        screen.report(outcome)
    screen.say(f"{'Everything is as claimed' if good else 'FAILED'}, after {time.monotonic() - begun:.1f} s.")
    layout = _installed(place)
    if layout is None:  # it failed before there was anything to see
        if not given:
            remove(place)
    elif keep:
        screen.running(layout)
    elif good and not given:
        screen.say("All is stopped and removed. With --keep (make demo KEEP=1) it stays up, to look around in:")
        screen.commands("DIRECTORY/etc/dm.setup.sh")
        remove(place)
    else:
        screen.say(f"Files and logs stay in {place} (logs: {place}/var/log).")
    sys.exit(0 if good else 1)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", type=click.Path(path_type=Path), help="Directory to install into (default: a fresh one).")
def serve(root: Path | None) -> None:
    """Start DM on this machine and keep it running in the foreground until Ctrl-C."""
    screen = Screen()
    place = root.absolute() if root is not None else fresh_root()
    demo = Demo(place, None, screen.say)
    _on_signal(demo.interrupted)
    status = 0
    try:
        installed = demo.set_up(fresh=False)
        screen.running(installed.layout, experiment=False)
        screen.say("Ctrl-C stops everything" + ("." if root is not None else " and removes it."))
        demo.interrupted.wait()
    except DmException as error:
        screen.error(f"Error: {error}")
        status = error.getErrorCode() or 1
    except OSError as error:
        screen.error(f"Error: {error.filename or place}: {error.strerror}.")
        status = 1
    finally:
        demo.stop()
    if root is None and status == 0:
        remove(place)
    elif status and _installed(place) is not None:
        screen.say(f"Files and logs stay in {place} (logs: {place}/var/log).")
    sys.exit(status)


def _installed(place: Path) -> Layout | None:
    """Return the installation in a directory, if there is one."""
    try:
        layout = Layout.at(place)
    except ConfigurationError:
        return None
    return layout if layout.settings.exists() else None


def _on_signal(event: threading.Event) -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal set an event.

    An exception out of nowhere could be lost, and the services left running.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: event.set())


if __name__ == "__main__":
    main()
