"""Settings: a TOML file with one section per service, overridden by ``DM_<SECTION>__<FIELD>`` variables.

Each service declares a :class:`ServiceSettings` model; unknown keys are refused by name. Everything a person reads
about settings (sample file, reference page, JSON schema) is generated from the models by
:mod:`dm.common.settings_docs`.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from dm.common import networks
from dm.common.errors import ConfigurationError

SECTIONS = ("site", "storage", "facility", "station", "catalog", "acquisition", "processing")
CONFIG_FILE = "DM_CONFIG_FILE"
_SECRET_NAME = re.compile(r"password$|secret$|token$", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^/\s]*@")

M = TypeVar("M", bound=BaseModel)


class ServiceSettings(BaseModel):
    """Base of all settings models: unknown keys refused, values fixed after loading.

    Relative paths are relative to the directory of the settings file, so that a service finds them whatever its
    working directory; ``~`` is expanded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="after")
    @classmethod
    def _absolute_paths(cls, value: Any, info: ValidationInfo) -> Any:
        return _absolute(value, (info.context or {}).get("base"))


def _absolute(value: Any, base: Path | None) -> Any:
    if isinstance(value, Path):
        expanded = value.expanduser()
        return base / expanded if base else expanded
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_absolute(item, base) for item in value)
    if type(value) is dict:
        return {key: _absolute(item, base) for key, item in value.items()}
    return value


class WebSettings(ServiceSettings):
    """What every service with a REST interface has."""

    host: str = Field(default="0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: int = Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    certificate: Path = Field(description="TLS certificate chain (PEM).", examples=["server.pem"])
    key: Path = Field(description="Private key of the certificate (PEM, readable by the service only).")
    threads: int = Field(default=24, ge=4, le=256, description="Requests served at the same time.")
    log_file: Path | None = Field(default=None, description="Log file; unset: standard error.")
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least important messages logged."
    )
    tls_minimum: Literal["1.2", "1.3"] = Field(default="1.2", description="Lowest TLS version spoken.")
    certificate_warning_days: int = Field(
        default=30, ge=0, description="Health warns when the certificate ends within so many days."
    )
    trusted_proxies: list[str] = Field(
        default=[],
        description="Addresses and networks of proxies (CIDR) whose X-Forwarded-For header tells who calls.",
        examples=[["127.0.0.1", "10.1.0.0/16"]],
    )
    session_idle_minutes: int = Field(default=60, ge=1, description="A session not used for so long ends.")
    session_hours: int = Field(default=24, ge=1, description="A session ends after so long in any case.")

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        networks.parsed(value)
        return value

    @property
    def session_limits(self) -> tuple[float, float]:
        """Idle and absolute limit of a session, in seconds."""
        return self.session_idle_minutes * 60.0, self.session_hours * 3600.0


class StationServiceSettings(WebSettings):
    """What every service of a station has."""

    database_url: str = Field(
        description="MongoDB of the station; the path names the database.",
        examples=["mongodb://localhost:27017/dm"],
        pattern=r"^mongodb(\+srv)?://",
    )


