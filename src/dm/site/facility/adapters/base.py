"""What an adapter to the facility's own systems is: it reads people, runs, beamlines, proposals and safety forms.

An adapter only reads and only translates names. What is read is checked, kept in PostgreSQL and served by others, so an
adapter needs neither a cache nor care for outages: it raises :class:`CommunicationError` and is asked again later.

Adapters are found by the entry point group ``dm.facility`` or as ``module:Class`` in the settings.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

from dm.common.errors import ConfigurationError
from dm.common.settings import ServiceSettings

GROUP = "dm.facility"
KINDS = ("users", "runs", "beamlines", "proposals", "esafs")
LOG = logging.getLogger("dm.facility")


class NoSettings(ServiceSettings):
    """An adapter without settings."""


@dataclass(frozen=True)
class Person:
    """Somebody of the facility's user directory.

    :param key: the directory's own id of the person; stays when names and badge change.
    :param badge: the badge number, where there is one.
    :param username: login name; ``None`` becomes ``d<badge>`` where there is a badge.
    :param password_hash: as LDAP stores it (``{SSHA512}...``, ``{ARGON2}...``), where the directory gives it.
    :param active: whether the person may log in.
    """

    key: str
    badge: int | None = None
    username: str | None = None
    first_name: str = ""
    middle_name: str = ""
    last_name: str = ""
    email: str = ""
    institution: str = ""
    password_hash: str | None = field(default=None, repr=False)
    active: bool = True

    def __post_init__(self) -> None:
        if self.username is None and self.badge is not None:
            object.__setattr__(self, "username", f"d{self.badge}")


class FacilityAdapter(ABC):
    """Base of all adapters. One instance is used by one thread at a time.

    Records are dictionaries with the published keys (section "Records" of the how-to): a run has ``name``,
    ``startTime``, ``endTime``; a beamline ``name``; a proposal ``id``, ``title``, ``startTime``, ``endTime``,
    ``experimenters`` ...; a safety form ``esafId``, ``esafTitle``, ``experimentStartDate``, ``experimentEndDate``,
    ``experimentUsers`` .... Beside them the keys by which records are selected, where the facility has them: ``run``
    (of a proposal), ``beamline``, ``station``, ``sector``. Values may be as the facility has them (numbers as text, yes
    and no in any spelling): they are normalised afterwards, and a record that cannot be is counted and left out.

    A method is called only for a kind in :attr:`provides`. All raise :class:`~dm.common.errors.CommunicationError` when
    the facility's system does not answer or answers with something that is no list of records.

    :param name: its name in the settings. :param settings: an instance of :attr:`settings_model`.
    """

    settings_model: ClassVar[type[BaseModel]] = NoSettings
    #: which kinds it reads, out of :data:`KINDS`; may be set per instance
    provides: frozenset[str] = frozenset()

    def __init__(self, name: str, settings: Any) -> None:
        self.name = name
        self.settings = settings
        #: called with kind, which record, and why, for each record the adapter had to leave out
        self.on_rejected: Callable[[str, str, str], None] = self._log_rejected

    def users(self) -> Iterator[Person]:
        """Yield everybody of the user directory, each key once."""
        raise self._lacking("users")

    def runs(self) -> Iterator[dict[str, Any]]:
        """Yield the run cycles."""
        raise self._lacking("runs")

    def beamlines(self) -> Iterator[dict[str, Any]]:
        """Yield the beamlines."""
        raise self._lacking("beamlines")

    def proposals(self, run: str | None) -> Iterator[dict[str, Any]]:
        """Yield the proposals of a run, or all there are."""
        raise self._lacking("proposals")

    def esafs(self, year: int | None) -> Iterator[dict[str, Any]]:
        """Yield the safety forms of a year, or all there are."""
        raise self._lacking("esafs")

    @abstractmethod
    def check(self) -> None:
        """Ask the facility's system something trivial. :raises CommunicationError: it does not answer."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give up
        """Give up connections. The next call may open new ones."""

    def rejected(self, kind: str, which: str, why: str) -> None:
        """Report a record that is left out: one bad record never costs the list."""
        self.on_rejected(kind, which, why)

    def _log_rejected(self, kind: str, which: str, why: str) -> None:
        LOG.warning("adapter %s: %s %s left out: %s", self.name, kind, which, why)

    def _lacking(self, kind: str) -> ConfigurationError:
        return ConfigurationError(
            f"Facility adapter {self.name!r} has no {kind}; give it their source in the settings."
        )
