"""The main program of every service: options, settings, log file, errors as one sentence."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from dm.common import logs, secretfiles, settings
from dm.common.errors import DmException
from dm.common.settings import WebSettings

_GARBAGE = 20_000
"""Objects between two looks for reference cycles; at Python's 700, reading a large JSON text looks all the time."""

_DESCRIPTORS = 65_536

M = TypeVar("M", bound=WebSettings)


def run(
    name: str, description: str, model: type[M], work: Callable[[M, Path], None], arguments: Sequence[str] | None = None
) -> int:
    """Run a service: ``dm-<name>-service [--config FILE] [--foreground]``.

    :param name: the service; also its section of the settings file.
    :param description: for ``--help``.
    :param model: of its section.
    :param work: called with the settings and their file, with logging set up; returns when the service has stopped.
    :returns: exit status: 0, or the code of the error that ended it.
    """
    program = f"dm-{name}-service"
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--config", type=Path, help="settings file (default: DM_CONFIG_FILE or $DM_ETC_DIR/dm.toml)")
    parser.add_argument("--foreground", action="store_true", help="also log to standard error")
    options = parser.parse_args(arguments)
    try:
        file = options.config or settings.default_path()
        values = settings.load(model, name, file)
        with logs.configure(name, values.log_file, values.log_level, stderr=options.foreground):
            secretfiles.warn(values, name)
            _raise_descriptors()
            gc.freeze()  # what is loaded by now stays
            gc.set_threshold(_GARBAGE, 20, 20)
            work(values, file)
    except DmException as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.error_code
    return 0


def _raise_descriptors() -> None:
    """Allow the service more open files than an account's usual 1,024, as far as its own limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
