"""The argument models of the routes table."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PrivateAttr

from dm.common.web.routes import Arguments
from dm.site.storage.changes import Changes

_STATION = "Station name; needed only where the experiment's name alone is not unique."
_ROOT = "Root the path is below: data or analysis."


class ByStation(Arguments):
    """A station."""

    station_name: str = Field(description="Station name.")


class OfExperiment(Arguments):
    """Names an experiment, by number or by name."""

    _settled: int | None = PrivateAttr(default=None)

    def settle(self, experiment_id: int) -> None:
        """Keep which experiment the caller may do this to: a moment later its name may be that of another one."""
        self._settled = experiment_id

    @property
    def settled(self) -> int | None:
        """Number of the experiment that was looked up when the caller's rights were, if any was."""
        return self._settled


class ById(OfExperiment):
    """An experiment by number."""

    experiment_id: int = Field(description="The experiment's number.")


class ByName(OfExperiment):
    """An experiment by name."""

    experiment_name: str = Field(description="Experiment name.")
    station_name: str | None = Field(default=None, description=_STATION)


class ChangeFields(OfExperiment):
    """What can be set on an experiment."""

    type_name: str | None = Field(default=None, description="Experiment type.")
    description: str | None = None
    root_path: str | None = Field(default=None, description="Directories between the station's and the experiment's.")
    globus_group_id: str | None = None
    start_date: str | float | None = Field(default=None, description="Like 05-Mar-26 or ISO 8601.")
    end_date: str | float | None = Field(default=None, description="Like 05-Mar-26 or ISO 8601.")
    managed_directory_structure: bool | None = None
    beamline_user_account: str | None = None
    beamline_admin_account: str | None = None
    data_directory_frozen: bool | None = Field(default=None, description="Refuse further files below data.")
    analysis_directory_frozen: bool | None = Field(default=None, description="Refuse further files below analysis.")

    def changes(self) -> Changes:
        """Return them as the use cases take them."""
        return Changes(**{name: getattr(self, name) for name in Changes.__dataclass_fields__})


class AddExperiment(ChangeFields):
    """A new experiment."""

    experiment_name: str = Field(description="Letters, digits and _-.+=~; at most 128 bytes.")
    station_name: str | None = Field(default=None, description="Default: the one station the caller manages.")
    storage_name: str | None = Field(default=None, description="Default: the only storage.")
    usernames: list[str] = Field(default_factory=list, description="Members, with role User.")


class UpdateById(ChangeFields):
    """Changes to an experiment named by number."""

    experiment_id: int = Field(description="The experiment's number.")
    new_name: str | None = Field(default=None, description="Another name; its directory moves along.")


class UpdateByName(ChangeFields):
    """Changes to an experiment named by name."""

    experiment_name: str = Field(description="Experiment name.")
    station_name: str | None = Field(default=None, description=_STATION)
    new_name: str | None = Field(default=None, description="Another name; its directory moves along.")


class DeleteById(ById):
    """An experiment to delete."""

    force: bool = Field(default=False, description="Also while DAQs, uploads or jobs run.")


class DeleteByName(ByName):
    """An experiment to delete."""

    force: bool = Field(default=False, description="Also while DAQs, uploads or jobs run.")


class UpsertMetadata(ByName):
    """One key of an experiment's own metadata."""

    key: str = Field(description="Any name that is not one of the record's own keys.")
    value: Any = Field(description="Any JSON.")


class OperationId(Arguments):
    """An operation."""

    operation_id: str = Field(description="Its UUID.")


class Username(Arguments):
    """A user."""

    username: str = Field(description="Login name.")


class UserFields(Arguments):
    """Names of a user."""

    username: str = Field(description="Login name; d and badge number for people.")
    password: str | None = Field(default=None, description="8 to 1000 characters, no '|'.", repr=False)
    first_name: str | None = None
    middle_name: str | None = None
    last_name: str | None = None
    email: str | None = None

    def details(self) -> dict[str, str | None]:
        """Return names and email."""
        return {name: getattr(self, name) for name in ("first_name", "middle_name", "last_name", "email")}


