"""Downloads that survive a broken connection: resumed by range, verified, and visible only when complete."""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common.digests import digest_stream
from dm.common.errors import CommunicationError, DmException, InvalidArgument, TransferError
from dm.common.wire import fault

if TYPE_CHECKING:
    import httpx

    from dm.common.rest import RestClient

ATTEMPTS_WITHOUT_PROGRESS = 3
PROGRESS = 1 << 16  # bytes; an attempt that brought fewer was fruitless
PAUSE = 0.2  # seconds before the attempt after a fruitless one, more after each further one
_MAX_TAG = 120
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class _StartAgainError(CommunicationError):
    """What was received so far is of no use."""


class _Part:
    """The hidden file a download grows in, ``.<key>.<etag>.dmpart`` beside its target.

    The strong ETag stands in the name, so that a later program can ask the server whether its bytes still hold.
    """

    def __init__(self, target: Path, address: str) -> None:
        self.directory = target.parent
        self.key = hashlib.sha256(os.fsencode(target.name) + b"\n" + address.encode()).hexdigest()[:20]
        self.descriptor = -1
        self.path: Path | None = None
        self.tag = ""

    def resume(self) -> None:
        """Take over what an earlier attempt left, if it is ours and nobody works on it."""
        for path in sorted(self.directory.glob(f".{self.key}.*.dmpart")):
            tag = _tag_of(path.name.split(".")[2])
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                if tag and self._claim(descriptor):
                    self.descriptor, self.path, self.tag = descriptor, path, tag
                    return
                os.close(descriptor)

    def restart(self, tag: str) -> None:
        """Begin anew with the validator of the current reply; without a usable one the part cannot be resumed."""
        self.discard()
        name = _name_of(tag)
        path = self.directory / f".{self.key}.{name}.dmpart"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = -1
        if name:
            with contextlib.suppress(OSError):  # something else of that name: leave it alone
                descriptor = os.open(path, flags, 0o666)
        if descriptor >= 0 and not self._claim(descriptor):  # another program downloads the same just now
            os.close(descriptor)
            descriptor = -1
        if descriptor < 0:
            tag = ""
            path = self.directory / f".{self.key}.-{os.getpid()}-{id(self):x}.dmpart"
            descriptor = os.open(path, flags | os.O_EXCL, 0o666)
        os.ftruncate(descriptor, 0)
        self.descriptor, self.path, self.tag = descriptor, path, tag

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size if self.descriptor >= 0 else 0

    def append(self, chunk: bytes) -> None:
        os.lseek(self.descriptor, 0, os.SEEK_END)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self.descriptor, view) :]

    def publish(self, target: Path) -> None:
        """Make the bytes durable and give them their name."""
        assert self.path is not None
        os.fsync(self.descriptor)
        self.path.replace(target)
        self.path = None
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        descriptor, self.descriptor, self.path, self.tag = self.descriptor, -1, None, ""
        if descriptor >= 0:
            os.close(descriptor)

    @staticmethod
    def _claim(descriptor: int) -> bool:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


class Download:
    """One download into ``target``; :meth:`RestClient.download` describes the arguments.

    A broken connection is taken up again where it broke, as long as there is progress; a program that starts again
    continues what an earlier one left. The bytes are verified against length and digests before the rename.
    """

    def __init__(
        self, client: RestClient, path: str, target: Path, *, query: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        self._client = client
        self._path = path
        self._target = target
        self._query = query
        self._headers = {**headers, "Accept": "*/*", "Accept-Encoding": "identity"}
        self._part = _Part(target, client.address(path, query))

    def run(
        self, size: int | None, digests: Mapping[str, str], progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """Download, verify, rename; return the target.

        :raises InvalidArgument: the target is a directory, or its directory is missing.
        :raises TransferError: length or digest differ; nothing is left behind.
        """
        target, part = self._target, self._part
        if target.is_dir():
            raise InvalidArgument(f"Target {str(target)!r} is a directory; name a file in it.")
        if not target.parent.is_dir():
            raise InvalidArgument(f"Directory {str(target.parent)!r} does not exist; make it first.")
        part.resume()
        try:
            total = self._transfer(progress or (lambda _received, _total: None))
            _verify(part, target, total if size is None else size, digests)
            part.publish(target)
        finally:
            if not part.tag:
                part.discard()
            part.close()
        return target

    def _transfer(self, progress: Callable[[int, int], None]) -> int:
        """Receive until complete; return the total length the server announced."""
        fruitless = 0
        while True:
            before = self._part.size
            try:
                return int(self._client.with_login(lambda: self._receive(progress)))
            except CommunicationError as error:
                fruitless = fruitless + 1 if self._part.size < before + PROGRESS else 0
                resumable = bool(self._part.tag) or isinstance(error, _StartAgainError)
                if fruitless >= ATTEMPTS_WITHOUT_PROGRESS or not resumable:
                    raise
                time.sleep(PAUSE * fruitless)

    def _receive(self, progress: Callable[[int, int], None]) -> int:
        part, sent = self._part, dict(self._headers)
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


def _begin(response: httpx.Response, part: _Part) -> int:
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
    return fault(response, body) or CommunicationError(f"{_shown(response)} sent no file.")


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


def _verify(part: _Part, target: Path, size: int, digests: Mapping[str, str]) -> None:
    if part.size != size:
        found = part.size
        part.discard()
        raise TransferError(f"Download of {target.name!r} has {found} bytes instead of {size}; try again.")
    if not digests:
        return
    with os.fdopen(os.dup(part.descriptor), "rb", buffering=0) as stream:
        stream.seek(0)
        try:
            _, found_digests = digest_stream(stream, digests)
        except InvalidArgument:
            part.discard()
            raise
    for algorithm, expected in digests.items():
        if found_digests[algorithm] != expected.lower():
            part.discard()
            raise TransferError(
                f"Download of {target.name!r} has {algorithm} {found_digests[algorithm]} instead of {expected}; "
                "try again."
            )


def _shown(response: httpx.Response) -> str:
    return str(response.url).partition("?")[0]


def _name_of(tag: str) -> str:
    """Return a strong ETag as part of a file name, or nothing when it is missing or too long."""
    name = base64.urlsafe_b64encode(tag.encode()).decode().rstrip("=")
    return name if 0 < len(name) <= _MAX_TAG else ""


def _tag_of(name: str) -> str:
    try:
        return base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
