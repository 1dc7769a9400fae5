"""Where an installation keeps its things, below one directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dm.common.errors import ConfigurationError

_ROOT = re.compile(r"[\w@%+:,./-]+")  # what a setup file can carry


@dataclass(frozen=True)
class Layout:
    """The directories and files of an installation.

    :param root: absolute directory of the installation.
    """

    root: Path

    @classmethod
    def at(cls, root: Path | str) -> Layout:
        """Return the layout below ``root``. :raises ConfigurationError: a path that a setup file cannot carry."""
        path = Path(root).expanduser().absolute()
        if not _ROOT.fullmatch(str(path)):
            raise ConfigurationError(
                f"Directory {str(path)!r} cannot hold an installation; use letters, digits and @%+:,./-_, no blanks."
            )
        return cls(path)

    @property
    def etc(self) -> Path:
        """Settings, certificates, login files."""
        return self.root / "etc"

    @property
    def var(self) -> Path:
        """State: ``log``, ``run``, ``lib``."""
        return self.root / "var"

    @property
    def bin(self) -> Path:
        """The commands."""
        return self.root / "bin"

    @property
    def log(self) -> Path:
        """Log files."""
        return self.var / "log"

    @property
    def certificates(self) -> Path:
        """The installation's own certificate authority and the services' certificate."""
        return self.etc / "certificates"

    @property
    def zeromq(self) -> Path:
        """Keys of the ZeroMQ interface: the processing service's, the station manager's, and those let in.

        Below ``var``, of which the acquisition service reads nothing for anybody.
        """
        return self.var / "zeromq"

    @property
    def facility(self) -> Path:
        """Files of the facility service's csv adapter, in the beginning a sample."""
        return self.etc / "facility"

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.etc / "dm.toml"

    @property
    def setup(self) -> Path:
        """The file users source."""
        return self.etc / "dm.setup.sh"

    @property
    def runtime(self) -> Path:
        """A private copy of the interpreter, where one is needed (:mod:`dm.deploy.runtime`)."""
        return self.root / "python"

    @property
    def site_database(self) -> Path:
        """The embedded PostgreSQL."""
        return self.var / "lib" / "postgres"

    @property
    def station_database(self) -> Path:
        """The embedded MongoDB-wire server."""
        return self.var / "lib" / "mongo"

    def login_file(self, username: str) -> Path:
        """The login file of an account."""
        return self.etc / f".{username}.system.login"

    def make(self) -> list[Path]:
        """Make what is missing, each directory with the mode it needs, and return what was made."""
        wanted = {
            self.root: 0o711,
            self.etc: 0o755,
            self.certificates: 0o755,
            self.bin: 0o755,
            self.var: 0o711,
            self.log: 0o750,
            self.var / "run": 0o755,
            self.var / "lib": 0o711,
        }
        made = []
        for directory, mode in wanted.items():
            if not directory.is_dir():
                directory.mkdir(parents=True)
                directory.chmod(mode)
                made.append(directory)
        return made
