"""The keys of a service: its own pair, and those of the clients it lets in.

::

    <directory>/server.key_secret        the service's pair, mode 0600
    <directory>/server.key               its public key, for clients
    <directory>/clients/<any name>.key   public keys of clients, each with ``account`` and perhaps ``events`` in its
                                         metadata

A key belongs to an account. ``events = "all"`` lets it see what becomes of everybody's jobs; without it, of the
account's own. Who may write into ``clients`` decides who may connect; the directory is read again as it changes.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from dm.common import curve
from dm.common.curve import CurveKey
from dm.common.errors import ConfigurationError, InvalidArgument, ObjectNotFound
from dm.station.processing.specs import check_owner

SERVER = "server"
CLIENTS = "clients"
ALL = "all"
MAX_CLIENTS = 10_000
_FRESH = 1.0
_NAME = re.compile(r"[A-Za-z0-9_@-][A-Za-z0-9_.@-]{0,99}")
_log = logging.getLogger(__name__)

_Print = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class ClientKey:
    """A key that is let in.

    :param name: of its file. :param account: whose it is. :param all_events: whether it sees everybody's events.
    """

    name: str
    public: str
    account: str
    all_events: bool


def prepare(directory: Path) -> tuple[CurveKey, bool]:
    """Return the service's pair and whether it was made just now, with the directories it needs.

    :raises ConfigurationError: keys that cannot be used, or a directory that others may write to.
    """
    clients = directory / CLIENTS
    try:
        for place in (directory, clients):
            if not place.is_dir():
                place.mkdir(parents=True)
                place.chmod(0o755)  # whatever the umask: clients read the public key
            if place.stat().st_mode & 0o022:
                raise ConfigurationError(f"Key directory {place} may be written to by others; chmod 755 it.")
    except OSError as error:
        raise ConfigurationError(f"Key directory {directory} cannot be made: {error.strerror}.") from error
    secret = directory / f"{SERVER}{curve.SECRET}"
    made = not secret.exists()
    if made:
        curve.make(directory, SERVER)
    pair = curve.read_secret(secret)
    public = directory / f"{SERVER}{curve.PUBLIC}"
    if not public.exists() or curve.read(public).public != pair.public:
        curve.write_public(public, pair)
    return pair, made


def authorise(directory: Path, key: Path, account: str, name: str | None = None, all_events: bool = False) -> ClientKey:
    """Let a client's key in.

    :param key: its key file. :param account: whose it is. :param name: of its file below ``clients``; default: the
        account and the beginning of the key.
    :raises InvalidArgument: an account or name that cannot be. :raises ConfigurationError: unusable file.
    """
    check_owner(account)
    found = curve.read(key)
    public = found.public.decode("ascii")
    name = name or f"{account}@{re.sub(r'[^A-Za-z0-9]', '', public)[:8]}"
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"Value {name[:80]!r} cannot name a key; use letters, digits and @._-.")
    metadata = {"account": account} | ({"events": ALL} if all_events else {})
    curve.write_public(directory / CLIENTS / f"{name}{curve.PUBLIC}", CurveKey(found.public, None, metadata))
    return ClientKey(name, public, account, all_events)


def revoke(directory: Path, name: str) -> None:
    """Let a key in no longer. :raises ObjectNotFound: none of that name."""
    try:
        if not _NAME.fullmatch(name):
            raise FileNotFoundError
        (directory / CLIENTS / f"{name}{curve.PUBLIC}").unlink()
    except FileNotFoundError:
        raise ObjectNotFound(f"Key {name[:80]!r} does not exist; dm-zmq-keys list shows all.") from None


class ClientKeys:
    """The keys let in, at most a second old. Safe to use from several threads.

    :param directory: of the service's keys.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / CLIENTS
        self.problems: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._print: _Print | None = None
        self._keys: dict[str, ClientKey] = {}
        self._looked = float("-inf")

    def find(self, public: str) -> ClientKey | None:
        """Return the key of a Z85 text, or ``None`` when it is not let in."""
        return self.all().get(public)

    def all(self) -> dict[str, ClientKey]:
        """Return public key -> key. A directory that cannot be read lets nobody in."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= _FRESH:
                self._looked = now
                self._look()
            return self._keys

    def _look(self) -> None:
        try:
            found = self._fingerprint()
        except OSError as error:
            self._print, self._keys = None, {}
            self._complain((f"Key directory {self.directory} cannot be read: {error.strerror}.",))
            return
        if found == self._print:
            return
        keys: dict[str, ClientKey] = {}
        problems: list[str] = []
        for name, *_ in found[:MAX_CLIENTS]:
            try:
                key = _client(self.directory / name)
                if key.public in keys and keys[key.public].account != key.account:
                    raise ConfigurationError(f"Key file {self.directory / name} has the key of another account's.")
                keys.setdefault(key.public, key)
            except (ConfigurationError, InvalidArgument) as error:
                problems.append(error.message)
        if len(found) > MAX_CLIENTS:
            problems.append(f"Key directory {self.directory} has more than {MAX_CLIENTS} keys.")
        self._print, self._keys = found, keys
        self._complain(tuple(problems))

    def _fingerprint(self) -> _Print:
        found = []
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith(curve.PUBLIC) and not entry.name.startswith("."):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:  # revoked this moment
                        continue
                    found.append((entry.name, status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode))
        return tuple(sorted(found))

    def _complain(self, problems: tuple[str, ...]) -> None:
        for problem in set(problems) - set(self.problems):
            _log.warning("%s", problem)
        self.problems = problems


def _client(file: Path) -> ClientKey:
    if file.stat().st_mode & 0o022:
        raise ConfigurationError(f"Key file {file} may be written to by others; chmod 644 it.")
    key = curve.read(file)
    account = key.metadata.get("account", "")
    if not account:
        raise ConfigurationError(f"Key file {file} names no account; add the key by dm-zmq-keys authorise.")
    events = key.metadata.get("events", "own")
    if events not in (ALL, "own"):
        raise ConfigurationError(f"Key file {file} has events = {events[:40]!r}; use own or all.")
    name = file.name.removesuffix(curve.PUBLIC)
    return ClientKey(name, key.public.decode("ascii"), check_owner(account), events == ALL)
