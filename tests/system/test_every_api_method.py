"""Every public method of every published API class, called over real HTTPS on a whole running suite.

The classes' public methods are wrapped: a call that comes back as it should is noted and the last test names the
methods that none of the scenarios called. ``test_every_route.py`` then reads from the services what they answered.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import json
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from dm import (
    ApsDbApiFactory,
    ApsUserDbApi,
    AuthDsApi,
    AuthenticationError,
    AuthorizationError,
    BssApsDbApi,
    CatApiFactory,
    CommunicationError,
    DaqApiFactory,
    DatasetCatApi,
    DmApiFactory,
    DsApiFactory,
    EsafApsDbApi,
    ExperimentDaqApi,
    ExperimentDsApi,
    FileCatApi,
    FileDsApi,
    InspectionDsApi,
    InvalidArgument,
    InvalidObjectState,
    InvalidRequest,
    InvalidSession,
    ObjectAlreadyExists,
    ObjectNotFound,
    ProcApiFactory,
    ProcZmqApi,
    RunCatApi,
    ServiceMonitorCatApi,
    ServiceMonitorDaqApi,
    ServiceMonitorDsApi,
    TaskTimeout,
    TokenDsApi,
    UserDsApi,
    WorkflowProcApi,
)
from dm.common import settings
from dm.common.client import RestClient
from dm.common.hosting import free_port
from dm.site.facility.api import ServiceMonitorApsDbApi
from dm.site.storage.api import GlobusDsApi, StorageServiceApi
from dm.site.storage.settings import StorageSettings
from dm.station.catalog.api import CatalogServiceApi
from dm.station.processing.api import ServiceMonitorProcApi
from tests import live
from tests.live import STATION, Suite
from tests.service import globus_fixtures, ldap_fixtures, slapd_server, storage_fixtures

CLASSES = (
    GlobusDsApi, ExperimentDsApi, UserDsApi, FileDsApi, AuthDsApi, TokenDsApi, ServiceMonitorDsApi, StorageServiceApi,
    InspectionDsApi, ExperimentDaqApi, ServiceMonitorDaqApi,
    FileCatApi, DatasetCatApi, RunCatApi, ServiceMonitorCatApi, CatalogServiceApi,
    WorkflowProcApi, ServiceMonitorProcApi, ProcZmqApi,
    BssApsDbApi, EsafApsDbApi, ApsUserDbApi, ServiceMonitorApsDbApi,
)  # fmt: skip
NOT_OFFERED = {("ExperimentDaqApi", "isolateExperiment")}  # answers with the published error, see test_isolation
SECONDS = 60.0
CONTENTS = {"a.dat": b"alpha" * 1000, "run1/b.dat": b"beta", "run1/deep er/c.h5": b"", "result.txt.gz": b"gz" * 9}

# Published orders of positional arguments.
ORDERS = {
    WorkflowProcApi: {
        "addWorkflow": "workflow",
        "updateWorkflow": "workflow",
        "upsertWorkflow": "workflow",
        "getWorkflowByName": "owner name",
        "getWorkflowById": "owner id",
        "deleteWorkflowByName": "owner name",
        "listWorkflows": "owner",
        "startProcessingJob": "workflowOwner workflowName argsDict",
        "getProcessingJobById": "owner id",
        "listProcessingJobs": "owner queryDict skip limit keyList",
    },
    ExperimentDaqApi: {
        "startDaq": "experimentName dataDirectory daqInfo",
        "stopDaq": "experimentName dataDirectory",
        "listDaqs": "",
        "getDaqInfo": "id",
        "clearDaq": "id",
        "upload": "experimentName dataDirectory daqInfo",
        "stopUpload": "id",
        "listUploads": "",
        "getUploadInfo": "id",
        "clearUpload": "id",
        "listProcessingPlugins": "",
        "listUploadRecords": "queryDict",
    },
    ExperimentDsApi: {
        "addExperiment": "experimentName stationName typeName description rootPath storageName globusGroupId startDate "
        "endDate managedDirectoryStructure beamlineUserAccount beamlineAdminAccount",
        "updateExperiment": "experimentId experimentName startDate endDate typeName description rootPath",
        "getExperimentByName": "experimentName stationName",
        "getExperimentById": "experimentId",
        "getExperimentsByStation": "stationName",
        "deleteExperimentByName": "experimentName stationName",
        "deleteExperimentById": "experimentId",
        "upsertExperimentMetadata": "key value experimentName",
        "downloadFile": "experimentFilePath experimentName destDir",
    },
    UserDsApi: {
        "getUsers": "",
        "getUserByUsername": "username",
        "addUserExperimentRole": "username roleName experimentName stationName",
        "deleteUserExperimentRole": "username roleName experimentName stationName",
    },
    FileDsApi: {"statFile": "experimentFilePath experimentName"},
    FileCatApi: {
        "addExperimentFile": "fileMetadata",
        "updateExperimentFile": "fileMetadata",
        "updateExperimentFileById": "fileMetadata",
        "updateExperimentFiles": "fileMetadataList",
        "updateExperimentFilesAsync": "fileMetadataList",
        "getAsyncUpdateStatus": "updateId",
        "getExperimentFile": "experimentName experimentFilePath",
        "getExperimentFileById": "experimentName id",
        "getExperimentFiles": "experimentName queryDict skip limit keyList rawData",
        "deleteExperimentFile": "experimentName experimentFilePath",
        "deleteExperimentFileById": "experimentName id",
        "getExperimentFileCollectionStats": "experimentName",
        "renameExperimentFileCollection": "experimentName newExperimentName",
        "deleteExperimentFileCollection": "experimentName",
    },
    DatasetCatApi: {
        "addExperimentDataset": "datasetInfo",
        "updateExperimentDataset": "datasetInfo",
        "updateDatasetById": "datasetInfo",
        "getDatasets": "",
        "getExperimentDatasets": "experimentName",
        "getDatasetById": "id",
        "getExperimentDataset": "experimentName datasetName",
        "getExperimentDatasetFiles": "experimentName datasetName",
    },
    RunCatApi: {"addExperimentRun": "runInfo", "getExperimentRuns": "experimentName"},
    BssApsDbApi: {
        "listRuns": "",
        "getCurrentRun": "",
        "listBeamlines": "",
        "listProposals": "beamlineName runName",
        "getProposal": "id runName beamlineName",
        "listStationProposals": "stationName beamlineName runName",
        "getStationProposalById": "stationName id runName",
    },
    EsafApsDbApi: {
        "listEsafs": "sector year",
        "getEsaf": "id",
        "listStationEsafs": "stationName beamlineName year",
        "getStationEsafById": "stationName id",
        "listStationEsafsByDateRange": "stationName startDate endDate",
    },
    ServiceMonitorDsApi: {"getServiceStatus": "", "clearServiceStatus": ""},
}


def keys(text: str) -> set[str]:
    return set(text.split())


# Keys clients cannot do without.
SHORT_EXPERIMENT = keys(
    "id name description experimentType experimentTypeId experimentStation experimentStationId primaryStorage "
    "primaryStorageId startDate endDate createDate updateDate authGroupName"
)
FULL_EXPERIMENT = SHORT_EXPERIMENT | keys(
    "stationName experimentUsernameList storageDirectory storageHost storageUrl dataDirectory analysisDirectory "
    "systemDirectory dataDirectoryFrozen analysisDirectoryFrozen managedDirectoryStructure beamlineUserAccount "
    "beamlineAdminAccount"
)
USER = keys("id username badge firstName middleName lastName email isLocalUser lastUpdate")
FILE = keys("id fileName experimentFilePath experimentName fileSize fileModificationTime md5Sum")
TASK = keys(
    "id experimentName experimentStationName dataDirectory status countFiles nProcessedFiles nCompletedFiles "
    "nProcessingErrors nWaitingFiles percentageComplete processingErrors errorMessage startTime startTimestamp "
    "storageDirectory storageHost storageUrl workflowJobOwner"
)
ENDED = {"endTime", "endTimestamp", "runTime"}
STATS = keys("countFiles collectionSize averageFileSize minFileSize maxFileSize stdDevFileSize experimentName")
WORKFLOW = keys("name owner userAccount description id stages")
JOB = keys("id owner status submissionTime submissionTimestamp countFiles workflow")
CHILD = keys(
    "childProcessNumber stageId command workingDir status submitTime startTime endTime runTime exitStatus stdOut stdErr"
)


def public_methods(cls: type) -> list[str]:
    """Return the names of the methods that are for callers, inherited ones too."""
    return [name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")]


class Recorder:
    """Notes calls of API methods that came back as they should, and calls through.

    What a method calls on its own behalf is not noted.
    """

    def __init__(self) -> None:
        self.called: set[tuple[str, str]] = set()
        self._inside = threading.local()

    def watch(self, patch: pytest.MonkeyPatch, cls: type) -> None:
        """Wrap the public methods of a class."""
        for name in public_methods(cls):
            patch.setattr(cls, name, self._noting(cls, name, getattr(cls, name)))

    def _noting(self, cls: type, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def noting(*args: Any, **options: Any) -> Any:
            outermost = not getattr(self._inside, "on", False)
            self._inside.on = True
            try:
                result = method(*args, **options)
                if outermost:
                    self.called.add((cls.__name__, name))
                return result
            finally:
                if outermost:
                    self._inside.on = False

        return noting


@pytest.fixture(scope="module")
def recorder(suite: Suite) -> Iterator[Recorder]:
    """The recorder, in an environment as after ``source dm.setup.sh``."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in suite.environment.items():
            if name.startswith("DM_"):
                patch.setenv(name, value)
        for cls in CLASSES:
            recorder.watch(patch, cls)
        yield recorder


