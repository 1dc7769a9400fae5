"""The one exception family of DM: published codes, one HTTP status each, one JSON shape.

A service raises one of these; the server kit turns it into the status, the ``Dm-Status-Code`` header and the JSON
object ``{errorCode, errorClass, errorMessage, requestId}``; the client kit raises the same class again
(:func:`from_wire`). Codes 5, 6, 12, 14, 15, 16, 19 and 22 are published; the others are ours.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DmException(Exception):  # noqa: N818 - its name is published
    """Anything DM refuses or fails to do, said in one sentence.

    :param message: what is wrong, with which value, and what to do.
    :param code: overrides the class's code (used for errors of unknown class that came over the wire).
    """

    code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = self.code if code is None else code

    def getErrorCode(self) -> int:
        """Return the numeric code, also the exit status of commands."""
        return self.error_code

    def getErrorMessage(self) -> str:
        """Return the sentence."""
        return self.message

    def to_wire(self, request_id: str | None = None) -> dict[str, Any]:
        """Return the JSON object of this error."""
        wire = {"errorCode": self.error_code, "errorClass": type(self).__name__, "errorMessage": self.message}
        if request_id:
            wire["requestId"] = request_id
        return wire

    def __str__(self) -> str:
        return self.message


class InternalError(DmException):
    """A defect on our side; the log has the details under the request id."""

    code = 2


class CommunicationError(DmException):
    """A service could not be reached or did not answer in time."""

    code = 3
    http_status = 502


class ConfigurationError(DmException):
    """Settings or environment do not fit."""

    code = 4


class AuthorizationError(DmException):
    """The caller is known but may not do this."""

    code = 5
    http_status = 403


class AuthenticationError(DmException):
    """Wrong user name or password, or no login at all."""

    code = 6
    http_status = 401


class InvalidRequest(DmException):
    """A request with missing or malformed arguments."""

    code = 7
    http_status = 400


class InvalidArgument(InvalidRequest):
    """One argument has a value that cannot be."""

    code = 8


class ServiceUnavailable(DmException):
    """Something this service depends on is down; try again."""

    code = 9
    http_status = 503


class TransferError(DmException):
    """A file did not arrive as it left."""

    code = 10


class ProcessingError(DmException):
    """A processing stage could not be run."""

    code = 11


class InvalidSession(DmException):
    """The session is unknown or has expired; log in again."""

    code = 12
    http_status = 401


class ObjectNotFound(DmException):
    """No such object, or the caller may not know of it."""

    code = 14
    http_status = 404


class ObjectAlreadyExists(DmException):
    """An object of that name exists."""

    code = 15
    http_status = 409


class InvalidObjectState(DmException):
    """The object is not in a state that allows this."""

    code = 16
    http_status = 409


class ServiceLimit(DmException):
    """A limit of the service (size, count, rate) was exceeded."""

    code = 19
    http_status = 413


class TaskTimeout(DmException):
    """An operation did not finish in its time."""

    code = 22
    http_status = 504


def _family(cls: type[DmException]) -> list[type[DmException]]:
    return [cls] + [descendant for child in cls.__subclasses__() for descendant in _family(child)]


def from_wire(body: dict[str, Any]) -> DmException:
    """Rebuild the exception a service sent.

    :param body: the JSON object; ``errorCode`` decides the class, ``errorClass`` breaks a tie.
    :returns: an instance, not raised.
    """
    classes = _family(DmException)
    message = str(body.get("errorMessage", ""))
    for cls in classes:
        if cls.__name__ == body.get("errorClass"):
            return cls(message)
    code = body.get("errorCode")
    for cls in classes:
        if cls.code == code:
            return cls(message)
    return DmException(message, code=code if isinstance(code, int) else None)
