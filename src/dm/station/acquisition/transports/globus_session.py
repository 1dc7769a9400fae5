"""Talking to Globus: settings, credentials, and its errors as ours."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from dm.common.errors import (
    CommunicationError,
    ConfigurationError,
    DmException,
    ServiceUnavailable,
    TransferError,
)
from dm.common.paths import display, encode
from dm.common.settings import ServiceSettings

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError, TransferClient
    from globus_sdk.authorizers import GlobusAuthorizer

_log = logging.getLogger(__name__)
_HTTP_SECONDS = 30.0
_LONGEST_SLEEP = 2.0  # inside the library, where nobody can wake us; longer waits are the pipeline's
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f]")


class UnknownToGlobus(TransferError):  # noqa: N818 - reads better where it is caught
    """There is no such task or collection, or this account may not see it."""


class GlobusSettings(ServiceSettings):
    """Settings ``[acquisition.transports.globus]``."""

    client_id: UUID = Field(description="Client id of the application registered at https://app.globus.org/settings.")
    client_secret_file: Path | None = Field(
        default=None, description="File with the client's secret, one line, mode 0600; unset for a native application."
    )
    refresh_token_file: Path | None = Field(
        default=None,
        description="File with a refresh token, one line, mode 0600: transfers then run as the user who logged in. "
        "Unset: as the client itself.",
    )
    source_collection: UUID = Field(description="Collection (id) that shows the data directories of this machine.")
    source_paths: dict[str, str] = Field(
        default={"/": "/"},
        min_length=1,
        description="Directories of this machine and where the source collection shows them.",
        examples=[{"/local/data": "/data"}],
    )
    destination_collection: UUID = Field(description="Collection (id) that shows the storage.")
    destination_paths: dict[str, str] = Field(
        default={"/": "/"},
        min_length=1,
        description="Directories of the storage host and where the destination collection shows them.",
        examples=[{"/gdata/dm": "/dm"}],
    )
    data_access: list[UUID] = Field(
        default=[], description="Which of the two need the data_access consent (mapped collections that ask for it)."
    )
    label: str = Field(
        default="DM", max_length=64, pattern=r"^\S(.*\S)?$", description="Begins the label of every task."
    )
    tasks: int = Field(
        default=3, ge=1, le=100, description="Tasks at once; Globus works on three of an account at a time."
    )
    verify_checksum: bool = Field(
        default=True,
        description="Globus compares checksums of both sides too, and sends again what differs. Storage verifies "
        "every file in any case.",
    )
    encrypt_data: bool = Field(default=False, description="Data travel encrypted.")
    deadline_hours: float | None = Field(
        default=None,
        gt=0,
        description="A task that is not over by then is given up. Unset: Globus gives up after a day without progress.",
    )
    poll_seconds: float = Field(default=5, gt=0, le=600, description="A task is looked at so often.")
    workers: int = Field(
        default=max(2, min(8, os.cpu_count() or 2)), ge=1, le=64, description="Files digested at the same time."
    )
    state_directory: Path = Field(
        default=Path("var/globus"), description="What is kept of tasks on their way, for after a restart."
    )

    @field_validator("source_paths", "destination_paths")
    @classmethod
    def _absolute_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in (*value, *value.values()):
            if not name.startswith("/") or _UNNAMEABLE.search(name):
                raise ValueError(f"{name!r} is not an absolute path")
        return value

    @model_validator(mode="after")
    def _some_credential(self) -> GlobusSettings:
        if self.client_secret_file is None and self.refresh_token_file is None:
            raise ValueError("set client_secret_file, refresh_token_file, or both")
        return self


def on_collection(path: bytes, shown: dict[str, str]) -> str | None:
    """Return where a collection shows a path, or ``None`` when it does not.

    :param shown: directory -> its path on the collection; the longest directory that fits counts.
    :raises ValueError: the path is shown, but Globus cannot name it: not UTF-8, or with control characters.
    """
    for directory in sorted(shown, key=len, reverse=True):
        above = encode(directory).rstrip(b"/") + b"/"
        if path.startswith(above):
            text = shown[directory].rstrip("/") + "/" + path[len(above) :].decode()
            if _UNNAMEABLE.search(text):
                raise ValueError("it has control characters")
            return text
    return None


class Session:
    """Clients with one set of credentials.

    :param settings: say where the credentials are; the files are read again after Globus refused them.
    """

    def __init__(self, settings: GlobusSettings) -> None:
        self.settings = settings
        self._authorizer: GlobusAuthorizer | None = None
        self._lock = threading.Lock()

    @contextmanager
    def client(self) -> Iterator[TransferClient]:
        """A client of the Transfer service for one thread.

        :raises ConfigurationError: :raises CommunicationError: :raises ServiceUnavailable: no access at the moment.
        """
        from globus_sdk import TransferClient
        from globus_sdk.transport import RequestsTransport, RetryConfig

        transport = RequestsTransport(http_timeout=_HTTP_SECONDS)
        try:
            yield TransferClient(
                authorizer=self._authorized(),
                transport=transport,
                # one more try: with a new access token, or after a hiccup
                retry_config=RetryConfig(max_retries=1, max_sleep=_LONGEST_SLEEP),
                app_name="DM",
            )
        finally:
            transport.close()

    def _authorized(self) -> GlobusAuthorizer:
        with self._lock:
            if self._authorizer is None:
                self._authorizer = self.call(self._new_authorizer)
            return self._authorizer

    def _new_authorizer(self) -> GlobusAuthorizer:
        import globus_sdk
        from globus_sdk.scopes import GCSCollectionScopes, TransferScopes
        from globus_sdk.transport import RetryConfig

        settings = self.settings
        client_id = str(settings.client_id)
        retries = RetryConfig(max_retries=1, max_sleep=_LONGEST_SLEEP)
        login: globus_sdk.ConfidentialAppAuthClient | globus_sdk.NativeAppAuthClient
        if settings.client_secret_file is None:
            login = globus_sdk.NativeAppAuthClient(client_id, retry_config=retries)
        else:
            secret = _secret(settings.client_secret_file)
            login = globus_sdk.ConfidentialAppAuthClient(client_id, secret, retry_config=retries)
        if settings.refresh_token_file is not None:
            return globus_sdk.RefreshTokenAuthorizer(_secret(settings.refresh_token_file), login)
        assert isinstance(login, globus_sdk.ConfidentialAppAuthClient)
        scope = TransferScopes.all
        for collection in settings.data_access:
            scope = scope.with_dependency(GCSCollectionScopes(str(collection)).data_access)
        return globus_sdk.ClientCredentialsAuthorizer(login, scope)

    def call(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Call Globus; its errors become ours, one sentence each.

        :raises ConfigurationError: credentials or permissions. :raises UnknownToGlobus: no such task or collection.
        :raises ServiceUnavailable: too many requests, or out of order. :raises CommunicationError: not reached.
        :raises TransferError: refused otherwise.
        """
        from globus_sdk import GlobusAPIError, GlobusError, NetworkError

        try:
            return function(*arguments, **more)
        except GlobusAPIError as error:
            raise self._translated(error) from None  # its notes hold whole replies, perhaps with tokens
        except NetworkError as error:
            raise CommunicationError(f"Globus cannot be reached: {_cause(error.underlying_exception)}.") from None
        except (GlobusError, ValueError) as error:
            raise TransferError(f"Globus gave an answer that cannot be used: {error}.") from error

    def _translated(self, error: GlobusAPIError) -> DmException:
        from globus_sdk import AuthAPIError

        said = f"{error.code or error.http_reason}: {error.message or 'no reason given'}".rstrip(".")
        status = error.http_status
        if status >= 500 or status in (408, 429):
            what = "asks us to slow down" if status == 429 else "is out of order"
            return ServiceUnavailable(f"Globus {what} ({status}), so it is tried again later: {said}.")
        if isinstance(error, AuthAPIError) or status == 401:
            self._authorizer = None
            return ConfigurationError(
                f"Globus refuses the credentials of client {self.settings.client_id}: {said}. "
                "Renew the secret or refresh token file; DM reads it again."
            )
        if error.info.consent_required:
            return ConfigurationError(
                f"Globus needs a consent: {said}. Name the collection in acquisition.transports.globus.data_access, "
                "or give the consent and renew the refresh token file."
            )
        if status == 403:
            return ConfigurationError(f"Globus does not permit it: {said}.")
        unknown = status == 404
        return (UnknownToGlobus if unknown else TransferError)(f"Globus refuses it ({status}): {said}.")


def _secret(path: Path) -> str:
    """Return the first line of a file that only this account may read."""
    try:
        with open(path, encoding="utf-8") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            line = stream.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"Globus credential file {path} cannot be read: {reason}.") from None
    if not line:
        raise ConfigurationError(f"Globus credential file {path} is empty; write the secret or token into it.")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        _log.warning("Globus credential file %s can be read by everybody; run: chmod 600 %s", path, path)
    return line


def _cause(error: BaseException) -> str:
    """Return what a network error says, without the layers of libraries around it."""
    while error.__context__ is not None:
        error = error.__context__
    return display(str(error).encode("utf-8", "replace"))[:300].rstrip(".") or type(error).__name__
