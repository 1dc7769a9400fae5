"""What everything that speaks to Globus shares: credentials, its errors as ours, names on collections."""

from __future__ import annotations

import logging
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common.errors import CommunicationError, ConfigurationError, DmException, ServiceUnavailable, TransferError
from dm.common.paths import display, encode
from dm.common.secretfiles import first_line

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError
    from globus_sdk.transport import RetryConfig

_log = logging.getLogger(__name__)
HTTP_SECONDS = 30.0
_LONGEST_SLEEP = 2.0  # inside the library, where nobody can wake us; longer waits are the caller's
UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f]")


class UnknownToGlobus(TransferError):  # noqa: N818 - reads better where it is caught
    """There is no such task, collection, group or rule, or this account may not see it."""


class GlobusCalls:
    """Calls Globus for one client.

    :param client: its id, for error texts. :param consents: what to do about a missing consent, for error texts.
    """

    def __init__(self, client: object, consents: str = "Give the consent, and renew the refresh token file.") -> None:
        self._client = client
        self._consents = consents

    def forget(self) -> None:
        """Forget credentials that Globus has refused."""

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
            self.forget()
            return ConfigurationError(
                f"Globus refuses the credentials of client {self._client}: {said}. "
                "Renew the secret or refresh token file; DM reads it again."
            )
        if error.info.consent_required:
            return ConfigurationError(f"Globus needs a consent: {said}. {self._consents}")
        if status == 403:
            return ConfigurationError(f"Globus does not permit it: {said}.")
        unknown = status == 404
        return (UnknownToGlobus if unknown else TransferError)(f"Globus refuses it ({status}): {said}.")


def retries() -> RetryConfig:
    """Return how the library itself tries again: once, with a new access token or after a hiccup."""
    from globus_sdk.transport import RetryConfig

    return RetryConfig(max_retries=1, max_sleep=_LONGEST_SLEEP)


def on_collection(path: bytes, shown: dict[str, str]) -> str | None:
    """Return where a collection shows a path, or ``None`` when it does not.

    :param shown: directory -> its path on the collection; the longest directory that fits counts.
    :raises ValueError: the path is shown, but Globus cannot name it: not UTF-8, or with control characters.
    """
    for directory in sorted(shown, key=len, reverse=True):
        above = encode(directory).rstrip(b"/") + b"/"
        if path.startswith(above):
            text = shown[directory].rstrip("/") + "/" + path[len(above) :].decode()
            if UNNAMEABLE.search(text):
                raise ValueError("it has control characters")
            return text
    return None


def absolute_names(value: dict[str, str]) -> dict[str, str]:
    """Check the directories and their paths on a collection. :raises ValueError: one is not absolute."""
    for name in (*value, *value.values()):
        if not name.startswith("/") or UNNAMEABLE.search(name):
            raise ValueError(f"{name!r} is not an absolute path")
    return value


def secret(path: Path) -> str:
    """Return the first line of a file that only this account may read.

    :raises ConfigurationError: unreadable or empty.
    """
    line, mode = first_line(path, "Globus credential file")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        _log.warning("Globus credential file %s can be read by everybody; run: chmod 600 %s", path, path)
    return line.strip()


def _cause(error: BaseException) -> str:
    """Return what a network error says, without the layers of libraries around it."""
    while error.__context__ is not None:
        error = error.__context__
    return display(str(error).encode("utf-8", "replace"))[:300].rstrip(".") or type(error).__name__
