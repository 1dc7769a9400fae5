"""What a check of a deployment says: one line each, with what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dm.common.errors import DmException
from dm.common.logs import scrub


class Level(enum.IntEnum):
    """How bad it is; the values are the exit statuses of Nagios plug-ins."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """One line.

    :param name: what was looked at, e.g. ``storage.database``. :param message: a sentence, with what to do unless ok.
    """

    level: Level
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.level.name.lower():<7}  {self.name}: {scrub(self.message)}"


Check = Callable[[], Iterator[Finding]]


def ok(name: str, message: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, name, message)


def warning(name: str, message: str) -> Finding:
    """Return a finding that should be looked at."""
    return Finding(Level.WARNING, name, message)


def error(name: str, message: str) -> Finding:
    """Return a finding that must be mended."""
    return Finding(Level.ERROR, name, message)


def carried_out(name: str, check: Check) -> Iterator[Finding]:
    """Yield what a check finds; one that cannot be carried out is a finding itself.

    :param name: for that finding.
    """
    try:
        yield from check()
    except DmException as failure:
        yield error(name, str(failure))
    except OSError as failure:
        yield error(name, f"{failure.filename or 'It'} cannot be looked at: {failure.strerror or failure}.")


def worst(findings: list[Finding]) -> Level:
    """Return the level of the worst finding."""
    return max((finding.level for finding in findings), default=Level.OK)
