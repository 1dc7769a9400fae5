"""Talking to Globus: settings, credentials, and its errors as ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from pydantic import Field, field_validator, model_validator

from dm.common.globus import HTTP_SECONDS, GlobusCalls, UnknownToGlobus, absolute_names, on_collection, retries, secret
from dm.common.settings import ServiceSettings

if TYPE_CHECKING:
    import globus_sdk
    from globus_sdk import TransferClient
    from globus_sdk.authorizers import GlobusAuthorizer

__all__ = ["GlobusSettings", "Session", "UnknownToGlobus", "on_collection"]


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
        return absolute_names(value)

    @model_validator(mode="after")
    def _some_credential(self) -> GlobusSettings:
        if self.client_secret_file is None and self.refresh_token_file is None:
            raise ValueError("set client_secret_file, refresh_token_file, or both")
        return self


class Session(GlobusCalls):
    """Clients with one set of credentials.

    :param settings: say where the credentials are; the files are read again after Globus refused them.
    """

    def __init__(self, settings: GlobusSettings) -> None:
        super().__init__(
            settings.client_id,
            "Name the collection in acquisition.transports.globus.data_access, or give the consent and renew the "
            "refresh token file.",
        )
        self.settings = settings
        self._authorizer: GlobusAuthorizer | None = None
        self._lock = threading.Lock()

    @contextmanager
    def client(self) -> Iterator[TransferClient]:
        """A client of the Transfer service for one thread.

        :raises ConfigurationError: :raises CommunicationError: :raises ServiceUnavailable: no access at the moment.
        """
        from globus_sdk import TransferClient
        from globus_sdk.transport import RequestsTransport

        transport = RequestsTransport(http_timeout=HTTP_SECONDS)
        try:
            yield TransferClient(
                authorizer=self._authorized(),
                transport=transport,
                retry_config=retries(),
                app_name="DM",
            )
        finally:
            transport.close()

    def forget(self) -> None:
        """Read the credentials anew for the next call."""
        self._authorizer = None

    def _authorized(self) -> GlobusAuthorizer:
        with self._lock:
            if self._authorizer is None:
                self._authorizer = self.call(self._new_authorizer)
            return self._authorizer

    def _new_authorizer(self) -> GlobusAuthorizer:
        import globus_sdk
        from globus_sdk.scopes import GCSCollectionScopes, TransferScopes

        settings = self.settings
        client_id = str(settings.client_id)
        login: globus_sdk.ConfidentialAppAuthClient | globus_sdk.NativeAppAuthClient
        if settings.client_secret_file is None:
            login = globus_sdk.NativeAppAuthClient(client_id, retry_config=retries())
        else:
            word = secret(settings.client_secret_file)
            login = globus_sdk.ConfidentialAppAuthClient(client_id, word, retry_config=retries())
        if settings.refresh_token_file is not None:
            return globus_sdk.RefreshTokenAuthorizer(secret(settings.refresh_token_file), login)
        assert isinstance(login, globus_sdk.ConfidentialAppAuthClient)
        scope = TransferScopes.all
        for collection in settings.data_access:
            scope = scope.with_dependency(GCSCollectionScopes(str(collection)).data_access)
        return globus_sdk.ClientCredentialsAuthorizer(login, scope)
