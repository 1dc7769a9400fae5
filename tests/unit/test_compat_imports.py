"""Import paths of scripts: all there, and ``import dm`` light."""

import importlib
import json
import logging
import subprocess
import sys

import pytest

import dm
from dm.common import compat, keys, statuses

HEAVY = {"httpx", "sqlalchemy", "cherrypy", "pymongo", "pydantic", "click", "rich", "logging", "socket", "ssl", "numpy"}


def run(code):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_dm_loads_nothing_heavy():
    before, after = json.loads(
        run(
            "import sys, json; before = set(sys.modules); import dm; "
            "print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))"
        )
    )
    assert {name.partition(".")[0] for name in after} & (HEAVY - set(before)) == set()
    assert [name for name in after if name.startswith("dm")] == ["dm", "dm.common", "dm.common.compat"]


def test_importing_and_constructing_leaves_logging_alone():
    out = run(
        "import logging; root = logging.getLogger(); before = (list(root.handlers), root.level); import dm; "
        "from dm import BssApsDbApi, ExperimentDaqApi; BssApsDbApi(); ExperimentDaqApi(); "
        "from dm.common.utility.loggingManager import LoggingManager; "
        "LoggingManager.getInstance().getLogger('x').info('y'); "
        "print((list(root.handlers), root.level) == before)"
    )
    assert out.strip() == "True"


def test_attribute_access_after_plain_import_dm():
    out = run(
        "import dm; print(dm.common.exceptions.objectAlreadyExists.ObjectAlreadyExists is dm.ObjectAlreadyExists)"
    )
    assert out.strip() == "True"
    out = run("import dm; print(dm.common.constants.dmRole.DM_PI_EXPERIMENT_ROLE, dm.BssApsDbApi.__module__)")
    assert out.split() == ["PI", "dm.site.facility.api"]


@pytest.mark.parametrize("name", sorted(compat.CLASSES))
def test_names_of_the_package(name):
    assert getattr(dm, name) is getattr(importlib.import_module(compat.CLASSES[name]), name)
    assert name in dir(dm)


@pytest.mark.parametrize("module", sorted(compat.MODULES))
def test_every_published_module_has_its_names(module):
    loaded = importlib.import_module(module)
    for name in compat.MODULES[module]:
        assert getattr(loaded, name).__doc__
    assert loaded is importlib.import_module(module)


@pytest.mark.parametrize("package", sorted(set(compat.CHILDREN) - {"dm", "dm.common"}))
def test_packages_lead_to_their_modules(package):
    loaded = importlib.import_module(package)
    for child in compat.CHILDREN[package]:
        assert getattr(loaded, child).__name__ == f"{package}.{child}"
        assert child in dir(loaded)


def test_exceptions_are_one_family():
    from dm.common import errors
    from dm.common.exceptions.configurationError import ConfigurationError, DmException
    from dm.common.exceptions.dmException import DmException as Same

    assert DmException is Same is errors.DmException
    assert issubclass(ConfigurationError, DmException)
    family = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, DmException)}
    assert family == set(compat.EXCEPTIONS)


def test_unknown_names_are_errors_of_the_import_system():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("dm.proc_web_service.api.noSuchApi")
    with pytest.raises(ImportError):
        exec("from dm import NoSuchThing")
    with pytest.raises(AttributeError, match="noSuch"):
        _ = dm.common.constants.noSuch
    assert not hasattr(dm, "ApsUserDb"), "only what the table names"


def test_nothing_is_found_outside_the_table():
    assert compat.AliasFinder.find_spec("json") is None
    assert compat.AliasFinder.find_spec("dm.common") is None
    compat.install()
    assert sum(isinstance(finder, compat.AliasFinder) for finder in sys.meta_path) == 1


# --- constants -----------------------------------------------------------------------------------------------


def test_keys_are_camel_case():
    from dm.common.constants import dmFileConstants, dmObjectLabels, dmProcessingConstants, dmUserConstants

    assert dmProcessingConstants.DM_COUNT_FILES_KEY == "countFiles"
    assert dmProcessingConstants.DM_N_PROCESSED_FILES_KEY == "nProcessedFiles"
    assert dmProcessingConstants.DM_MAX_RUN_TIME_IN_HOURS_KEY == "maxRunTimeInHours"
    assert dmUserConstants.DM_IS_LOCAL_USER_KEY == "isLocalUser"
    assert dmObjectLabels.DM_Y_KEY == "Y"
    assert dmFileConstants.DM_MAX_FILE_RETRIEVAL_COUNT == 500000
    for group in keys.GROUPS.values():
        for name, value in group.items():
            assert name.startswith(("DM_", "DmStatus")), name
            assert isinstance(value, str | int | list | keys.DmStatus | type)


