"""CURVE key pairs of ZeroMQ sockets, as files that pyzmq and other programs read too.

A pair is ``<name>.key`` with the public key, for everybody, and ``<name>.key_secret`` with both keys, mode 0600. What a
key is allowed stands in the ``metadata`` part of its file.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dm.common.errors import ConfigurationError

PUBLIC, SECRET = ".key", ".key_secret"
MAX_BYTES = 4096
_KEY = re.compile(r'^\s*(public|secret)-key\s*=\s*"([^"\n]{40})"\s*$', re.MULTILINE)
_METADATA = re.compile(r'^\s{2,}([a-z][a-z-]*)\s*=\s*"?([^"\n]*?)"?\s*$', re.MULTILINE)
_HEAD = "#   ZeroMQ CURVE {kind} key\n\nmetadata\n{metadata}curve\n"


@dataclass(frozen=True)
class CurveKey:
    """The contents of a key file.

    :param public: Z85 text of 40 characters. :param secret: the same of the secret key, where the file has it.
    :param metadata: what else the file says.
    """

    public: bytes
    secret: bytes | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)


def make(directory: Path, name: str, metadata: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """Make a key pair and return its files, the public one and the secret one.

    The secret file is there first, so that a public key never lacks its secret.

    :raises ConfigurationError: the secret file exists already, or cannot be written.
    """
    import zmq

    public, secret = zmq.curve_keypair()
    open_file, secret_file = directory / f"{name}{PUBLIC}", directory / f"{name}{SECRET}"
    _write(secret_file, text(CurveKey(public, secret, metadata or {})), 0o600, new=True)
    _write(open_file, text(CurveKey(public, None, metadata or {})), 0o644)
    return open_file, secret_file


def write_public(file: Path, key: CurveKey) -> None:
    """Write a public key in one step. :raises ConfigurationError: the file cannot be written."""
    _write(file, text(CurveKey(key.public, None, key.metadata)), 0o644)


def text(key: CurveKey) -> str:
    """Return the contents of a key file."""
    metadata = "".join(f'    {name} = "{value}"\n' for name, value in key.metadata.items())
    head = _HEAD.format(kind="secret" if key.secret else "public", metadata=metadata)
    lines = [f'    public-key = "{key.public.decode("ascii")}"\n']
    if key.secret:
        lines.append(f'    secret-key = "{key.secret.decode("ascii")}"\n')
    return head + "".join(lines)


def read(file: Path) -> CurveKey:
    """Return what a key file holds.

    :raises ConfigurationError: unreadable, too long, or no public key in it. The text never holds a key.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigurationError(f"Key file {file} is not a regular file.")
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"Key file {file} cannot be used: {error.strerror}.") from error
    try:
        words = content.decode("ascii") if len(content) <= MAX_BYTES else ""
    except UnicodeDecodeError:
        words = ""
    keys = {name: value.encode("ascii") for name, value in _KEY.findall(words)}
    if "public" not in keys:
        raise ConfigurationError(f"Key file {file} cannot be used: it holds no public CURVE key.")
    before = words.partition("\ncurve")[0]
    return CurveKey(keys["public"], keys.get("secret"), dict(_METADATA.findall(before)))


def read_secret(file: Path) -> CurveKey:
    """Return a pair, of a file that only its owner may read. :raises ConfigurationError: see :func:`read`."""
    key = read(file)
    if key.secret is None:
        raise ConfigurationError(f"Key file {file} holds no secret key; name the {SECRET} file.")
    if file.stat().st_mode & 0o077:
        raise ConfigurationError(f"Key file {file} may be read by others; chmod 600 it.")
    return key


def _write(file: Path, content: str, mode: int, new: bool = False) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, flags, mode), "w", encoding="ascii") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            os.link(temporary, file)  # refuses, where a rename would overwrite somebody's key
        else:
            temporary.replace(file)
    except OSError as error:
        raise ConfigurationError(f"Key file {file} cannot be written: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
