"""``dm-control site|station|all backup``: everything DM itself knows, in one file, while the services run.

In it: the databases, the directory of the settings file (settings, certificates, keys, login files), other small files
the settings name, the ZeroMQ keys. Not in it: the experiments' files, and what can be made again.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from dm.common import interface
from dm.common.embedded import EmbeddedMongo, EmbeddedPostgres
from dm.common.errors import ConfigurationError, InvalidArgument, ProcessingError
from dm.common.settings import SiteSettings, StationSettings, load, read
from dm.deploy import backup_archive, backup_mongo, backup_postgres
from dm.deploy.backup_archive import Manifest, Part

SECTIONS = {"site": ("storage", "facility"), "station": ("catalog", "acquisition", "processing")}
SUFFIX = ".dmbackup"
LARGEST_FILE = 1 << 20
MISSING = [
    "The experiments' files: they are the storage's to back up, each experiment with its system/manifest.",
    "Log files, output of processing jobs, downloads and uploads under way, sessions (everybody logs in again).",
    "What an LDAP directory, the facility's own systems or Globus hold.",
]


@dataclass(frozen=True)
class Installation:
    """What the settings file says about this host.

    :param what: ``site``, ``station`` or ``all``. :param config: the settings file.
    """

    what: str
    config: Path
    sections: dict[str, dict[str, Any]]
    site: SiteSettings | None
    station: StationSettings | None

    @classmethod
    def at(cls, what: str, config: Path) -> Installation:
        """Read the settings. :raises ConfigurationError: unusable, or nothing of that side is here."""
        if what not in ("site", "station", "all"):
            raise ConfigurationError(f"A backup is of site, station or all, not of {what!a}.")
        sections = read(config)
        site = load(SiteSettings, "site", config) if "storage" in sections and what != "station" else None
        station = load(StationSettings, "station", config) if "station" in sections and what != "site" else None
        if site is None and station is None:
            raise ConfigurationError(f"Settings file {config} declares no {what} service for this host.")
        return cls(what, config, sections, site, station)

    @property
    def var(self) -> Path:
        """Where state is kept."""
        side = self.station or self.site
        assert side is not None
        return side.var_dir

    @property
    def postgres_urls(self) -> dict[str, str]:
        """Section -> URL of each PostgreSQL, each once."""
        return self._urls("site") if self.site else {}

    @property
    def mongo_urls(self) -> dict[str, str]:
        """Section -> URL of each document database, each once."""
        return self._urls("station") if self.station else {}

    def _urls(self, side: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for section in SECTIONS[side]:
            values = self.sections.get(section, {})
            url = os.environ.get(f"DM_{section.upper()}__DATABASE_URL") or values.get("database_url")
            if url and url not in found.values():
                found[section] = str(url)
        return found

    @property
    def places(self) -> dict[str, str]:
        """What a restore compares: directories, and the station's name."""
        return {
            "etc": str(self.config.parent),
            "config": self.config.name,
            "var": str(self.var),
            "station": self.station.name if self.station else "",
        }

    @contextlib.contextmanager
    def databases(self) -> Iterator[EmbeddedMongo | None]:
        """Have the embedded databases running inside the block; yield the station's, where it is embedded."""
        started: list[EmbeddedPostgres | EmbeddedMongo] = []
        mongo: EmbeddedMongo | None = None
        try:
            if self.site is not None and self.site.database_directory is not None:
                postgres = EmbeddedPostgres(self.site.database_directory)
                if postgres.running() is None:
                    postgres.start()
                    started.append(postgres)
            if self.station is not None and self.station.database_directory is not None:
                from urllib.parse import urlsplit

                mongo = EmbeddedMongo(
                    self.station.database_directory, urlsplit(next(iter(self.mongo_urls.values()))).port
                )
                if mongo.running() is None:
                    mongo.start()
                    started.append(mongo)
            yield mongo
        finally:
            for server in started:
                server.stop()


def make(what: str, config: Path, target: Path, keep: int | None = None) -> tuple[Path, Manifest]:
    """Write a backup, read it back, and return where it is and what it says of itself.

    :param target: a directory, in which it gets a name with the time, or a file that is not there yet.
    :param keep: afterwards keep so many of the backups of this kind in the directory, the newest ones.
    :raises DmException: it could not be made; nothing is left then.
    """
    if keep is not None and not target.is_dir():
        raise InvalidArgument(f"{target} is no directory; --keep counts the backups in one.")
    installation = Installation.at(what, config)
    now = datetime.now(UTC)
    prefix = f"dm-{what}-{socket.gethostname()}-"
    if target.is_dir():
        target = target / f"{prefix}{now:%Y%m%dT%H%M%S}{SUFFIX}"
    if target.exists():
        raise InvalidArgument(f"{target} exists; name another file, or a directory.")
    if not target.parent.is_dir():
        raise InvalidArgument(f"Directory {target.parent} does not exist; make it first.")
    manifest = Manifest(
        what=what,
        release=interface.release(),
        interface=interface.INTERFACE,
        host=socket.gethostname(),
        created=now.isoformat(timespec="seconds"),
        places=installation.places,
        missing=list(MISSING),
    )
    with backup_archive.staging(target.parent) as directory:
        with installation.databases() as mongo:
            _postgres(installation, directory, manifest)
            _mongo(installation, mongo, directory, manifest)
        _files(installation, directory, manifest)
        backup_archive.write(target, manifest, directory, checker(directory))
    if keep is not None:
        # Another host's name may begin with this one's.
        time = f"{'[0-9]' * 8}T{'[0-9]' * 6}"
        for old in sorted(target.parent.glob(f"{prefix}{time}{SUFFIX}"))[: -max(keep, 1)]:
            old.unlink()
    return target, manifest


