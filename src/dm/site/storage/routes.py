"""The routes table of the storage service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dm.common.errors import AuthenticationError, AuthorizationError, InvalidArgument
from dm.common.health import Health
from dm.common.web.common import reset_alarms
from dm.common.web.routes import (
    ADMIN,
    MANAGER,
    READ,
    SERVICE,
    STATION_SCOPES,
    USER,
    Access,
    NoArguments,
    Principal,
    Request,
    Route,
    Stream,
    Who,
)
from dm.common.web.throttle import LoginThrottle
from dm.site.identity.audit_log import AuditLog
from dm.site.identity.ldap.parts import SiteDirectory
from dm.site.identity.lockout import Lockouts
from dm.site.identity.sessions import SqlSessionStore
from dm.site.identity.tokens import Tokens
from dm.site.identity.users import Users
from dm.site.storage import arguments as a
from dm.site.storage import (
    directory_routes,
    globus_routes,
    life_routes,
    lock_routes,
    manifest_routes,
    permission_routes,
    registry_routes,
    token_routes,
)
from dm.site.storage.access import reference
from dm.site.storage.archive import Archives
from dm.site.storage.batches import Batches
from dm.site.storage.download_policy import DownloadPolicy
from dm.site.storage.experiments import Experiments
from dm.site.storage.files import Files
from dm.site.storage.globus_worker import GlobusWorker
from dm.site.storage.grants import HEADER, Grants
from dm.site.storage.members import Members
from dm.site.storage.operations import Operations
from dm.site.storage.permissions import Permissions
from dm.site.storage.recorded import Recorded
from dm.site.storage.registry import Registry

_EXPERIMENT = frozenset({"experimentName"})
_FILE_LIST_LIMIT = 64 << 20

MEMBER_BY_ID = Access(Who.EXPERIMENT, "experiment_id")
MEMBER_BY_NAME = Access(Who.EXPERIMENT, "experiment_name")
MANAGER_BY_ID = Access(Who.MANAGER, "experiment_id")
MANAGER_BY_NAME = Access(Who.MANAGER, "experiment_name")
PI_BY_NAME = Access(Who.PI, "experiment_name")
MANAGER_OF_STATION = Access(Who.MANAGER, "station_name")
ONESELF = Access(Who.OWNER, "username")


@dataclass(frozen=True)
class UseCases:
    """Everything the handlers call."""

    experiments: Experiments
    members: Members
    users: Users
    registry: Registry
    grants: Grants
    batches: Batches
    files: Files
    archives: Archives
    download_policy: DownloadPolicy
    operations: Operations
    life: life_routes.Life
    permissions: Permissions
    permitting: permission_routes.Permitting
    recorded: Recorded
    health: Health
    throttle: LoginThrottle
    lockouts: Lockouts
    tokens: Tokens
    audit_log: AuditLog
    sessions: SqlSessionStore
    directory: SiteDirectory
    globus: GlobusWorker


def routes(use: UseCases) -> list[Route]:
    """Return the table, bound to the use cases."""
    people = [*_people(use), *lock_routes.routes(use.lockouts)]
    people += token_routes.routes(use.tokens, use.audit_log, use.sessions)
    people += directory_routes.routes(use.directory)
    people += life_routes.routes(use.life)
    people += globus_routes.routes(use.globus.groups)
    return [
        *_experiments(use),
        *people,
        *registry_routes.routes(use.registry),
        *_publishing(use),
        *_files(use),
        *manifest_routes.routes(use.recorded),
        *permission_routes.routes(use.permitting),
        *_service(use),
    ]


def _experiments(use: UseCases) -> list[Route]:
    def at_station(request: Request, arguments: a.ByStation) -> list[dict[str, Any]]:
        return use.experiments.at_station(request.principal, arguments.station_name)

    def get(request: Request, arguments: a.ById | a.ByName) -> dict[str, Any]:
        return use.experiments.get(request.principal, reference(arguments))

    def add(request: Request, arguments: a.AddExperiment) -> dict[str, Any]:
        station = arguments.station_name or _only_station(request.principal)
        return use.experiments.add(
            arguments.experiment_name,
            station,
            arguments.changes(),
            storage=arguments.storage_name,
            usernames=arguments.usernames,
        )

    def update(request: Request, arguments: a.UpdateById | a.UpdateByName) -> dict[str, Any]:
        return use.life.updates.update(request.principal, reference(arguments), arguments.changes(), arguments.new_name)

    def delete(request: Request, arguments: a.DeleteById | a.DeleteByName) -> dict[str, Any]:
        return use.life.deletion.delete(request.principal, reference(arguments), arguments.force)

    def metadata(request: Request, arguments: a.UpsertMetadata) -> dict[str, Any]:
        return use.members.upsert_metadata(arguments.key, arguments.value, reference(arguments))

    def operation(request: Request, arguments: a.OperationId) -> dict[str, Any]:
        return use.operations.get(request.principal, arguments.operation_id)

    by_id, by_name = "/experimentsById/{experimentId}", "/experimentsByName/{experimentName}[/{stationName}]"
    return [
        Route("GET", "/experimentsByStation/{stationName}", at_station, USER,
              "List the experiments of a station that the caller may see, newest last.", a.ByStation,
              scopes=STATION_SCOPES),
        Route("GET", by_id, get, MEMBER_BY_ID, "Give an experiment.", a.ById, scopes=STATION_SCOPES),
        Route("GET", by_name, get, MEMBER_BY_NAME, "Give an experiment.", a.ByName, _EXPERIMENT, scopes=STATION_SCOPES),
        Route("POST", "/experiments", add, MANAGER_OF_STATION, "Add an experiment and make its directories.",
              a.AddExperiment, _EXPERIMENT),
        Route("PUT", by_id, update, MANAGER_BY_ID, "Change an experiment.", a.UpdateById),
        Route("PUT", by_name, update, MANAGER_BY_NAME, "Change an experiment.", a.UpdateByName, _EXPERIMENT),
        Route("DELETE", by_id, delete, MANAGER_BY_ID,
              "Begin to delete an experiment with all its files; gives the operation.", a.DeleteById),
        Route("DELETE", by_name, delete, MANAGER_BY_NAME,
              "Begin to delete an experiment with all its files; gives the operation.", a.DeleteByName, _EXPERIMENT),
        Route("PUT", "/experimentMetadata", metadata, MANAGER_BY_NAME,
              "Set one key of an experiment's own metadata.", a.UpsertMetadata, _EXPERIMENT),
        Route("GET", "/operations/{operationId}", operation, MANAGER, "Give an operation.", a.OperationId),
    ]  # fmt: skip


def _people(use: UseCases) -> list[Route]:
    def users(request: Request, arguments: NoArguments) -> list[dict[str, Any]]:
        return use.users.all()

    def user(request: Request, arguments: a.Username) -> dict[str, Any]:
        return use.users.get(arguments.username)

    def add_user(request: Request, arguments: a.UserFields) -> dict[str, Any]:
        return use.users.add(arguments.username, arguments.password, **arguments.details())

    def update_user(request: Request, arguments: a.UserChanges) -> dict[str, Any]:
        return use.users.update(arguments.username, arguments.password, arguments.active, **arguments.details())

    def change_password(request: Request, arguments: a.OwnPassword) -> dict[str, Any]:
        if arguments.username != request.principal.username:
            raise AuthorizationError("Only one's own password can be changed so; administrators set passwords.")
        try:
            with use.throttle.attempt(arguments.username, request.remote):
                return use.users.change_password(arguments.username, arguments.old_password, arguments.new_password)
        except AuthenticationError:
            # 401 would make clients log in again and repeat the call.
            raise InvalidArgument("The old password is not right.") from None

    def add_experiment_role(request: Request, arguments: a.ExperimentRole) -> dict[str, Any]:
        return use.members.add_role(arguments.username, arguments.role_name, reference(arguments))

    def delete_experiment_role(request: Request, arguments: a.ExperimentRole) -> dict[str, Any]:
        return use.members.delete_role(arguments.username, arguments.role_name, reference(arguments))

    def station_roles(request: Request, arguments: a.ByStation) -> list[dict[str, Any]]:
        return use.users.station_roles(arguments.station_name)

    def add_station_role(request: Request, arguments: a.StationRole) -> dict[str, Any]:
        return use.users.add_station_role(arguments.username, arguments.role_name, arguments.station_name)

    def delete_station_role(request: Request, arguments: a.StationRole) -> dict[str, Any]:
        return use.users.delete_station_role(arguments.username, arguments.role_name, arguments.station_name)

    def add_system_role(request: Request, arguments: a.SystemRole) -> dict[str, Any]:
        return use.users.add_system_role(arguments.username, arguments.role_name)

    def delete_system_role(request: Request, arguments: a.SystemRole) -> dict[str, Any]:
        return use.users.delete_system_role(arguments.username, arguments.role_name)

    return [
        Route("GET", "/users", users, MANAGER, "List all users, newest last.", NoArguments),
        Route("GET", "/usersByUsername/{username}", user, ONESELF, "Give a user with roles.", a.Username),
        Route("POST", "/users", add_user, ADMIN, "Add a local user.", a.UserFields, tokens=False),
        Route("PUT", "/usersByUsername/{username}", update_user, ADMIN,
              "Change a user's names or password, or deactivate one.", a.UserChanges, tokens=False),
        Route("PUT", "/usersByUsername/{username}/password", change_password, ONESELF, "Change one's own password.",
              a.OwnPassword, tokens=False),
        Route("POST", "/userExperimentRoles", add_experiment_role, PI_BY_NAME,
              "Make a user member of an experiment.", a.ExperimentRole, _EXPERIMENT),
        Route("DELETE", "/userExperimentRoles", delete_experiment_role, PI_BY_NAME,
              "Take a user's role in an experiment.", a.ExperimentRole, _EXPERIMENT),
        Route("GET", "/userStationRoles/{stationName}", station_roles, MANAGER_OF_STATION,
              "List who has a role at a station.", a.ByStation),
        Route("POST", "/userStationRoles", add_station_role, ADMIN, "Give a user a role at a station.",
              a.StationRole, tokens=False),
        Route("DELETE", "/userStationRoles", delete_station_role, ADMIN, "Take a user's role at a station.",
              a.StationRole, tokens=False),
        Route("POST", "/userSystemRoles", add_system_role, ADMIN, "Make a user an administrator.", a.SystemRole,
              tokens=False),
        Route("DELETE", "/userSystemRoles", delete_system_role, ADMIN, "Take a user's system role.", a.SystemRole,
              tokens=False),
    ]  # fmt: skip


def _publishing(use: UseCases) -> list[Route]:
    def add_grant(request: Request, arguments: a.AddGrant) -> dict[str, Any]:
        return use.grants.add(request.principal, reference(arguments), arguments.purpose)

    def revoke_grant(request: Request, arguments: a.GrantId) -> dict[str, Any]:
        return use.grants.revoke(request.principal, arguments.grant_id)

    def open_batch(request: Request, arguments: a.OpenBatch) -> dict[str, Any]:
        return use.batches.open(
            request.principal,
            request.headers.get(HEADER),
            batch_id=arguments.batch_id,
            experiment_id=arguments.experiment_id,
            root=arguments.root,
            source=arguments.source,
            on_conflict=arguments.on_conflict,
        )

    def submit(request: Request, arguments: a.BatchFiles) -> dict[str, Any]:
        return use.batches.submit(
            request.principal,
            request.headers.get(HEADER),
            arguments.batch_id,
            arguments.files,
            arguments.wait_time,
        )

    def batch(request: Request, arguments: a.WaitBatch) -> dict[str, Any]:
        return use.batches.get(request.principal, arguments.batch_id, arguments.wait_time)

    def abandon(request: Request, arguments: a.BatchId) -> dict[str, Any]:
        return use.batches.abandon(request.principal, arguments.batch_id)

    return [
        Route("POST", "/grants", add_grant, MANAGER_BY_NAME,
              "Let the station publish into an experiment on behalf of the caller.", a.AddGrant, _EXPERIMENT,
              scopes=STATION_SCOPES),
        Route("DELETE", "/grants/{grantId}", revoke_grant, MANAGER, "Revoke a grant.", a.GrantId,
              scopes=STATION_SCOPES),
        Route("POST", "/batches", open_batch, SERVICE,
              "Open a batch and get its staging directory (header Dm-Grant).", a.OpenBatch, scopes=STATION_SCOPES),
        Route("PUT", "/batches/{batchId}/files", submit, SERVICE,
              "Hand over the staged files for verification and publishing (header Dm-Grant).", a.BatchFiles,
              body_limit=_FILE_LIST_LIMIT, scopes=STATION_SCOPES),
        Route("GET", "/batches/{batchId}", batch, SERVICE, "Give a batch's state and outcome.", a.WaitBatch,
              scopes=STATION_SCOPES),
        Route("DELETE", "/batches/{batchId}", abandon, SERVICE, "Give a batch up and sweep its staging.", a.BatchId,
              scopes=STATION_SCOPES),
    ]  # fmt: skip


def _files(use: UseCases) -> list[Route]:
    def listing(request: Request, arguments: a.FileList) -> dict[str, Any]:
        return use.files.page(request.principal, reference(arguments), arguments.root, arguments.after, arguments.limit)

    def stat(request: Request, arguments: a.StatFile) -> dict[str, Any]:
        return use.files.stat(
            request.principal,
            reference(arguments),
            arguments.path,
            arguments.root,
            arguments.compression or "",
            arguments.retrieve_md5_sum,
        )

    def check(request: Request, arguments: a.CheckFiles) -> dict[str, Any]:
        return use.files.check(
            request.principal, reference(arguments), arguments.root, arguments.paths, arguments.read_again
        )

    def download(request: Request, arguments: a.FilePath) -> Stream:
        use.download_policy.check(request, reference(arguments))
        return use.files.download(request.principal, reference(arguments), arguments.path, arguments.root)

    def archive(request: Request, arguments: a.ArchiveByName | a.ArchiveById) -> Stream:
        use.download_policy.check(request, reference(arguments))
        return use.archives.download(request.principal, reference(arguments), arguments.root)

    def restore(request: Request, arguments: a.RestorePermissions) -> dict[str, Any]:
        return use.permissions.restore(reference(arguments), arguments.relative_path)

    path = _EXPERIMENT | {"path"}
    return [
        Route("GET", "/files", listing, MEMBER_BY_NAME, "List an experiment's published files by pages.", a.FileList,
              _EXPERIMENT),
        Route("GET", "/files/stat", stat, MEMBER_BY_NAME, "Give a file's record; says whether it is verified.",
              a.StatFile, path),
        Route("POST", "/experimentsById/{experimentId}/files/check", check, MEMBER_BY_ID,
              "Say of many files whether they are on disk as they were verified.", a.CheckFiles,
              body_limit=_FILE_LIST_LIMIT, scopes=STATION_SCOPES | {READ}),
        Route("GET", "/files/download", download, MEMBER_BY_NAME, "Download a file; ranges work.", a.FilePath, path),
        Route("GET", "/files/archive", archive, MEMBER_BY_NAME,
              "Download an experiment's published files as a tar; ranges work.", a.ArchiveByName, _EXPERIMENT),
        Route("GET", "/experimentsById/{experimentId}/archive", archive, MEMBER_BY_ID,
              "Download an experiment's published files as a tar; ranges work.", a.ArchiveById),
        Route("POST", "/files/restorePermissions", restore, MANAGER_BY_NAME,
              "Give files and directories of an experiment their owner and mode again.", a.RestorePermissions,
              _EXPERIMENT | {"relativePath"}),
    ]  # fmt: skip


def _service(use: UseCases) -> list[Route]:
    return [reset_alarms(use.health, ADMIN, "Forget problems reported earlier and check anew.")]


def _only_station(principal: Principal) -> str:
    stations = sorted(station for station in principal.station_roles if principal.manages(station))
    if len(stations) != 1:
        known = ", ".join(stations) or "you manage none"
        raise InvalidArgument(f"Name the station of the experiment (stationName): {known}.")
    return stations[0]
