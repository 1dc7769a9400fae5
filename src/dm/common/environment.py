"""What the shell tells a client: ``DM_*`` variables and the login file.

The formats of the login file and of ``dm.setup.sh`` (:mod:`dm.common.setupfile`) are published: other programs read
both as text.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dm.common.errors import ConfigurationError

LOGIN_FILE = "DM_LOGIN_FILE"
STATION_NAME = "DM_STATION_NAME"
CA_FILE = "DM_CA_FILE"
URL_VARIABLES: Mapping[str, str] = {
    "storage": "DM_DS_WEB_SERVICE_URL",
    "acquisition": "DM_DAQ_WEB_SERVICE_URL",
    "catalog": "DM_CAT_WEB_SERVICE_URL",
    "processing": "DM_PROC_WEB_SERVICE_URL",
    "facility": "DM_APS_DB_WEB_SERVICE_URL",
}

_log = logging.getLogger(__name__)


def home() -> Path:
    """Return the directory for what DM remembers per user: ``DM_HOME``, else ``~/.dm``."""
    given = os.environ.get("DM_HOME")
    return Path(given) if given else Path.home() / ".dm"


def station_name(given: str | None = None) -> str:
    """Return the station: the given one, else ``DM_STATION_NAME``.

    :raises ConfigurationError: neither is there.
    """
    name = given or os.environ.get(STATION_NAME, "")
    if not name:
        raise ConfigurationError(f"No station is named; give one or set {STATION_NAME} (source dm.setup.sh).")
    return name


def login_file_path() -> Path | None:
    """Return the path in ``DM_LOGIN_FILE``, or ``None``."""
    given = os.environ.get(LOGIN_FILE, "").strip()
    return Path(given).expanduser() if given else None


def read_login_file(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return user name and password of a login file: its first line, ``username|password``.

    :raises ConfigurationError: missing, unreadable or malformed. The text never holds the password.
    """
    try:
        with open(path, encoding="utf-8") as stream:  # noqa: PTH123
            mode = os.fstat(stream.fileno()).st_mode
            line = stream.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"Login file {os.fspath(path)} cannot be read: {reason}.") from error
    parts = line.split("|")
    if len(parts) != 2 or not parts[0]:
        raise ConfigurationError(f"Login file {os.fspath(path)} must hold one line: username|password.")
    if mode & stat.S_IROTH:
        _log.warning("Login file %s can be read by everybody; run: chmod 600 %s", path, path)
    return parts[0], parts[1]


def write_login_file(path: str | os.PathLike[str], username: str, password: str) -> None:
    """Write a login file, readable by its owner only, in one step.

    :raises ConfigurationError: a ``|``, a line break or outer blanks in the user name or password, or either empty.
    """
    for what, value in (("user name", username), ("password", password)):
        if not value or value != value.strip() or any(mark in value for mark in "|\r\n\0"):
            raise ConfigurationError(
                f"The {what} does not fit into a login file; it must not be empty, start or end with a blank, "
                "or hold '|' or a line break."
            )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{username}|{password}\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Singleton:
    """Base of classes with one shared object, obtained by :meth:`getInstance`."""

    _instance: ClassVar[Any] = None

    @classmethod
    def getInstance(cls) -> Any:
        """Return the one object of this class, made at the first call."""
        if "_instance" not in cls.__dict__ or cls._instance is None:
            cls._instance = cls()
        return cls._instance


class ConfigurationManager(Singleton):
    """The environment under its published method names (``dm.common.utility.configurationManager``)."""

    def get(self, key: str, default: str | None = None) -> str | None:
        """Return ``DM_<KEY>`` of the environment (camelCase keys work: ``stationName``), or the default."""
        name = key if key.startswith("DM_") else "DM_" + _upper_snake(key)
        return os.environ.get(name, default)

    @staticmethod
    def parseLoginFile(loginFile: str | None = None) -> tuple[str, str]:
        """Return user name and password of the login file (default: ``DM_LOGIN_FILE``).

        :raises ConfigurationError: see :func:`read_login_file`, or no file is named.
        """
        path = loginFile or login_file_path()
        if path is None:
            raise ConfigurationError(f"No login file is named; set {LOGIN_FILE} (source dm.setup.sh).")
        return read_login_file(path)

    def getStationName(self) -> str:
        """Return ``DM_STATION_NAME``."""
        return station_name()

    def getDsWebServiceUrl(self) -> str | None:
        """Return the base URL of the storage service."""
        return os.environ.get(URL_VARIABLES["storage"])

    def getDaqWebServiceUrl(self) -> str | None:
        """Return the base URL of the data acquisition service."""
        return os.environ.get(URL_VARIABLES["acquisition"])

    def getCatWebServiceUrl(self) -> str | None:
        """Return the base URL of the catalog."""
        return os.environ.get(URL_VARIABLES["catalog"])

    def getProcWebServiceUrl(self) -> str | None:
        """Return the base URL of the processing service."""
        return os.environ.get(URL_VARIABLES["processing"])

    def getApsDbWebServiceUrl(self) -> str | None:
        """Return the base URL of the facility database service."""
        return os.environ.get(URL_VARIABLES["facility"])

    def getAllowedExperimentTypes(self) -> list[str]:
        """Return the experiment types of ``DM_ALLOWED_EXPERIMENT_TYPES``, the default one first."""
        return [name.strip() for name in os.environ.get("DM_ALLOWED_EXPERIMENT_TYPES", "").split(",") if name.strip()]

    def hasExperimentIsolationSettingsFile(self) -> bool:
        """Return whether ``DM_EXPERIMENT_ISOLATION_SETTINGS_FILE`` names a file."""
        given = os.environ.get("DM_EXPERIMENT_ISOLATION_SETTINGS_FILE", "")
        return bool(given) and Path(given).is_file()


def _upper_snake(key: str) -> str:
    return "".join(f"_{letter}" if letter.isupper() and not key.isupper() else letter for letter in key).upper()
