"""Downloads that survive a broken connection: resumed by range, verified, and visible only when complete."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common import paths
from dm.common.errors import CommunicationError, DmException, InvalidArgument, ServiceUnavailable, TransferError
from dm.common.landing import Leftovers, Part
from dm.common.wire import fault

if TYPE_CHECKING:
    import httpx

    from dm.common.rest import RestClient

ATTEMPTS_WITHOUT_PROGRESS = 3
PROGRESS = 1 << 16  # bytes; an attempt that brought fewer was fruitless
PAUSE = 0.2  # seconds before the attempt after a fruitless one, more after each further one
PATIENCE = 120.0  # seconds to wait for a place at a service that says it is busy
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Progress = Callable[[int, int], None]


class _StartAgainError(CommunicationError):
    """What was received so far is of no use."""


class _BusyError(ServiceUnavailable):
    """The service asks to come again later."""


class Download:
    """One download into ``name`` of an open directory.

    A broken connection is taken up again where it broke, as long as there is progress; a program that starts again
    continues what an earlier one left. The bytes are verified against length and digests before the rename.

    :param path: :param query: :param headers: of the request.
    """

    def __init__(  # noqa: PLR0917
        self,
        client: RestClient,
        path: str,
        directory: int,
        name: bytes,
        query: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        self._client = client
        self._path = path
        self._directory = directory
        self._name = name
        self._query = query
        self._headers = {**headers, "Accept": "*/*", "Accept-Encoding": "identity"}

    def run(
        self,
        size: int | None,
        digests: Mapping[str, str],
        progress: Progress | None = None,
        *,
        mtime_ns: int | None = None,
        known: Leftovers | None = None,
    ) -> None:
        """Download, verify, rename; the directory's own entry is left to the caller to make durable.

        :param known: see :meth:`Part.resume`.
        :raises TransferError: length or digest differ; nothing is left behind.
        :raises InvalidArgument: a digest nobody knows; nothing was fetched.
        """
        told = progress or (lambda _received, _total: None)
        part = Part(self._directory, self._name, self._client.address(self._path, self._query), digests)
        part.resume(known)
        try:
            again = part.resumed
            while True:
                total = self._transfer(part, told)
                try:
                    self._verify(part, total if size is None else size, digests)
                    break
                except TransferError:
                    if not again:
                        raise
                    again = False  # what an earlier program left was not whole: once more, from its beginning
            part.publish(mtime_ns)
        finally:
            if not part.tag:
                part.discard()
            part.close()

    def _transfer(self, part: Part, progress: Progress) -> int:
        """Receive until complete; return the total length the server announced."""
        fruitless, busy_since, busy = 0, 0.0, 0
        while True:
            before = part.size
            try:
                return int(self._client.with_login(lambda: self._receive(part, progress)))
            except _BusyError:
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since > PATIENCE:
                    raise
                busy += 1
                time.sleep(min(PAUSE * busy, 2.0) * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come at once
                progress(part.size, part.size)  # whoever wants to stop says so here
            except CommunicationError as error:
                fruitless = fruitless + 1 if part.size < before + PROGRESS else 0
                resumable = bool(part.tag) or isinstance(error, _StartAgainError)
                if fruitless >= ATTEMPTS_WITHOUT_PROGRESS or not resumable:
                    raise
                busy_since = 0.0
                time.sleep(PAUSE * fruitless)

    def _receive(self, part: Part, progress: Progress) -> int:
        sent = dict(self._headers)
        if part.size and part.tag:
            sent |= {"Range": f"bytes={part.size}-", "If-Range": part.tag}
        response = self._client.send("GET", self._path, query=self._query, headers=sent, stream=True)
        try:
            total = _begin(response, part)
            for chunk in _chunks(response):
                part.append(chunk)
                progress(part.size, total)
        finally:
            response.close()
        if part.size < total:
            raise CommunicationError(f"The download of {_shown(response)} ended after {part.size} of {total} bytes.")
        return total

    def _verify(self, part: Part, size: int, digests: Mapping[str, str]) -> None:
        shown = paths.display(self._name)
        if part.size != size:
            found = part.size
            part.discard()
            raise TransferError(f"Download of {shown!r} has {found} bytes instead of {size}; try again.")
        if not digests:
            return
        found_digests = part.digests()
        for algorithm, expected in digests.items():
            if found_digests[algorithm] != expected.lower():
                part.discard()
                found_digest = found_digests[algorithm]
                raise TransferError(
                    f"Download of {shown!r} has {algorithm} {found_digest} instead of {expected}; try again."
                )


def download(  # noqa: PLR0917
    client: RestClient,
    path: str,
    target: Path,
    query: Mapping[str, Any],
    headers: Mapping[str, str],
    size: int | None,
    digests: Mapping[str, str],
    progress: Progress | None,
) -> Path:
    """Download into a file; :meth:`RestClient.download` describes the arguments.

    :raises InvalidArgument: the target is a directory, or its directory is missing.
    """
    if target.is_dir():
        raise InvalidArgument(f"Target {str(target)!r} is a directory; name a file in it.")
    if not target.parent.is_dir():
        raise InvalidArgument(f"Directory {str(target.parent)!r} does not exist; make it first.")
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        Download(client, path, directory, os.fsencode(target.name), query, headers).run(size, digests, progress)
        os.fsync(directory)
    finally:
        os.close(directory)
    return target


def _begin(response: httpx.Response, part: Part) -> int:
    """Decide from the reply's head where its bytes belong; return the total length."""
    if response.status_code == 416 and part.size:  # complete already, or the source has shrunk: the tag decides
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("content-range", ""))
        if match and int(match[1]) == part.size and response.headers.get("etag", part.tag) == part.tag:
            return part.size
        part.discard()
        raise _StartAgainError(f"{_shown(response)} has changed while it was downloaded; start again.")
    if (error := _refusal(response)) is not None:
        raise error
    if response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if not match or int(match[1]) != part.size:
            part.discard()
            raise _StartAgainError(f"{_shown(response)} sent another range than asked for; start again.")
        return int(match[3])
    tag = response.headers.get("etag", "")
    part.restart("" if tag.startswith("W/") else tag)
    length = response.headers.get("content-length", "")
    if not length.isdecimal():
        raise CommunicationError(f"{_shown(response)} does not say its length; the download cannot be verified.")
    return int(length)


def _refusal(response: httpx.Response) -> DmException | None:
    code = response.headers.get("dm-status-code", "0").strip()
    if response.status_code < 300 and code in ("", "0"):
        return None
    response.read()
    try:
        body: Any = response.json()
    except ValueError:
        body = response.text
    error = fault(response, body) or CommunicationError(f"{_shown(response)} sent no file.")
    if isinstance(error, ServiceUnavailable) and "retry-after" in response.headers:
        return _BusyError(str(error))
    return error


def _chunks(response: httpx.Response) -> Iterator[bytes]:
    import httpx

    if response.is_closed or response.status_code == 416:
        return
    try:
        yield from response.iter_raw()  # as they come: collected chunks would be lost when the connection breaks
    except httpx.HTTPError as error:
        raise CommunicationError(
            f"The download of {_shown(response)} broke off: {error or type(error).__name__}."
        ) from error


def _shown(response: httpx.Response) -> str:
    return str(response.url).partition("?")[0]