def _postgres(installation: Installation, directory: Path, manifest: Manifest) -> None:
    for section, url in installation.postgres_urls.items():
        name = f"{section}.pgdump"
        about = backup_postgres.dump(url, directory / name)
        manifest.parts.append(Part(name, "postgres", about={"section": section, **about}))


def _mongo(installation: Installation, mongo: EmbeddedMongo | None, directory: Path, manifest: Manifest) -> None:
    with contextlib.ExitStack() as stack:
        copy = stack.enter_context(backup_mongo.copied(mongo, directory / "copy")) if mongo is not None else None
        for section, url in installation.mongo_urls.items():
            if copy is not None:
                from pymongo.uri_parser import parse_uri

                url = copy.url(parse_uri(url)["database"] or backup_mongo.DEFAULT)  # noqa: PLW2901
            for name, about in backup_mongo.dump(url, directory, section):
                manifest.parts.append(Part(name, "mongo", about={"section": section, **about}))
    shutil.rmtree(directory / "copy", ignore_errors=True)


def _files(installation: Installation, directory: Path, manifest: Manifest) -> None:
    etc, var = installation.config.parent, installation.var
    for number, (place, file) in enumerate(sorted(chosen_files(installation))):
        name = f"file-{number:04d}"
        with file.open("rb") as source, (directory / name).open("xb") as target:
            status = os.fstat(source.fileno())
            shutil.copyfileobj(source, target)
        base = {"etc": etc, "var": var}.get(place)
        about: dict[str, Any] = {
            "place": place,
            "path": str(file.relative_to(base)) if base else str(file),
            "class": kind_of(place, file),
            "mode": stat.S_IMODE(status.st_mode),
        }
        with contextlib.suppress(KeyError):
            about["owner"] = pwd.getpwuid(status.st_uid).pw_name
        manifest.parts.append(Part(name, "file", about=about))


def chosen_files(installation: Installation) -> set[tuple[str, Path]]:
    """Return the small plain files to keep, each with its place: ``etc``, ``var`` or ``other``."""
    etc, var = installation.config.parent, installation.var
    found = {("etc", path) for path in etc.rglob("*")}
    found |= {("var", path) for path in (var / "zeromq").rglob("*")}
    for values in installation.sections.values():
        for path in _paths(values):
            inside = etc / path
            if not inside.is_relative_to(etc) and not inside.is_relative_to(var):
                found.add(("other", inside))
    return {(place, path) for place, path in found if _is_small_file(path)}


def _paths(values: Any) -> Iterator[Path]:
    """Yield what looks like the path of a file that a service reads."""
    if isinstance(values, dict):
        for key, value in values.items():
            if (
                isinstance(value, str)
                and (key in ("certificate", "key") or key.endswith("_file"))
                and key != "log_file"
            ):
                yield Path(value).expanduser()
            else:
                yield from _paths(value)
    elif isinstance(values, list):
        for value in values:
            yield from _paths(value)


def _is_small_file(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_FILE and not path.name.endswith(SUFFIX)


def kind_of(place: str, file: Path) -> str:
    """Return what a file is: ``login`` and ``key`` belong to the databases, the rest to the host."""
    if file.name.endswith(".login"):
        return "login"
    if place == "var":
        return "key"
    if file.suffix in (".pem", ".key", ".crt") or "certificates" in file.parts:
        return "certificate"
    return "settings"


def checker(directory: Path) -> Any:
    """Return what reads the parts of a backup for sense, with room for a while in ``directory``."""

    def check(part: Part, stream: IO[bytes]) -> None:
        if part.kind == "mongo":
            backup_mongo.checked(stream, part.about)
        elif part.kind == "postgres":
            copy = directory / f"check-{part.name}"
            with copy.open("wb") as output:
                shutil.copyfileobj(stream, output)
            try:
                backup_postgres.listed(copy, int(part.about["server"]))
            finally:
                copy.unlink()
        elif part.kind != "file":
            raise ProcessingError(
                f"The backup has a part of kind {part.kind[:40]!a}, which this release does not know."
            )

    return check