@pytest.fixture
def opened(recorder: Recorder) -> Iterator[Callable[[Any], Any]]:
    """A function that closes the API object it is given after the test, and returns it."""
    with contextlib.ExitStack() as stack:

        def note(api: Any) -> Any:
            stack.callback(api.close)
            return api

        yield note


@pytest.fixture
def experiment(opened: Callable[[Any], Any], request: pytest.FixtureRequest) -> str:
    name = f"api-{request.node.name.removeprefix('test_').replace('_', '-')}"
    opened(ExperimentDsApi()).addExperiment(name, typeName="TEST")
    return name


@pytest.fixture
def source(open_directory: Path) -> Path:
    """A data directory with the files of :data:`CONTENTS`."""
    return files_in(open_directory / "source", CONTENTS)


@pytest.fixture
def service(opened: Callable[[Any], Any], suite: Suite) -> StorageServiceApi:
    """The API of grants and batches under the station's service account."""
    login = suite.installed.layout.login_file(suite.installed.plan.service_account)
    username, _, password = login.read_text().strip().partition("|")
    return opened(StorageServiceApi(username, password))


@pytest.fixture
def taken(opened: Callable[[Any], Any], experiment: str, service: StorageServiceApi) -> str:
    """An experiment in which a.dat of :data:`CONTENTS` fails: its place is taken by other bytes."""
    grant = opened(StorageServiceApi()).addGrant(experiment, "daq")
    storage_fixtures.publish(service, grant, {"a.dat": b"other bytes"})
    return experiment