class UserChanges(UserFields):
    """Changes to a user."""

    active: bool | None = Field(default=None, description="Whether the user can log in and has any rights.")


class OwnPassword(Arguments):
    """A user's new password, with the old one."""

    username: str = Field(description="Login name.")
    old_password: str = Field(repr=False)
    new_password: str = Field(description="8 to 1000 characters, no '|'.", repr=False)


class ExperimentRole(ByName):
    """A role in an experiment."""

    username: str = Field(description="Login name.")
    role_name: str = Field(description="User or PI.")


class StationRole(ByStation):
    """A role at a station."""

    username: str = Field(description="Login name.")
    role_name: str = Field(description="manager or service.")


class SystemRole(Arguments):
    """A role at the site."""

    username: str = Field(description="Login name.")
    role_name: str = Field(description="administrator.")


class Named(Arguments):
    """A station or experiment type to add."""

    name: str
    description: str = ""


class AddStorage(Named):
    """A storage to add."""

    storage_host: str = Field(description="Host on which stations reach it.")
    storage_directory: str = Field(description="Existing absolute directory for the stations' directories.")


class AddGrant(ByName):
    """Leave to publish into an experiment while nobody is logged in."""

    purpose: Literal["daq", "upload", "job"]


class GrantId(Arguments):
    """A grant."""

    grant_id: str = Field(description="Its UUID.")


class OpenBatch(Arguments):
    """A batch of files about to be staged."""

    batch_id: str = Field(description="UUID chosen by the caller; makes the call repeatable.")
    experiment_id: int
    root: Literal["data", "analysis"] = Field(default="data", description=_ROOT)
    source: str = Field(description="Id of what sends the files; rewrites by the same source replace.")
    on_conflict: Literal["fail", "replace", "version"] = Field(
        default="fail", description="What to do when another source published other bytes under a path."
    )


class BatchFiles(Arguments):
    """The staged files of a batch."""

    batch_id: str
    files: list[dict[str, Any]] = Field(
        description="Each with path, stagedName, size, mtimeNs, and optionally mode, digests, md5Sum, sourceUrl."
    )
    wait_time: float = Field(default=0.0, ge=0, description="Seconds to wait for its outcome; 30 at most.")


class BatchId(Arguments):
    """A batch."""

    batch_id: str


class WaitBatch(BatchId):
    """A batch to look at."""

    wait_time: float = Field(default=0.0, ge=0, description="Seconds to wait for its outcome; 30 at most.")


class FilePath(ByName):
    """A file of an experiment."""

    path: str = Field(description="Path below the root.")
    root: Literal["data", "analysis"] | None = Field(default=None, description=_ROOT + " Default: data, else analysis.")


class StatFile(FilePath):
    """A file of an experiment to look at."""

    compression: str | None = Field(default=None, description="Look for the file compressed so, e.g. gz.")
    retrieve_md5_sum: bool = Field(default=False, alias="retrieveMd5Sum", description="Compute the md5 if not known.")


class CheckFiles(ById):
    """Files of an experiment to check."""

    root: Literal["data", "analysis"] = Field(default="data", description=_ROOT)
    paths: list[str] = Field(description="Paths below the root, at most 1,000.")
    read_again: bool = Field(default=False, description="Read and digest the files, not only look at size and time.")


class FileList(ByName):
    """A page of an experiment's published files."""

    root: Literal["data", "analysis"] | None = Field(default=None, description="Only files below this root.")
    after: int = Field(default=0, ge=0, description="nextAfter of the page before.")
    limit: int = Field(default=1000, ge=1, le=10_000, description="Most files of the page.")


class ArchiveByName(ByName):
    """An experiment to download."""

    root: Literal["data", "analysis"] | None = Field(default=None, description="Only files below this root.")


class ArchiveById(ById):
    """An experiment to download."""

    root: Literal["data", "analysis"] | None = Field(default=None, description="Only files below this root.")


class RestorePermissions(ByName):
    """Part of an experiment whose owners and modes are to be set right."""

    relative_path: str = Field(default="", description="Path below the experiment's directory; empty: all of it.")
