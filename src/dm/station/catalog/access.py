"""Whose experiment a request speaks of, and what the caller may do to its records.

Members read. Managers of the station, administrators and the station's service account write. Principal investigators
may annotate: set free metadata of files, add and change datasets and runs - but not what the system knows of a file
(size, digests, replicas), nor remove anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dm.common.errors import AuthorizationError, InvalidArgument
from dm.common.web.routes import Principal
from dm.station.catalog import items
from dm.station.catalog.store import ExperimentRef

PI_ROLE = "PI"
_KEPT = {"experimentFilePath", "path", "root", "metadata", items.SHADOWED}


class Site(Protocol):
    """What is asked of the site (see :class:`dm.station.catalog.site.Site`)."""

    @property
    def station(self) -> str:
        """The station's name."""
        ...

    def experiment(self, principal: Principal, name: str) -> Any:
        """Return an experiment's record by name. :raises ObjectNotFound: none the user may see."""
        ...

    def experiment_by_id(self, principal: Principal, experiment_id: int) -> Any:
        """Return an experiment's record by id. :raises ObjectNotFound: none the user may see."""
        ...

    def experiments(self, principal: Principal) -> list[Any]:
        """Return short records of the station's experiments the user may see."""
        ...


class Access:
    """Resolves experiments for callers of one station."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._station = site.station

    def experiment(self, principal: Principal, name: str) -> ExperimentRef:
        """Return the experiment, if the caller may see it. :raises ObjectNotFound: otherwise."""
        return _reference(self._site.experiment(principal, name))

    def annotatable(self, principal: Principal, name: str) -> ExperimentRef:
        """Return the experiment, if the caller may annotate its records.

        :raises AuthorizationError: a member who is not a principal investigator.
        """
        record = self._site.experiment(principal, name)
        if not self.manages(principal) and principal.username not in _investigators(record):
            raise AuthorizationError(
                f"User {principal.username} may not change the catalog of experiment {name!r}; "
                "its principal investigators and the station's managers may."
            )
        return _reference(record)

    def manages(self, principal: Principal) -> bool:
        """Whether the caller manages the station (or is its service account, or an administrator)."""
        return principal.manages(self._station)

    def editable(self, principal: Principal, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the caller may set of a file record: all of it, or only free metadata."""
        if self.manages(principal):
            return dict(info)
        return {key: value for key, value in info.items() if key in _KEPT or key not in items.SYSTEM_KEYS}

    def claimed(self, principal: Principal, experiment_id: int, name: str) -> ExperimentRef:
        """Return an experiment named by id and name in a bulk write.

        The station's service account is trusted: it must be able to catalog while the site does not answer.

        :raises InvalidArgument: for others, when name and id are not of one experiment.
        """
        if not principal.serves(self._station):
            found = self.experiment(principal, name)
            if found.id != experiment_id:
                raise InvalidArgument(f"Experiment {name!r} has id {found.id}, not {experiment_id}.")
        return ExperimentRef(experiment_id, name)

    def experiment_by_id(self, principal: Principal, experiment_id: int) -> ExperimentRef:
        """Return the experiment of an id, if the caller may see it. :raises ObjectNotFound: otherwise."""
        return _reference(self._site.experiment_by_id(principal, experiment_id))

    def visible(self, principal: Principal) -> list[ExperimentRef]:
        """Return the station's experiments the caller may see."""
        return [_reference(record) for record in self._site.experiments(principal)]


def _reference(record: Any) -> ExperimentRef:
    return ExperimentRef(int(record["id"]), str(record["name"]))


def _investigators(record: Any) -> set[str]:
    users = record.get("experimentUsers") or []
    return {user["username"] for user in users if PI_ROLE in user.get("roles", [])}