def test_statuses_are_lower_case_words():
    from dm.common.constants import dmProcessingStatus
    from dm.common.constants.dmStatus import DmStatus

    active, inactive = (
        dmProcessingStatus.DM_ACTIVE_PROCESSING_STATUS_LIST,
        dmProcessingStatus.DM_INACTIVE_PROCESSING_STATUS_LIST,
    )
    assert dmProcessingStatus.DM_PROCESSING_STATUS_DONE == "done" == statuses.DONE
    assert set(active) | set(inactive) == {
        value for name, value in vars(dmProcessingStatus).items() if name.startswith("DM_PROCESSING_STATUS_")
    }
    assert not set(active) & set(inactive)
    assert DmStatus.DM_ERROR.value == 1


# --- factories -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "methods"),
    [
        ("ProcApiFactory", "getWorkflowProcApi"),
        ("DaqApiFactory", "getExperimentDaqApi getServiceMonitorDaqApi"),
        (
            "DsApiFactory",
            "getExperimentDsApi getUserDsApi getFileDsApi getAuthDsApi getEsafDsApi getServiceMonitorDsApi",
        ),
        ("CatApiFactory", "getFileCatApi getDatasetCatApi getRunCatApi getServiceMonitorCatApi"),
        ("ApsDbApiFactory", "getBssApsDbApi getEsafApsDbApi"),
    ],
)
def test_factories_make_api_objects_without_a_server(factory, methods):
    for method in methods.split():
        for maker in (getattr(dm, factory), getattr(dm, factory)(), dm.DmApiFactory()):
            api = getattr(maker, method)()
            assert api.username == ""
            assert not callable(api)
        assert getattr(dm, factory).__dict__[method].__func__.__doc__


def test_the_common_factory_hands_on_user_and_password():
    factory = dm.DmApiFactory("d123456", "secret")
    assert factory.getExperimentDsApi().username == "d123456"
    assert factory.getExperimentDsApi(username="d654321").username == "d654321"
    assert factory.getBssApsDbApi("https://localhost:1").url == "https://localhost:1"
    with pytest.raises(AttributeError, match="getNothing"):
        factory.getNothing()


# --- utilities -----------------------------------------------------------------------------------------------


def test_configuration_manager(monkeypatch, tmp_path):
    from dm.common.utility.configurationManager import ConfigurationManager

    manager = ConfigurationManager.getInstance()
    assert manager is ConfigurationManager.getInstance()
    monkeypatch.setenv("DM_DS_WEB_SERVICE_URL", "https://host:22236")
    monkeypatch.setenv("DM_ALLOWED_EXPERIMENT_TYPES", "2BM, TEST")
    monkeypatch.setenv("DM_STATION_NAME", "2BM")
    monkeypatch.delenv("DM_LOGIN_FILE", raising=False)
    assert manager.getDsWebServiceUrl() == "https://host:22236"
    assert manager.getProcWebServiceUrl() is None
    assert manager.getAllowedExperimentTypes() == ["2BM", "TEST"]
    assert manager.get("stationName") == manager.get("STATION_NAME") == manager.get("DM_STATION_NAME") == "2BM"
    assert manager.get("nothing", "default") == "default"
    assert not manager.hasExperimentIsolationSettingsFile()
    with pytest.raises(dm.ConfigurationError, match="DM_LOGIN_FILE"):
        manager.parseLoginFile()


def test_singletons_are_one_per_class():
    from dm.common.utility.singleton import Singleton

    class One(Singleton):
        pass

    class Two(One):
        pass

    assert One.getInstance() is One.getInstance()
    assert type(Two.getInstance()) is Two


def test_logging_manager_stays_below_dm():
    from dm.common.utility.loggingManager import LoggingManager

    manager = LoggingManager.getInstance()
    level = logging.getLogger().level
    before = logging.getLogger("dm").level
    manager.setConsoleLogLevel("debug")
    assert logging.getLogger("dm").level == logging.DEBUG
    logging.getLogger("dm").setLevel(before)
    assert manager.getLogger("gui").name == "dm.gui"
    assert logging.getLogger().level == level