def test_globus_groups(
    opened: Callable[[Any], Any], new_postgres_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> None:
    """On a site of its own, with a stand-in for Globus."""
    with globus_fixtures.running_globus_site(new_postgres_database(), certificates, tmp_path) as (site, globus):
        site.experiments(storage_fixtures.MANAGER).addExperiment("globus", STATION)
        login = storage_fixtures.MANAGER, storage_fixtures.password_of(storage_fixtures.MANAGER)
        groups = opened(GlobusDsApi(*login, site.url, ca_file=site.ca_file))
        group = groups.createGlobusGroup("globus")
        assert groups.getGlobusGroup("globus") == group and groups.getGlobusGroups() == [group]
        groups.addGlobusGroupMembers("globus", admins=[storage_fixtures.ALICE])
        alice = globus_fixtures.identity(storage_fixtures.ALICE)
        assert globus.groups.members(group["id"])[alice] == "admin"
        groups.deleteGlobusGroupMembers("globus", [storage_fixtures.ALICE])
        assert groups.syncGlobusGroup("globus", dryRun=True)["removed"] == []
        assert groups.deleteGlobusGroup("globus")["id"] == group["id"] and globus.groups.groups == {}
        live.ANSWERED_ELSEWHERE.setdefault("storage", set()).update(live.answered_well(site.rest()))


def test_moved_archived_and_pinned(
    opened: Callable[[Any], Any], new_postgres_database: Callable[[], str], certificates: Path, tmp_path: Path
) -> None:
    """On a site of its own, with two storages and an archive."""
    archive, second = tmp_path / "archive", tmp_path / "second"
    archive.mkdir()
    second.mkdir()
    with storage_fixtures.running_site(
        new_postgres_database(), certificates, tmp_path / "site", archive_directory=archive
    ) as site:
        login = storage_fixtures.ADMIN, storage_fixtures.password_of(storage_fixtures.ADMIN)
        experiments = opened(ExperimentDsApi(*login, site.url, ca_file=site.ca_file))
        made = experiments.addExperiment("life", STATION)
        experiments.addStorage("SECOND", "localhost", str(second))
        assert experiments.pinExperiment("life", 1, STATION)["pinnedByUser"] == storage_fixtures.ADMIN
        for begin in (experiments.archiveExperiment, experiments.restoreArchivedExperiment):
            task = begin("life", STATION)
            until(lambda id=task["id"]: experiments.getArchiveTask(id)["status"] == "done")
        assert [task["id"] for task in experiments.listArchiveTasks()][-1] == task["id"]
        moved = experiments.moveExperiment("life", "SECOND", STATION)
        until(lambda: experiments.getOperation(moved["id"])["status"] == "done")
        assert experiments.getExperimentById(made["id"])["storageDirectory"].startswith(str(second))
        live.ANSWERED_ELSEWHERE.setdefault("storage", set()).update(live.answered_well(site.rest()))


def test_groups_in_ldap(
    opened: Callable[[Any], Any],
    new_postgres_database: Callable[[], str],
    certificates: Path,
    tmp_path: Path,
) -> None:
    """On a site of its own, with a real LDAP server beside it."""
    with (
        slapd_server.running_slapd(tmp_path / "slapd") as slapd,
        ldap_fixtures.site_with_ldap(new_postgres_database(), certificates, tmp_path / "site", slapd) as site,
    ):
        group = site.experiments(storage_fixtures.MANAGER).addExperiment("ldap")["authGroupName"]
        login = storage_fixtures.ADMIN, storage_fixtures.password_of(storage_fixtures.ADMIN)
        administrator = opened(UserDsApi(*login, site.url, ca_file=site.ca_file))
        slapd_server.until(lambda: administrator.getGroupSync()["waiting"] == 0)
        assert slapd.members(group) == {storage_fixtures.MANAGER, storage_fixtures.SERVICE}
        assert administrator.syncGroups(dryRun=True)["drift"] == 0
        live.ANSWERED_ELSEWHERE.setdefault("storage", set()).update(live.answered_well(site.rest()))


@pytest.fixture
def plain_registry(suite: Suite) -> Iterator[None]:
    """Take stations and storages away again, also after a failure: others count on a single storage."""
    engine = sqlalchemy.create_engine(
        settings.load(StorageSettings, "storage", suite.installed.layout.settings).database_url
    )
    yield
    with engine.begin() as connection:
        for table in ("storages", "stations"):
            connection.execute(sqlalchemy.text(f"DELETE FROM {table} WHERE name LIKE 'SWEPT%'"))
    engine.dispose()


def files_in(directory: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def until(what: Callable[[], Any]) -> Any:
    """Call until the result is true, and return it."""
    deadline = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def growing(path: Path) -> Iterator[None]:
    """Keep a file growing: an upload waits for it."""
    stop = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as stream:
            while not stop.wait(0.05):
                stream.write(b".")

    path.touch()
    writer = threading.Thread(target=write, name="growing")
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


# --- construction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ORDERS, ids=lambda cls: cls.__name__)
def test_published_orders_of_arguments(cls: type) -> None:
    for name, order in ORDERS[cls].items():
        first = list(inspect.signature(getattr(cls, name)).parameters)[1:]
        assert first[: len(order.split())] == order.split(), f"{cls.__name__}.{name}"


def test_construction(opened: Callable[[Any], Any], suite: Suite) -> None:
    for cls, variable, probe in (
        (ExperimentDsApi, "DM_DS_WEB_SERVICE_URL", lambda api: api.getExperimentsByStation()),
        (ExperimentDaqApi, "DM_DAQ_WEB_SERVICE_URL", lambda api: api.listDaqs()),
        (FileCatApi, "DM_CAT_WEB_SERVICE_URL", lambda api: api.getExperimentFiles("nothing")),
        (WorkflowProcApi, "DM_PROC_WEB_SERVICE_URL", lambda api: api.listWorkflows()),
    ):
        url = suite.environment[variable]
        username, password = suite.manager
        for api in (
            cls(),
            cls(url),
            cls(f"{url}/dm"),
            cls(username, password, url),
            cls(username=username, password=password, url=f"{url}/dm/"),
        ):
            assert opened(api).username == username
            if cls is FileCatApi:  # a real answer, too
                with pytest.raises(ObjectNotFound, match="does not exist"):
                    probe(api)
            else:
                assert isinstance(probe(api), list)
        with pytest.raises(AuthenticationError, match="Incorrect username or password"):
            probe(opened(cls(suite.administrator[0], "wrong-password", url)))


def test_factories(opened: Callable[[Any], Any], suite: Suite) -> None:
    for factory, methods in (
        (ProcApiFactory, {"getWorkflowProcApi": WorkflowProcApi}),
        (
            DaqApiFactory,
            {"getExperimentDaqApi": ExperimentDaqApi, "getServiceMonitorDaqApi": ServiceMonitorDaqApi},
        ),
        (
            DsApiFactory,
            {
                "getExperimentDsApi": ExperimentDsApi,
                "getUserDsApi": UserDsApi,
                "getFileDsApi": FileDsApi,
                "getAuthDsApi": AuthDsApi,
                "getEsafDsApi": EsafApsDbApi,
                "getServiceMonitorDsApi": ServiceMonitorDsApi,
            },
        ),
        (
            CatApiFactory,
            {
                "getFileCatApi": FileCatApi,
                "getDatasetCatApi": DatasetCatApi,
                "getRunCatApi": RunCatApi,
                "getServiceMonitorCatApi": ServiceMonitorCatApi,
            },
        ),
        (
            ApsDbApiFactory,
            {
                "getBssApsDbApi": BssApsDbApi,
                "getEsafApsDbApi": EsafApsDbApi,
                "getApsUserDbApi": ApsUserDbApi,
                "getServiceMonitorApsDbApi": ServiceMonitorApsDbApi,
            },
        ),
    ):
        assert {name for name in vars(factory) if name.startswith("get")} == set(methods)
        for name, cls in methods.items():
            for maker in (factory, DmApiFactory(*suite.manager)):
                api = opened(getattr(maker, name)())
                assert type(api) is cls and api.username == suite.manager[0]


# --- people and experiments ------------------------------------------------------------------------------------


def test_people(opened: Callable[[Any], Any], suite: Suite) -> None:
    name = "d700001"
    administrator = opened(DsApiFactory.getUserDsApi(*suite.administrator))
    users = opened(UserDsApi())
    added = administrator.addUser(name, "pass-word-1", "Ada", "Byron", email="a@example.org")
    assert set(added) >= USER and added.getUsername() == name
    assert (added["badge"], added["firstName"], added["lastName"], added["isLocalUser"]) == (
        700001, "Ada", "Byron", True,
    )  # fmt: skip
    with pytest.raises(ObjectAlreadyExists, match=name):
        administrator.addUser(name)
    with pytest.raises(AuthorizationError):
        users.addUser("d700002")
    assert administrator.updateUser(name, middleName="King")["middleName"] == "King"
    listed = users.getUsers()[-1]
    assert listed["username"] == name and set(listed) >= USER
    found = users.getUserByUsername(name)
    assert (found["systemRoles"], found["stationRoles"]) == ([], {}) and "password" not in found

    own = opened(UserDsApi(name, "pass-word-1"))
    assert own.changePassword("pass-word-1", "other-word-2")["username"] == name
    auth = opened(AuthDsApi())
    with pytest.raises(AuthenticationError, match="Incorrect username or password"):
        auth.authenticateUser(name, "pass-word-1")
    assert auth.authenticateUser(name, "other-word-2") == {"username": name, "systemRoles": [], "stationRoles": {}}
    assert auth.authenticateUser()["stationRoles"] == {STATION: ["manager"]}
    assert auth.getAuthenticatedUser()["username"] == suite.manager[0]
    session = auth.client.cookie
    with contextlib.closing(RestClient(auth.url, session=session)) as same:
        assert same.get("/session")["username"] == suite.manager[0]
        auth.logout()
        with pytest.raises(InvalidSession, match="log in again"):
            same.get("/session")

    role = {"username": name, "roleName": "manager", "stationName": STATION}
    assert administrator.addUserStationRole(name, "manager") == role
    assert role in [record.data for record in users.getUserStationRoles()]
    assert opened(AuthDsApi(name, "other-word-2")).authenticateUser()["stationRoles"] == {STATION: ["manager"]}
    assert administrator.deleteUserStationRole(name, "manager", STATION) == role
    assert role not in [record.data for record in users.getUserStationRoles(STATION)]
    assert administrator.addUserSystemRole(name)["roleName"] == "administrator"
    assert users.getUserByUsername(name)["systemRoles"] == ["administrator"]
    assert administrator.deleteUserSystemRole(name, "administrator")["username"] == name
    assert users.getUserByUsername(name)["systemRoles"] == []
    assert name not in [lock["username"] for lock in administrator.getLoginLocks()]
    assert administrator.unlockUser(name)["username"] == name

    own = opened(TokenDsApi(name, "other-word-2"))
    token = own.addToken("of a test", ["read"], days=1)
    assert [record["id"] for record in own.getTokens()] == [token["id"]]
    assert next(session["current"] for session in own.getSessions())
    assert own.endOtherSessions() >= 1 and len(own.getSessions()) == 1
    assert own.revokeToken(token["id"])["status"] == "revoked" and own.getTokens() == []
    events = opened(TokenDsApi(*suite.administrator)).getAuditEvents("token", name)
    assert [event["event"] for event in events] == ["token.added", "token.revoked"]


def test_experiments(opened: Callable[[Any], Any], suite: Suite) -> None:
    experiments = opened(DsApiFactory.getExperimentDsApi())
    (storage,) = experiments.getStorages()
    assert set(storage) >= {"id", "name", "description", "storageHost", "storageDirectory"}
    # in the order of the station GUI
    added = experiments.addExperiment(
        "api-gui", STATION, "TEST", "of a test", "2026-1", storage["name"], None, "05-Mar-26", "07-Mar-26", True, "", ""
    )
    assert set(added) >= FULL_EXPERIMENT
    directory = f"{storage['storageDirectory']}/{STATION}/2026-1/api-gui"
    assert added["storageDirectory"] == directory and added["dataDirectory"] == f"{directory}/data"
    assert Path(added["dataDirectory"]).is_dir()
    assert added["storageUrl"] == f"{storage['name'].lower()}://{storage['storageHost']}{directory}"
    assert added["startDate"].startswith("2026-03-05 00:00:00") and added["endDate"].startswith("2026-03-07")
    for key in ("primaryStorage", "experimentStation", "experimentType"):
        assert set(added[key]) == {"id", "name", "description"} and added[key]["id"] == added[f"{key}Id"]
    # by keyword, as DMagic does
    other = experiments.addExperiment(
        "api-dmagic", typeName=STATION, description="d", rootPath="2026-1", startDate="05-Mar-26", endDate="06-Mar-26"
    )
    assert other["name"] == "api-dmagic" and other["stationName"] == STATION
    with pytest.raises(ObjectAlreadyExists, match="api-dmagic"):
        experiments.addExperiment("api-dmagic", typeName="TEST")
    with pytest.raises(InvalidArgument, match="someday"):
        experiments.addExperiment("api-never", startDate="someday")
    with pytest.raises(ObjectNotFound, match="does not exist"):
        experiments.getExperimentByName("api-never")

    assert experiments.getExperimentByName("api-gui") == experiments.getExperimentByName("api-gui", STATION) == added
    assert experiments.getExperimentById(added["id"]) == added
    listed = experiments.getExperimentsByStation()
    assert all(set(record) >= SHORT_EXPERIMENT for record in listed)
    assert [record["name"] for record in listed][-2:] == ["api-gui", "api-dmagic"]
    assert listed == experiments.getExperimentsByStation(STATION)

    experiments.upsertExperimentMetadata("emailedUsers", ["d1", {"2": None}], "api-gui")
    assert experiments.getExperimentByName("api-gui")["emailedUsers"] == ["d1", {"2": None}]
    changed = experiments.updateExperiment(
        experimentId=added["id"], experimentName="api-gui-2", startDate="06-Mar-26", endDate="08-Mar-26",
        typeName=STATION, description="another", rootPath="2026-2",
    )  # fmt: skip
    assert (changed["name"], changed["description"], changed["rootPath"]) == ("api-gui-2", "another", "2026-2")
    assert changed["experimentType"]["name"] == STATION and changed["id"] == added["id"]
    assert experiments.updateExperiment(experimentName="api-gui-2", dataDirectoryFrozen=True)["dataDirectoryFrozen"]

    for begun in (experiments.deleteExperimentById(added["id"]), experiments.deleteExperimentByName("api-dmagic")):
        assert set(begun) >= {"id", "name", "experimentName", "status"}
        ended = until(lambda id=begun["id"]: experiments.getOperation(id)["status"] not in ("pending", "running"))
        assert ended and experiments.getOperation(begun["id"])["status"] == "done"
    assert not {"api-gui-2", "api-dmagic"} & {record["name"] for record in experiments.getExperimentsByStation()}
    waiting = {record["name"]: record["id"] for record in experiments.getDeletedExperiments(STATION)}
    back = experiments.restoreDeletedExperiment(waiting["api-gui-2"], newName="api-gui-3")
    assert back["name"] == "restoreDeletedExperiment"
    until(lambda: experiments.getOperation(back["id"])["status"] == "done")
    assert "emailedUsers" not in experiments.deleteExperimentMetadata("emailedUsers", "api-gui-3")
    purged = opened(ExperimentDsApi(*suite.administrator)).purgeDeletedExperiment(waiting["api-dmagic"])
    until(lambda: experiments.getOperation(purged["id"])["status"] == "done")
    assert not {"api-gui-2", "api-dmagic"} & {record["name"] for record in experiments.getDeletedExperiments()}


def test_members(opened: Callable[[Any], Any], suite: Suite, experiment: str) -> None:
    member = "d700003"
    opened(UserDsApi(*suite.administrator)).addUser(member, "pass-word-1")
    users, experiments = opened(UserDsApi()), opened(ExperimentDsApi())
    theirs = opened(ExperimentDsApi(member, "pass-word-1"))
    with pytest.raises(ObjectNotFound, match="does not exist"):
        theirs.getExperimentByName(experiment)
    role = users.addUserExperimentRole(member, "User", experiment)
    assert role == {
        "username": member, "roleName": "User", "experimentName": experiment, "stationName": STATION,
    }  # fmt: skip
    with pytest.raises(ObjectAlreadyExists, match=member):
        users.addUserExperimentRole(member, "User", experiment, STATION)
    users.addUserExperimentRole(member, "PI", experiment, STATION)
    assert experiments.getExperimentByName(experiment)["experimentUsernameList"] == [member]
    assert [record["name"] for record in theirs.getExperimentsByStation()] == [experiment]
    users.deleteUserExperimentRole(member, "PI", experiment)
    users.deleteUserExperimentRole(member, "User", experiment, STATION)
    with pytest.raises(ObjectNotFound):
        theirs.getExperimentByName(experiment)


@pytest.mark.usefixtures("plain_registry")
def test_registry(opened: Callable[[Any], Any], suite: Suite, open_directory: Path) -> None:
    registry = opened(ExperimentDsApi(*suite.administrator))
    experiments = opened(ExperimentDsApi())
    station = registry.addStation("SWEPT-9", "described")
    assert experiments.getStations()[-1] == station and station["description"] == "described"
    storage = registry.addStorage("SWEPT", "localhost", str(open_directory))
    assert experiments.getStorages()[-1] == storage and storage["storageDirectory"] == str(open_directory)
    kind = registry.addExperimentType("SWEPT", "a type")
    assert experiments.getExperimentTypes()[-1] == kind and set(kind) == {"id", "name", "description"}
    for refused in (registry.addStation, registry.addExperimentType):
        with pytest.raises(ObjectAlreadyExists):
            refused(STATION)
    with pytest.raises(AuthorizationError):
        experiments.addStation("SWEPT-10")
    assert registry.updateStation("SWEPT-9", pathTemplate="{station}/{name}")["pathTemplate"] == "{station}/{name}"
    assert registry.updateStorage("SWEPT", retired=True)["retired"] is True
    assert registry.updateExperimentType("SWEPT", "SWEPT-2")["name"] == "SWEPT-2"
    for removed in (
        registry.deleteStation("SWEPT-9"),
        registry.deleteStorage("SWEPT"),
        registry.deleteExperimentType("SWEPT-2"),
    ):
        assert removed["name"].startswith("SWEPT")


# --- acquisition -----------------------------------------------------------------------------------------------


def test_uploads(opened: Callable[[Any], Any], experiment: str, source: Path) -> None:
    daq = opened(DaqApiFactory.getExperimentDaqApi())
    assert [plugin["name"] for plugin in daq.listProcessingPlugins()] == ["metadata", "catalog", "workflow"]
    begun = daq.upload(experiment, str(source), {"destDirectory": "d1", "excludeFileExtensions": "h5", "sample": "Cu"})
    assert set(begun) >= TASK and begun["status"] in ("pending", "running") and begun["sample"] == "Cu"
    seen: list[str] = []
    ended = daq.waitUpload(begun["id"], SECONDS, lambda info: seen.append(info["status"]))
    assert set(ended) >= TASK | ENDED and ended["status"] == "done" and seen[-1] == "done"
    assert (ended["countFiles"], ended["nCompletedFiles"], ended["nProcessingErrors"]) == (3, 3, 0)
    assert ended["percentageComplete"] == 100 and ended["runTime"] > 0
    assert ended["storageDirectory"] == opened(ExperimentDsApi()).getExperimentByName(experiment)["dataDirectory"]
    assert not ended["storageUrl"].endswith("/data")
    assert daq.getUploadInfo(begun["id"]) == daq.getUploadInfo(begun["id"], 0.01)
    assert daq.getUploadInfo(begun["id"])["status"] == "done"
    assert [record["id"] for record in daq.listUploads()][-1] == begun["id"]
    files = daq.listUploadFiles(begun["id"])
    assert {record["path"]: record["state"] for record in files} == dict.fromkeys(
        ["a.dat", "run1/b.dat", "result.txt.gz"], "done"
    )
    assert len(daq.listUploadFiles(begun["id"], "done", 1, 1)) == 1 and daq.listUploadFiles(begun["id"], "failed") == []
    # nothing new
    again = daq.waitUpload(
        daq.upload(experiment, str(source), {"destDirectory": "d1", "excludeFileExtensions": "h5"})["id"], SECONDS
    )
    assert again["countFiles"] == 0 and "no new files" in again["errorMessage"].lower()
    assert daq.stopUpload(begun["id"])["status"] == "done"  # as it was
    assert {record["fate"] for record in daq.pruneUploadSource(begun["id"])} == {"removable"}
    assert daq.clearUpload(begun["id"])["id"] == begun["id"]
    assert [record["id"] for record in daq.listUploads(experiment)] == [again["id"]]
    known = daq.listUploadRecords({"experimentName": experiment})
    assert [record["id"] for record in known] == [begun["id"], again["id"]]
    assert daq.listUploadRecords(queryDict={"experimentName": experiment}, skip=1, limit=1)[0]["id"] == begun["id"]
    with pytest.raises(ObjectNotFound):
        daq.getUploadInfo(begun["id"])


def test_failed_files_of_an_upload(opened: Callable[[Any], Any], taken: str, source: Path) -> None:
    daq = opened(ExperimentDaqApi())
    with growing(source / "growing.dat"):
        upload = daq.upload(taken, str(source))["id"]
        (failed,) = until(lambda: daq.listUploadFiles(upload, "failed"))
        assert failed["path"] == "a.dat" and failed["lastError"]
        assert daq.retryUploadFiles(upload, "a.dat") == {"count": 1}
        assert daq.retryUploadFiles(upload, "none") == {"count": 0}
        assert daq.stopUpload(upload)["id"] == upload
        assert daq.waitUpload(upload, SECONDS)["status"] == "aborted"
    assert set(daq.retryUploadFiles(upload)) == {"count"}  # it has ended, and goes on for them
    assert daq.waitUpload(upload, SECONDS)["status"] in ("done", "failed", "aborted")


def test_single_files(opened: Callable[[Any], Any], taken: str, source: Path) -> None:
    """What became of each file of a DAQ and of an upload, and what a person can have done about it."""
    daq = opened(ExperimentDaqApi())
    begun = daq.startDaq(taken, str(source), {"processExistingFiles": True})["id"]
    until(lambda: daq.listDaqFiles(begun, "failed"))
    reached = daq.waitFile("run1/b.dat", begun, until="cataloged", timeout=SECONDS)
    assert (reached["reached"], reached["daqId"], reached["experimentFilePath"]) == (True, begun, "run1/b.dat")
    assert daq.waitFile(experimentName=taken, path="run1/b.dat")["state"] == "done"
    with pytest.raises(TaskTimeout, match="its state is 'unknown'"):
        daq.waitFile("not/yet", begun, timeout=0.3)
    daq.stopDaq(taken, str(source))
    assert daq.waitDaq(begun, SECONDS)["nProcessingErrors"] == 1
    upload = daq.upload(taken, str(source), {"reprocessFiles": True})["id"]
    assert daq.waitUpload(upload, SECONDS)["nProcessingErrors"] == 1
    for kind, task in (("Daq", begun), ("Upload", upload)):

        def call(name: str, *args: Any, _kind: str = kind, _task: str = task, **options: Any) -> Any:
            return getattr(daq, name.format(_kind))(_task, *args, **options)

        wait = daq.waitDaq if kind == "Daq" else daq.waitUpload
        counts = call("count{}Files")
        assert (counts["countFiles"], counts["done"], counts["failed"]) == (len(CONTENTS), len(CONTENTS) - 1, 1)
        record = call("get{}File", "run1/b.dat")
        assert [event["event"] for event in record["timeline"]] == ["ready", "moved", "stored", "done"]
        with pytest.raises(ObjectNotFound, match="dm-explain-file"):
            call("get{}File", "nothing")
        assert [found["path"] for found in call("list{}Files", pattern="*.h5")] == ["run1/deep er/c.h5"]
        first = call("list{}Files", limit=2)
        rest = call("list{}Files", after=first[-1]["position"])
        assert {found["path"] for found in [*first, *rest]} == set(CONTENTS) and len(rest) == len(CONTENTS) - 2
        assert call("list{}Files", since=time.time() + 60) == []
        table = b"".join(call("export{}Files", "csv")).decode().splitlines()
        assert len(table) == len(CONTENTS) + 1 and table[0].startswith("path,state,size,")
        lines = b"".join(call("export{}Files", "jsonl", state="failed")).splitlines()
        assert [json.loads(line)["path"] for line in lines] == ["a.dat"]
        told = daq.explainFile("a.dat", task)
        assert told["reason"] == "refusedByStorage" and "already exists" in told["explanation"]
        assert call("retry{}Files", pattern="a.*") == {"count": 1}
        assert wait(task, SECONDS)["nProcessingErrors"] == 1
        assert call("skip{}Files", "a.dat", reason="the other is right") == {"count": 1}
        assert wait(task, SECONDS)["status"] == "done"
        assert call("reprocess{}Files", ["catalog"], pattern="*.dat") == {"count": 1}
        assert wait(task, SECONDS)["nCompletedFiles"] == len(CONTENTS) - 1
        assert daq.explainFile(id=task, path="a.dat")["reason"] == "skippedByPerson"
    assert daq.explainFile(sourcePath=f"{source}/run1/b.dat")["reason"] == "done"


def test_daqs(opened: Callable[[Any], Any], taken: str, source: Path) -> None:
    daq = opened(ExperimentDaqApi())
    begun = daq.startDaq(taken, str(source), {"processExistingFiles": True, "sample": "Cu"})
    assert set(begun) >= TASK and begun["sample"] == "Cu" and isinstance(begun["startTime"], float)
    assert daq.startDaq(experimentName=taken, dataDirectory=str(source))["id"] == begun["id"]
    (failed,) = until(lambda: daq.listDaqFiles(begun["id"], "failed"))
    assert failed["path"] == "a.dat" and failed["lastError"]
    assert daq.retryDaqFiles(begun["id"], "a.dat") == {"count": 1}
    told = daq.completeDaqFiles(begun["id"], ["run1/b.dat", "none"], 20)
    assert (told["count"], told["missing"]) == (1, ["none"])
    until(lambda: daq.listDaqFiles(begun["id"], "failed"))
    assert daq.listDaqs()[-1]["id"] == daq.listDaqs(taken, "running")[0]["id"] == begun["id"]
    with pytest.raises(InvalidObjectState):
        daq.clearDaq(begun["id"])
    with pytest.raises(ObjectNotFound, match="does not exist"):
        daq.stopDaq(taken, f"{source}/run1")
    assert daq.stopDaq(taken, str(source))["id"] == begun["id"]
    ended = daq.waitDaq(begun["id"], SECONDS)
    assert set(ended) >= TASK | ENDED
    assert (ended["nCompletedFiles"], ended["nProcessingErrors"]) == (len(CONTENTS) - 1, 1)
    assert daq.getDaqInfo(begun["id"])["status"] == daq.getDaqInfo(begun["id"], 0.01)["status"] == ended["status"]
    states = {record["path"]: record["state"] for record in daq.listDaqFiles(begun["id"])}
    assert states == dict.fromkeys(CONTENTS, "done") | {"a.dat": "failed"}
    pruned = {record["path"]: record["fate"] for record in daq.pruneDaqSource(begun["id"], readAgain=True)}
    assert pruned == dict.fromkeys(set(CONTENTS) - {"a.dat"}, "removable")
    assert daq.clearDaq(begun["id"])["id"] == begun["id"]
    assert daq.listDaqs(taken) == []


# --- storage ---------------------------------------------------------------------------------------------------


def test_isolation(opened: Callable[[Any], Any]) -> None:
    """As the station GUI asks: first whether, then to do it; it shows the error as it shows any other."""
    daq = opened(ExperimentDaqApi())
    assert daq.isConfiguredForIsolation("25-ID-C") is False
    with pytest.raises(InvalidRequest, match="25-ID-C' is not configured for isolation"):
        daq.isolateExperiment("initialization", "25-ID-C", '{"verbose": true}')


def test_grants_and_batches(opened: Callable[[Any], Any], experiment: str, service: StorageServiceApi) -> None:
    people = opened(StorageServiceApi())
    grant = people.addGrant(experiment, "upload")
    assert set(grant) >= {"id", "secret", "experimentId", "username"}
    batch = str(uuid.uuid4())
    batch_opened = service.openBatch(grant, batch, source="sweep")
    assert service.openBatch(grant, batch, source="sweep", root="data", onConflict="fail") == batch_opened
    assert service.getBatch(batch)["state"] == "open"
    files = storage_fixtures.staged(batch_opened["stagingDirectory"], CONTENTS)
    assert service.submitBatch(grant, batch, files)["batchId"] == batch
    outcome = storage_fixtures.outcome(service, batch)
    assert {path: (file["status"], file["size"]) for path, file in outcome.items()} == {
        path: ("stored", len(content)) for path, content in CONTENTS.items()
    }
    data = Path(opened(ExperimentDsApi()).getExperimentByName(experiment)["dataDirectory"])
    assert {path: (data / path).read_bytes() for path in CONTENTS} == CONTENTS

    abandoned = str(uuid.uuid4())
    staging = Path(service.openBatch(grant, abandoned, source="sweep")["stagingDirectory"])
    assert staging.is_dir()
    service.deleteBatch(abandoned)
    assert not staging.exists()
    with pytest.raises(AuthorizationError):
        people.openBatch(grant, str(uuid.uuid4()), source="sweep")  # for stations' services only
    assert people.deleteGrant(grant["id"])["id"] == grant["id"]
    with pytest.raises(AuthorizationError, match="revoked"):
        service.openBatch(grant, str(uuid.uuid4()), source="sweep")


def test_files_and_downloads(
    opened: Callable[[Any], Any], experiment: str, service: StorageServiceApi, open_directory: Path
) -> None:
    grant = opened(StorageServiceApi()).addGrant(experiment, "daq")
    storage_fixtures.publish(service, grant, CONTENTS)
    storage_fixtures.publish(service, grant, {"fit.txt": b"r" * 10}, root="analysis")
    files, experiments = opened(FileDsApi()), opened(ExperimentDsApi())
    listed = {record["experimentFilePath"]: record for record in files.getFiles(experiment, root="data")}
    assert set(listed) == set(CONTENTS) and all(set(record) >= FILE for record in listed.values())
    assert len(list(files.getFiles(experiment, STATION))) == 5
    assert files.getTotals(experiment) == {
        "countFiles": 5, "countBytes": sum(map(len, CONTENTS.values())) + 10,
    }  # fmt: skip

    # both published orders: (path, experiment, compression, retrieveMd5Sum) and (path, experiment, station)
    whole = files.statFile("run1/b.dat", experiment)
    assert set(whole) >= FILE | {"readyForProcessing"} and whole["readyForProcessing"] is True
    md5 = hashlib.md5(CONTENTS["run1/b.dat"]).hexdigest()
    for third in ((STATION,), (STATION, ""), ("", False), (None, True), ("", True), (None,), (STATION, None)):
        found = files.statFile("run1/b.dat", experiment, *third)
        assert (found["experimentFilePath"], found["fileSize"], found["md5Sum"]) == ("run1/b.dat", 4, md5), third
    for third in (("gz",), ("gz", False), ("gz", True), (STATION, "gz")):
        found = files.statFile("result.txt", experiment, *third)
        assert (found["experimentFilePath"], found["compression"]) == ("result.txt.gz", "gz"), third
    with pytest.raises(ObjectNotFound, match="does not exist"):
        files.statFile("result.txt", experiment, "")
    with pytest.raises(ObjectNotFound, match="NOSTATION"):
        files.statFile("run1/b.dat", experiment, "NOSTATION")
    assert files.statFile("fit.txt", experiment, stationName=STATION, compression="", root="analysis")["fileSize"] == 10

    target = open_directory / "here"
    target.mkdir()
    progress: list[tuple[int, int]] = []
    record = files.downloadFile("a.dat", experiment, target, progress=lambda done, all: progress.append((done, all)))
    assert record["localFilePath"] == str(target / "a.dat") and progress[-1] == (5000, 5000)
    assert (target / "a.dat").read_bytes() == CONTENTS["a.dat"]
    record = experiments.downloadFile("run1/b.dat", experiment, str(target))
    assert (record["fileName"], Path(record["localFilePath"]).read_bytes()) == ("b.dat", b"beta")
    names = {record["experimentFilePath"] for record in files.downloadFiles(experiment, target, path="run1")}
    assert names == {"run1/b.dat", "run1/deep er/c.h5"} and (target / "data/run1/b.dat").read_bytes() == b"beta"
    archive = files.downloadArchive(experiment, open_directory / "all.tar")
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
        members = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        bytes_of = {name: stream.read() for name, stream in members.items() if stream is not None}
    expected = {f"data/{path}": content for path, content in CONTENTS.items()} | {"analysis/fit.txt": b"r" * 10}
    assert {name.removeprefix(f"{experiment}/"): content for name, content in bytes_of.items()} == expected

    number = experiments.getExperimentByName(experiment)["id"]
    *entries, end = files.iterateManifest(number)
    assert files.recordFilesAgain(number, dryRun=True)["countMissing"] == 0
    assert end == {"event": "end", "countFiles": len(entries)} and {entry["present"] for entry in entries} == {True}
    stored = Path(experiments.getExperimentByName(experiment)["dataDirectory"], "run1/b.dat")
    mode = stored.stat().st_mode
    stored.chmod(0o666)
    restored = experiments.restorePermissions(experiment, "data/run1")
    assert stored.stat().st_mode == mode and restored["countFiles"] == 2
    assert experiments.restorePermissions(experiment)["countFiles"] >= 5

    inspections = opened(InspectionDsApi())
    stored.chmod(0o666)
    record = inspections.waitForInspection(inspections.inspectExperiment(experiment, repair=True), timeout=SECONDS)
    assert record["countRepaired"] == 1 and stored.stat().st_mode == mode
    assert record["rounds"] == inspections.getInspection(experiment)["rounds"]
    assert [(one["kind"], one["path"]) for one in inspections.getFindings(experiment)] == [
        ("permissions", "data/run1/b.dat")
    ]
    assert experiment in [one["experimentName"] for one in inspections.getInspections()]
    told = inspections.explainAccess(inspections.username, experiment, "data/run1/b.dat")
    assert told["httpsAllowed"] and told["httpsRule"].endswith(f"is manager of station {STATION}")

    changing, experiments = opened(FileDsApi()), opened(ExperimentDsApi())
    begun = changing.compressFile("run1/b.dat", experiment, STATION, "gz")  # the order of the station GUI
    until(lambda: experiments.getOperation(begun["id"])["status"] == "done")
    begun = changing.decompressFile("run1/b.dat.gz", experiment)
    until(lambda: experiments.getOperation(begun["id"])["status"] == "done")
    assert changing.deleteFile("run1/b.dat", experiment, STATION)["countFiles"] == 1
    assert changing.deleteFiles(["a.dat", "none"], experiment)["countMissing"] == 1


# --- catalog ---------------------------------------------------------------------------------------------------


def test_catalog_files(opened: Callable[[Any], Any], suite: Suite, experiment: str) -> None:
    catalog = opened(CatApiFactory.getFileCatApi())
    number = opened(ExperimentDsApi()).getExperimentByName(experiment)["id"]
    name = {"experimentName": experiment}
    login = suite.installed.layout.login_file(suite.installed.plan.service_account)
    services = opened(CatalogServiceApi(*login.read_text().strip().split("|")))
    outcome = services.upsertFiles(
        [
            {"experimentId": number, "path": f"run{n}.h5", "root": "data", "fileSize": n, "metadata": {"scan": n}}
            | name
            for n in range(10)
        ]
    )
    assert (outcome["countFiles"], outcome["nAdded"], outcome["nErrors"]) == (10, 10, 0)
    assert services.upsertFiles([])["countFiles"] == 0

    added = catalog.addExperimentFile(name | {"experimentFilePath": "x/new.h5", "fileSize": 100, "sample": "Cu"})
    assert set(added) >= FILE | {"fileModificationTimestamp", "compression", "replicas"}
    assert (added["fileName"], added["sample"], added["md5Sum"]) == ("new.h5", "Cu", None)
    with pytest.raises(ObjectAlreadyExists):
        catalog.addExperimentFile(name | {"experimentFilePath": "x/new.h5"})
    assert catalog.getExperimentFile(experiment, "x/new.h5") == added
    assert catalog.getExperimentFileById(experiment, added["id"]) == added
    assert catalog.updateExperimentFile(name | {"experimentFilePath": "x/new.h5", "sample": "Ag"})["sample"] == "Ag"
    assert catalog.updateExperimentFileById(name | {"id": added["id"], "note": [1, None]})["note"] == [1, None]
    many = [{"experimentFilePath": f"run{n}.h5", "colour": "red"} | name for n in range(10)]
    assert catalog.updateExperimentFiles(many)["nUpdated"] == 10
    begun = catalog.updateExperimentFilesAsync([file | {"colour": "blue"} for file in many])
    assert set(begun) >= {"id", "status"}
    until(lambda: catalog.getAsyncUpdateStatus(begun["id"])["status"] not in ("pending", "running"))
    done = catalog.getAsyncUpdateStatus(begun["id"])
    assert (done["status"], done["nUpdated"], done["errors"]) == ("done", 10, [])

    # as the GUI calls: positionally
    found = catalog.getExperimentFiles(experiment, {}, 2, 3)
    assert [file["fileName"] for file in found] == ["run2.h5", "run3.h5", "run4.h5"] and int(found[0]["fileSize"]) == 2
    assert len(catalog.getExperimentFiles(experiment)) == 11
    assert len(catalog.getExperimentFiles(experiment, {"experimentName": experiment, "colour": "blue"})) == 10
    (chosen,) = catalog.getExperimentFiles(experiment, {"scan": {"$gt": 8}}, keyList=["fileName", "scan"])
    assert chosen == {"fileName": "run9.h5", "scan": 9}
    raw = catalog.getExperimentFiles(experiment, {"scan": 9}, 0, 500000, "ALL", True)
    assert isinstance(raw, str) and json.loads(raw)[0]["fileName"] == "run9.h5"
    assert [file["scan"] for file in catalog.iterateExperimentFiles(experiment, {"scan": {"$in": [4, 5]}})] == [4, 5]

    stats = catalog.getExperimentFileCollectionStats(experiment)
    assert set(stats) >= STATS and (stats["countFiles"], stats["collectionSize"]) == (11, 145)
    assert (stats["minFileSize"], stats["maxFileSize"]) == (0, 100)
    assert catalog.deleteExperimentFile(experiment, "run0.h5")["fileName"] == "run0.h5"
    assert catalog.deleteExperimentFileById(experiment, added["id"])["fileName"] == "new.h5"
    with pytest.raises(ObjectNotFound, match="does not exist"):
        catalog.getExperimentFile(experiment, "run0.h5")
    other = f"{experiment}-renamed"
    opened(ExperimentDsApi()).addExperiment(other, typeName="TEST")
    renamed = catalog.renameExperimentFileCollection(experiment, other)
    assert (renamed["experimentName"], renamed["countFiles"]) == (other, 9)
    assert catalog.getExperimentFiles(experiment) == [] and len(catalog.getExperimentFiles(other)) == 9
    assert catalog.deleteExperimentFileCollection(other)["countFiles"] == 9
    with pytest.raises(ObjectNotFound):
        catalog.deleteExperimentFileCollection(other)


def test_datasets_and_runs(opened: Callable[[Any], Any], experiment: str) -> None:
    files = opened(FileCatApi())
    for n in range(4):
        files.addExperimentFile({"experimentName": experiment, "experimentFilePath": f"f{n}", "scan": n})
    datasets = opened(CatApiFactory.getDatasetCatApi())
    own = uuid.uuid4().hex[:24]
    added = datasets.addExperimentDataset(
        {
            "_id": own,
            "experimentName": experiment,
            "datasetName": "run_uid8_1a2b3c4d",
            "bluesky_run_uid": "1a2b3c4d",
            "bluesky_metadata": {"a.b": {"$c": [1, None, "é", 0.1 + 0.2]}},
            "experimentFilePathList": ["f1", "f3"],
        }
    )
    assert added["id"] == own and added["bluesky_metadata"] == {"a.b": {"$c": [1, None, "é", 0.1 + 0.2]}}
    with pytest.raises(ObjectAlreadyExists):
        datasets.addExperimentDataset({"experimentName": experiment, "datasetName": "run_uid8_1a2b3c4d"})
    with pytest.raises(InvalidArgument, match="experimentName"):
        datasets.addExperimentDataset({"datasetName": "x"})
    second = datasets.addExperimentDataset(
        {"experimentName": experiment, "datasetName": "second", "fileQueryDict": {"scan": {"$lt": 3}}}
    )
    assert datasets.getDatasetById(own) == datasets.getExperimentDataset(experiment, added["datasetName"]) == added
    names = [added["datasetName"], "second"]
    assert [record["datasetName"] for record in datasets.getExperimentDatasets(experiment)] == names
    everywhere = datasets.getDatasets({"experimentName": experiment})
    assert [record["datasetName"] for record in everywhere] == names
    update = {"experimentName": experiment, "datasetName": "second", "quality": "good"}
    assert datasets.updateExperimentDataset(update)["quality"] == "good"
    assert datasets.updateDatasetById({"id": own, "quality": "poor"})["quality"] == "poor"
    assert [record["id"] for record in datasets.getExperimentDatasets(experiment, {"quality": "poor"}, 0, 5)] == [own]
    found = datasets.getExperimentDatasetFiles(experiment, added["datasetName"])
    assert [file["experimentFilePath"] for file in found] == ["f1", "f3"] and set(found[0]) >= FILE
    assert len(datasets.getExperimentDatasetFiles(experiment, "second", 1, 1)) == 1
    assert datasets.deleteExperimentDataset(experiment, "second")["id"] == second["id"]
    with pytest.raises(ObjectNotFound):
        datasets.getExperimentDataset(experiment, "second")

    runs = opened(CatApiFactory.getRunCatApi())
    run = {"experimentName": experiment, "runId": "r/1", "metadata": {"k": [1.5]}}
    echo = runs.addExperimentRun(run)
    assert run.items() <= dict(echo).items() and echo["id"]
    assert [record["id"] for record in runs.getExperimentRuns(experiment)] == [echo["id"]]
    assert runs.getExperimentRun(experiment, "r/1") == echo
    assert runs.updateExperimentRun({"experimentName": experiment, "runId": "r/1", "note": 1})["note"] == 1
    assert runs.deleteExperimentRun(experiment, "r/1")["id"] == echo["id"]
    assert runs.getExperimentRuns(experiment) == []


# --- processing ------------------------------------------------------------------------------------------------


def test_workflows(opened: Callable[[Any], Any], suite: Suite) -> None:
    api = opened(ProcApiFactory.getWorkflowProcApi())
    owner = suite.manager[0]
    spec = {"name": "api-01", "owner": owner, "stages": {"2-B": {"command": "true"}, "1-A": {"command": "true"}}}
    added = api.addWorkflow(spec)
    assert set(added) >= WORKFLOW and added["description"] == "" and added["userAccount"] == owner
    assert list(added["stages"]) == ["1-A", "2-B"]
    with pytest.raises(ObjectAlreadyExists, match="api-01"):
        api.addWorkflow(spec)
    updated = api.updateWorkflow(spec | {"description": "another"})  # by owner and name
    assert (updated["id"], updated["description"]) == (added["id"], "another")
    assert api.upsertWorkflow(spec | {"version": "1.2"})["id"] == added["id"]
    assert api.getWorkflowByName(owner, "api-01") == api.getWorkflowById(owner, added["id"])
    assert "api-01" in [record["name"] for record in api.listWorkflows(owner)]
    assert [record["id"] for record in api.listWorkflows(owner, {"name": "api-01"})] == [added["id"]]
    assert api.deleteWorkflowByName(owner, "api-01")["id"] == added["id"]
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.getWorkflowByName(owner, "api-01")
    with pytest.raises(ObjectNotFound):
        api.updateWorkflow(spec)
    assert [version["revision"] for version in api.listWorkflowVersions(owner, "api-01")] == [1, 2, 3]
    assert api.getWorkflowVersion(owner, "api-01", 3)["workflow"]["version"] == "1.2"
    assert api.diffWorkflowVersions(owner, "api-01")["changedKeys"] == ["description", "version"]
    restored = api.restoreWorkflowVersion(owner, "api-01", 2)
    assert (restored["id"], restored["revision"], restored["description"]) == (added["id"], 4, "another")
    api.deleteWorkflowByName(owner, "api-01")
    with pytest.raises(InvalidArgument, match="invalid owner name"):
        api.getWorkflowByName(None, "api-01")


def test_jobs(opened: Callable[[Any], Any], suite: Suite) -> None:
    api = opened(WorkflowProcApi())
    owner = api.username
    regex = {"outputVariableRegexList": ["Said: (?P<said>.*)"]}
    api.upsertWorkflow(
        {
            "name": "api-say",
            "owner": owner,
            "description": "says",
            "stages": {"1": {"command": "echo Said: $word", **regex}, "2": {"command": "echo $said of $id"}},
        }
    )
    key = str(uuid.uuid4())
    begun = api.startProcessingJob(owner, "api-say", {"filePath": "/dev/null", "word": "two words", "n": 7}, key)
    assert set(begun) >= JOB and set(begun["workflow"]) >= WORKFLOW and begun["status"] in ("pending", "running")
    again = api.startProcessingJob(
        workflowOwner=owner, workflowName="api-say", argsDict={"filePath": "/dev/null"}, idempotencyKey=key
    )
    assert again["id"] == begun["id"]
    wishes = [{"argsDict": {}, "idempotencyKey": key}, {"argsDict": {"id": "reserved"}}]
    first, refused = api.startProcessingJobs(owner, "api-say", wishes)
    assert first["id"] == begun["id"] and refused["errorClass"] == "InvalidArgument"
    job = api.waitProcessingJob(owner, begun["id"], SECONDS)
    assert (job["status"], job["stage"], job["countFiles"], job["said"], job["n"]) == ("done", "2", 1, "two words", 7)
    assert isinstance(job.getDictRep()["runTime"], float) and job["workflow"]["description"] == "says"
    (child,) = job.getWorkflowStage("2")["childProcesses"].values()
    assert set(child) >= CHILD and child["exitStatus"] == 0
    assert child["stdOut"].strip() == f"two words of {job['id']}"
    assert api.getProcessingJobById(owner, job["id"]) == api.getProcessingJobById(owner=owner, id=job["id"], waitTime=1)
    children = api.listChildProcesses(owner, job["id"])
    assert [record["childProcessNumber"] for record in children] == [0, 1] and children[1]["stdOut"] == child["stdOut"]
    assert len(api.listChildProcesses(None, job["id"], 1, 1)) == 1

    api.upsertWorkflow({"name": "api-sleep", "owner": owner, "stages": {"1": {"command": "sleep 300"}}})
    second = api.startProcessingJob(owner, "api-sleep", {"filePath": "/dev/null"})["id"]
    assert api.getLastProcessingJob(owner)["id"] == second
    assert api.getLastProcessingJob(owner, {"said": "two words"})["id"] == job["id"]
    with pytest.raises(InvalidObjectState):
        api.deleteProcessingJob(owner, second)
    assert api.stopProcessingJob(owner, second)["id"] == second
    assert api.waitProcessingJob(None, second, SECONDS)["status"] == "aborted"
    listed = api.listProcessingJobs(owner)
    assert [record["id"] for record in listed][-2:] == [job["id"], second] and "workflow" not in listed[-1]
    assert api.listProcessingJobs()[-1]["id"] == second
    (found,) = api.listProcessingJobs(owner, {"id": job["id"]}, 0, 10, "ALL")
    assert found["word"] == "two words" and set(found) >= JOB
    (found,) = api.listProcessingJobs(owner, queryDict={"id": job["id"]}, keyList=["id", "said"])
    assert found == {"id": job["id"], "said": "two words"}
    assert api.deleteProcessingJob(owner, second)["id"] == second
    with pytest.raises(ObjectNotFound, match="does not exist"):
        api.getProcessingJobById(owner, second)
    for name in ("api-say", "api-sleep"):
        api.deleteWorkflowByName(owner, name)


def test_jobs_that_go_on(opened: Callable[[Any], Any], open_directory: Path) -> None:
    api = opened(WorkflowProcApi())
    owner = api.username
    command = f"seq 1 3; test -e {open_directory}/good"
    stages = {"1": {"command": "echo first >&2"}, "2": {"command": command}, "3": {"command": "true"}}
    api.upsertWorkflow({"name": "api-on", "owner": owner, "stages": stages, "priority": -1})
    job = api.startProcessingJob(owner, "api-on", {"filePath": "/dev/null"}, priority=3)["id"]
    failed = api.waitProcessingJob(owner, job, SECONDS)
    assert (failed["status"], failed["stage"], failed["priority"]) == ("failed", "2", 3)
    assert api.getChildProcess(owner, job, 1)["exitStatus"] == 1
    assert b"".join(api.getProcessingJobOutput(owner, job, 1)) == b"1\n2\n3\n"
    assert b"".join(api.getProcessingJobOutput(owner, job, 0, "stdErr", follow=True)) == b"first\n"
    (open_directory / "good").touch()
    assert api.resumeProcessingJob(owner, job)["id"] == job
    done = api.waitProcessingJob(owner, job, SECONDS)
    assert (done["status"], done["restarts"]) == ("done", 1)
    assert len(done.getWorkflowStage("1")["childProcesses"]) == 1  # what was done was not done again
    assert api.restartProcessingJob(None, job, "2")["id"] == job
    done = api.waitProcessingJob(owner, job, SECONDS)
    assert (done["status"], done["restarts"]) == ("done", 2)
    (found,) = api.iterateProcessingJobs(owner, {"id": job}, keyList="ALL")
    assert found["id"] == job and set(found) >= JOB
    (logged,) = [entry for entry in api.listProcessingLog() if entry["id"] == job]
    assert (logged["owner"], logged["workflowName"], logged["countFiles"]) == (owner, "api-on", 1)
    api.upsertWorkflow({"name": "api-on", "owner": owner, "stages": {"1": {"command": "sleep 300"}}})
    second = api.startProcessingJob(owner, "api-on", {"filePath": "/dev/null"})["id"]
    assert api.abortProcessingJob(owner, second)["id"] == second
    assert api.waitProcessingJob(owner, second, SECONDS)["status"] == "aborted"
    for ended in (job, second):
        api.deleteProcessingJob(owner, ended)
    api.deleteWorkflowByName(owner, "api-on")


def test_jobs_by_zeromq(opened: Callable[[Any], Any]) -> None:
    api = opened(ProcZmqApi())
    owner = api.username
    rest = opened(WorkflowProcApi())
    rest.upsertWorkflow({"name": "api-zmq", "owner": owner, "stages": {"1": {"command": "test $x = y"}}})
    assert api.ping()["account"] == owner == api.login()["username"]
    job = api.submit(owner, "api-zmq", {"filePath": "/dev/null", "x": "n"}, priority=1)["id"]
    assert api.wait(job, SECONDS)["status"] == "failed" == api.status(job, 1)["status"]
    assert api.resume(job)["id"] == job and api.wait(job, SECONDS)["status"] == "failed"
    assert api.restart(job)["id"] == job and api.wait(job, SECONDS)["status"] == "failed"
    with pytest.raises(InvalidObjectState, match="has ended"):
        api.abort(job)
    rest.upsertWorkflow({"name": "api-zmq-long", "owner": owner, "stages": {"1": {"command": "sleep 60"}}})
    long = api.submit(owner, "api-zmq-long", {"filePath": "/dev/null"})["id"]
    assert api.abort(long)["id"] == long and api.wait(long, SECONDS)["status"] == "aborted"
    [many] = api.submitMany(owner, "api-zmq", [{"argsDict": {"filePath": "/dev/null", "x": "y"}}])
    assert api.wait(many["id"], SECONDS)["status"] == "done"
    assert [found["id"] for found in api.list(owner, limit=2)] == [long, many["id"]]
    assert [*api.events(owner, timeout=0.1)] == []  # nothing happens
    api.logout()
    for ended in (job, long, many["id"]):
        rest.deleteProcessingJob(owner, ended)
    for name in ("api-zmq", "api-zmq-long"):
        rest.deleteWorkflowByName(owner, name)


# --- the rest --------------------------------------------------------------------------------------------------


def test_service_monitors(opened: Callable[[Any], Any], suite: Suite) -> None:
    for cls, credentials in (
        (ServiceMonitorDsApi, suite.administrator),
        (ServiceMonitorApsDbApi, suite.manager),
        (ServiceMonitorDaqApi, suite.manager),
        (ServiceMonitorCatApi, suite.manager),
        (ServiceMonitorProcApi, suite.manager),
    ):
        monitor = opened(cls(*credentials))
        status = monitor.getServiceStatus()
        assert set(status) >= {"service", "status", "version", "uptime", "checks"}
        assert status["status"] in ("ok", "warning") and status["uptime"] > 0
        assert all(set(check) == {"name", "status", "message"} for check in status["checks"])
        assert monitor.clearServiceStatus()["service"] == status["service"]
        stranger = opened(cls(suite.manager[0], "wrong-password"))
        assert stranger.getServiceStatus()["service"] == status["service"]  # for everybody
        with pytest.raises(AuthenticationError):
            stranger.clearServiceStatus()


def test_facility(opened: Callable[[Any], Any], suite: Suite) -> None:
    """On the sample directory that an installation begins with."""
    live.sample_facility(suite)
    proposals, forms = opened(ApsDbApiFactory.getBssApsDbApi()), opened(DsApiFactory.getEsafDsApi())
    monitor = opened(ServiceMonitorApsDbApi(*suite.administrator))
    assert [reading["status"] for reading in monitor.refresh()] == ["done"] * 4
    assert {reading["kind"] for reading in monitor.getReadings()} == {"runs", "beamlines", "proposals", "esafs"}
    run = proposals.getCurrentRun()
    assert run["name"] in [one["name"] for one in proposals.listRuns()]
    assert [one["name"] for one in proposals.listBeamlines()] == [STATION]
    (proposal,) = proposals.listStationProposals()
    for found in (
        proposals.listProposals(beamlineName=STATION, runName=run["name"])[0],
        proposals.listProposals(run["name"])[0],
        proposals.getProposal(proposal["id"], run["name"], "25-ID-C"),
        proposals.listStationProposals(STATION, "25-ID-C", run["name"])[0],
        proposals.getStationProposalById(STATION, f"{proposal['id']:07}", run["name"]),
        forms.listStationProposals()[0],
    ):
        assert found == proposal
    (form,) = forms.listStationEsafs()
    day = form["experimentStartDate"][:10]
    for found in (
        forms.listEsafs("25", int(day[:4]))[0],
        forms.getEsaf(form["esafId"]),
        forms.listStationEsafs(STATION, "25-ID-C", int(day[:4]))[0],
        forms.getStationEsafById(STATION, form["esafId"]),
        forms.listStationEsafsByDateRange(STATION, day, day)[0],
    ):
        assert found == form
    experiments = opened(ExperimentDsApi())
    for plan, key in (
        (forms.getExperimentPlan(STATION, form["esafId"]), "esafId"),
        (proposals.getExperimentPlan(STATION, proposal["id"]), "proposalId"),
    ):
        plan["experimentName"] = f"api-{key}"
        made = experiments.addExperimentByPlan(plan, typeName="TEST")
        assert made["experiment"][key] == plan["metadata"][key]


def test_people_of_the_facility(opened: Callable[[Any], Any], suite: Suite) -> None:
    """On the user directory that the suite of the tests begins with."""
    people = opened(ApsUserDbApi(*suite.administrator))
    run = people.syncUsers(waitTime=SECONDS / 2)
    assert (run["status"], run["seen"]) == ("done", 5), run
    assert people.getUserSync(run["id"])["skippedPersons"] == []
    again = people.syncUsers("sample", dryRun=True, force=False, waitTime=SECONDS / 2)
    assert (again["status"], again["unchanged"]) == ("done", 5)
    assert [one["id"] for one in people.listUserSyncs("sample", 2)] == [run["id"], again["id"]]
    seen = opened(DmApiFactory().getApsUserDbApi())  # the station's manager
    assert [one["username"] for one in seen.listUsers()] == [f"d{badge}" for badge in range(960001, 960006)]
    assert seen.getUserByBadge(960002) == seen.getUserByUsername("d960002")
    with pytest.raises(AuthorizationError):
        seen.syncUsers()
    with pytest.raises(ObjectNotFound, match="badge 5"):
        seen.getUserByBadge(5)


def test_facility_that_is_down(opened: Callable[[Any], Any]) -> None:
    proposals = opened(BssApsDbApi(f"https://127.0.0.1:{free_port()}"))
    with pytest.raises(CommunicationError, match="connection refused"):
        proposals.listStationProposals()


def test_every_public_method_was_called(recorder: Recorder) -> None:
    """Keep it the last one of the module."""
    missing = [
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name in public_methods(cls)
        if (cls.__name__, name) not in recorder.called | NOT_OFFERED
    ]
    assert not missing, f"no scenario of this module calls {', '.join(missing)}"


def test_every_published_class_is_swept() -> None:
    """No API class has been forgotten in :data:`CLASSES`."""
    import dm.site.facility.api
    import dm.site.storage.api
    import dm.station.acquisition.api
    import dm.station.catalog.api
    import dm.station.processing.api

    found = {
        cls
        for module in (
            dm.site.facility.api,
            dm.site.storage.api,
            dm.station.acquisition.api,
            dm.station.catalog.api,
            dm.station.processing.api,
        )
        for name, cls in vars(module).items()
        if name.endswith("Api") and name[0] != "_" and inspect.isclass(cls) and name not in ("ApiClient", "DsApi")
    }
    assert found - set(CLASSES) == {dm.station.catalog.api.ServiceMonitorApi}  # the base of the monitors