class StationSettings(ServiceSettings):
    """What the services of one station share: section ``[station]``."""

    name: str = Field(description="Station name.", examples=["25IDC"], min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")
    storage_service_url: str = Field(
        description="Base URL of the site's storage service.", examples=["https://localhost:22237"]
    )
    ca_file: Path | None = Field(
        default=None, description="Certificate authority file (PEM) that signs DM's services; unset: the system's."
    )
    service_username: str = Field(
        default="", description="The station's service account at the site; empty: as the login file says."
    )
    service_password_file: Path = Field(
        description="Login file of the service account (one line, username|password, mode 0600).",
        examples=["station.service.login"],
    )
    var_dir: Path = Field(
        default=Path("var"), description="Directory for state, pid and log files of the station's services."
    )
    database_directory: Path | None = Field(
        default=None,
        description="Directory of the embedded database that dm-control runs; unset: the station has a MongoDB.",
    )


class SiteSettings(ServiceSettings):
    """What the services of the site share on this host: section ``[site]``."""

    var_dir: Path = Field(
        default=Path("var"), description="Directory for state, pid and log files of the site's services."
    )
    database_directory: Path | None = Field(
        default=None,
        description="Directory of the embedded database that dm-control runs; unset: the site has a PostgreSQL.",
    )


def default_path() -> Path:
    """Return the settings file: ``DM_CONFIG_FILE``, else ``$DM_ETC_DIR/dm.toml``.

    :raises ConfigurationError: neither variable is set.
    """
    if given := os.environ.get(CONFIG_FILE):
        return Path(given)
    if directory := os.environ.get("DM_ETC_DIR"):
        return Path(directory) / "dm.toml"
    raise ConfigurationError(
        f"No settings file is named; give --config, or set {CONFIG_FILE} or DM_ETC_DIR (source dm.setup.sh)."
    )


def read(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the sections of a settings file.

    :raises ConfigurationError: unreadable, not TOML, or a section nobody knows.
    """
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            sections = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"Settings file {os.fspath(path)} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Settings file {os.fspath(path)} is not valid TOML: {error}.") from None
    for name, values in sections.items():
        if name not in SECTIONS:
            raise ConfigurationError(
                f"Settings file {os.fspath(path)}: unknown section [{name}];{_nearest(name, SECTIONS)}"
            )
        if not isinstance(values, dict):
            raise ConfigurationError(f"Settings file {os.fspath(path)}: {name} must be a section, written [{name}].")
    return sections


def load(model: type[M], section: str, path: str | os.PathLike[str] | None = None) -> M:
    """Return the checked settings of one section.

    :param model: the section's model.
    :param section: TOML section, e.g. ``storage``; ``DM_STORAGE__PORT=1`` overrides its ``port``, and
        ``DM_STORAGE__A__B`` the ``b`` of its sub-table ``a``.
    :param path: settings file; default: :func:`default_path`.
    :raises ConfigurationError: naming section, field, value (never a secret one) and file.
    """
    file = Path(path) if path is not None else default_path()
    values = read(file).get(section, {})
    return build(model, _overridden(model, section, values), section, file)


def build(model: type[M], values: Mapping[str, Any], section: str, file: str | os.PathLike[str]) -> M:
    """Check values against a model (also for the settings of a plugin, which come as a sub-table).

    :param section: said in error texts, e.g. ``acquisition.plugins.metadata``.
    :param file: said in error texts; relative paths are relative to its directory.
    :raises ConfigurationError: see :func:`load`.
    """
    context = {"base": Path(file).absolute().parent}
    try:
        return model.model_validate(dict(values), context=context)
    except ValidationError as error:
        sentences = [_sentence(model, section, details) for details in error.errors(include_url=False)]
        raise ConfigurationError(f"Settings file {os.fspath(file)}: {' '.join(sentences)}") from None


def shown(settings: BaseModel) -> dict[str, Any]:
    """Return settings as plain values for people: secrets and passwords in URLs are replaced by ``***``."""
    result: dict[str, Any] = {}
    for name in type(settings).model_fields:
        result[name] = _shown_value(name, getattr(settings, name))
    return result


def _shown_value(name: str, value: Any) -> Any:
    if isinstance(value, BaseModel):
        return shown(value)
    if isinstance(value, SecretStr) or (_SECRET_NAME.search(name) and isinstance(value, str)):
        return "***"
    if isinstance(value, str):
        return _URL_PASSWORD.sub(r"\1***@", value)
    if isinstance(value, Mapping):
        return {str(key): _shown_value(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown_value(name, item) for item in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def _overridden(model: type[BaseModel], section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the environment's values over a section's."""
    result = dict(values)
    prefix = f"DM_{section.upper()}__"
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(prefix):
            continue
        keys = variable.removeprefix(prefix).lower().split("__")
        field = _field(model, keys)
        if field is None:
            raise ConfigurationError(
                f"Environment variable {variable} names no setting of [{section}];"
                f"{_nearest(keys[-1], model.model_fields)}"
            )
        table = result
        for key in keys[:-1]:
            inner = table.get(key)
            table[key] = dict(inner) if isinstance(inner, Mapping) else {}
            table = table[key]
        table[keys[-1]] = _environment_value(field, text)
    return result


def _field(model: type[BaseModel], keys: list[str]) -> Any:
    """Return the annotation a chain of keys leads to, or ``None`` where there is nothing of that name."""
    annotation: Any = model
    for key in keys:
        parts = _parts(annotation)
        inner = next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)
        table = next((part for part in parts if get_origin(part) in (dict, Mapping)), None)
        if inner is not None and key in inner.model_fields:
            annotation = inner.model_fields[key].annotation
        elif table is not None:
            annotation = get_args(table)[1]
        elif annotation is not Any:
            return None
    return annotation


def _parts(annotation: Any) -> list[Any]:
    """Return the annotation and, of a union, its members."""
    union = get_origin(annotation) in (Union, UnionType)
    return [annotation, *get_args(annotation)] if union else [annotation]


def _environment_value(annotation: Any, text: str) -> Any:
    """Read a variable: text and numbers as they stand, lists and tables as TOML, lists also as comma list."""
    kinds = {get_origin(part) or part for part in _parts(annotation)}
    containers = kinds & {list, tuple, set, frozenset, dict, Mapping}
    if not containers and Any not in kinds:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [item.strip() for item in text.split(",") if item.strip()] if containers else text


def _sentence(model: type[BaseModel], section: str, details: Any) -> str:
    location = [str(part) for part in details["loc"]]
    name = ".".join([section, *location])
    kind = details["type"]
    if kind == "extra_forbidden":
        known = _model_at(model, location[:-1]).model_fields
        return f"unknown key {name};{_nearest(location[-1], known)}"
    if kind == "missing":
        return f"{name} is missing; set it."
    reason = details["msg"].removeprefix("Value error, ").rstrip(".")
    reason = reason[:1].lower() + reason[1:]
    if not location:
        return f"[{section}]: {reason}."
    if _is_secret(model, location):
        return f"{name} is not acceptable: {reason}."
    return f"{name} = {_short(_shown_value(location[-1], details['input']))} is not acceptable: {reason}."


def _model_at(model: type[BaseModel], location: Iterable[str]) -> type[BaseModel]:
    """Return the model of the sub-table a location ends in."""
    for key in location:
        found = _field(model, [key])
        inner = next((part for part in _parts(found) if isinstance(part, type) and issubclass(part, BaseModel)), None)
        model = inner or model
    return model


def _is_secret(model: type[BaseModel], location: list[str]) -> bool:
    for depth, key in enumerate(location):
        info = _model_at(model, location[:depth]).model_fields.get(key)
        if _SECRET_NAME.search(key) or (info and SecretStr in _parts(info.annotation)):
            return True
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1)
    return f" did you mean {close[0]}?" if close else f" known are {', '.join(choices) or 'none'}."
