"""``dm-control site|station|all restore``: what a backup holds, put into an installation that is stopped.

The databases are replaced, and with them what belongs to them: login files and ZeroMQ keys. Settings and certificates
are the host's: of those only what is missing is restored, unless all is asked for.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dm.common.errors import ConfigurationError, InvalidArgument, InvalidObjectState
from dm.deploy import backup_archive, backup_mongo, backup_postgres, components
from dm.deploy.backup import Installation, checker
from dm.deploy.backup_archive import Manifest, Part

_WITH_DATABASES = ("login", "key")


@dataclass
class Restored:
    """What was done. :param kept: files of the host that differ from the backup and were left."""

    manifest: Manifest
    databases: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def restore(what: str, config: Path, source: Path, *, force: bool = False, settings: bool = False) -> Restored:
    """Restore a backup.

    :param force: also over an installation that has experiments, and one that runs (its services are stopped).
    :param settings: also replace settings and certificates: for the same host and directories.
    :raises InvalidObjectState: it runs, or is not empty. :raises InvalidArgument: no such backup, or of another side.
    :raises ProcessingError: the backup is damaged; nothing was changed then.
    """
    if not source.is_file():
        raise InvalidArgument(f"There is no backup {source}; name the file.")
    beside = config.parent.parent if config.parent.parent.is_dir() else source.parent
    with backup_archive.staging(beside) as directory:
        manifest = backup_archive.verify(source, checker(directory))
        if manifest.what not in (what, "all") or (what == "all" and manifest.what != "all"):
            raise InvalidArgument(f"Backup {source} is of {manifest.what}, not of {what}.")
        for part in manifest.of("file"):
            if part.about["place"] != "other":
                _relative(part)
        parts = backup_archive.extract(source, directory)
        result = Restored(manifest)
        _settings_first(config, manifest, parts, result)
        installation = Installation.at(what, config)
        _fits(installation, manifest, force)
        _stopped(installation, force)
        with installation.databases():
            if not force:
                _empty(installation)
            _databases(installation, manifest, parts, result)
        for part in manifest.of("file"):
            _file(installation, part, parts[part.name], settings, result)
    return result


def _settings_first(config: Path, manifest: Manifest, parts: dict[str, Path], result: Restored) -> None:
    """Bring back the whole directory of the settings where there is none: the same directories on another host."""
    if config.exists():
        return
    if str(config) != f"{manifest.places['etc']}/{manifest.places['config']}":
        raise ConfigurationError(
            f"There is no settings file {config}; install DM there first (dm-install), or restore to "
            f"{manifest.places['etc']}/{manifest.places['config']}, where the backup is from."
        )
    for part in manifest.of("file"):
        if part.about["place"] == "etc":
            target = config.parent / _relative(part)
            _put(part, parts[part.name], target)
            result.files.append(str(target))


def _fits(installation: Installation, manifest: Manifest, force: bool) -> None:
    mine, theirs = installation.places["station"], manifest.places.get("station", "")
    if mine and theirs and mine != theirs and not force:
        raise InvalidArgument(f"The backup is of station {theirs}, here is {mine}; restore it where it belongs.")
    versions = Path(backup_postgres.__file__).parents[1] / "site" / "database" / "migrations" / "versions"
    known = {path.name[1:5] for path in versions.glob("v[0-9][0-9][0-9][0-9]_*.py")}
    for part in manifest.of("postgres"):
        if part.about["schema"] not in known:
            raise ConfigurationError(
                f"The backup was made by release {manifest.release}, which is newer than this one; upgrade DM first."
            )


def _stopped(installation: Installation, force: bool) -> None:
    parts = components.chosen(installation.what, installation.config)
    running = [part.name for part in parts if isinstance(part, components.Service) and part.pid_file.alive()]
    if running and not force:
        raise InvalidObjectState(f"{', '.join(running)} runs; stop it first (dm-control {installation.what} stop).")
    components.stop([part for part in parts if part.name in running])


def _empty(installation: Installation) -> None:
    full = [name for name, url in installation.postgres_urls.items() if not backup_postgres.is_new(url)]
    full += [name for name, url in installation.mongo_urls.items() if not backup_mongo.is_new(url)]
    if full:
        raise InvalidObjectState(
            f"The database of {', '.join(full)} is not empty; use --force to replace everything in it by the backup."
        )


def _databases(installation: Installation, manifest: Manifest, parts: dict[str, Path], result: Restored) -> None:
    for section, url in installation.postgres_urls.items():
        for part in manifest.of("postgres"):
            if part.about["section"] == section:
                backup_postgres.restore(parts[part.name], url, int(part.about["server"]))
                result.databases.append(f"{section}: {part.about.get('experiments', 0)} experiments")
    for section, url in installation.mongo_urls.items():
        chosen = [part for part in manifest.of("mongo") if part.about["section"] == section]
        if chosen:
            count = backup_mongo.restore(url, [(parts[part.name], part.about) for part in chosen])
            result.databases.append(f"{section}: {count} documents")


def _relative(part: Part) -> Path:
    """Return the path of a file below its place. :raises InvalidArgument: it leads out of it."""
    path = PurePosixPath(str(part.about["path"]))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InvalidArgument(f"The backup has a file {str(path)[:200]!a}, which lies nowhere in an installation.")
    return Path(path)


def _file(installation: Installation, part: Part, contents: Path, settings: bool, result: Restored) -> None:
    place, kind = part.about["place"], part.about["class"]
    if place == "other":
        target = Path(str(part.about["path"]))
        wanted = settings and target.is_absolute()
    else:
        base = installation.config.parent if place == "etc" else installation.var
        target = base / _relative(part)
        wanted = settings or kind in _WITH_DATABASES or not target.exists()
    if target.exists() and target.read_bytes() == contents.read_bytes():
        return
    if not wanted:
        result.kept.append(str(target))
        return
    _put(part, contents, target)
    result.files.append(str(target))


def _put(part: Part, contents: Path, target: Path) -> None:
    """Put a file in place, with its mode and, where we may and the account exists, its owner."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.restored")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as output, contents.open("rb") as stream:
        shutil.copyfileobj(stream, output)
        if os.geteuid() == 0 and "owner" in part.about:
            with contextlib.suppress(KeyError):
                account = pwd.getpwnam(str(part.about["owner"]))
                os.fchown(output.fileno(), account.pw_uid, account.pw_gid)
        os.fchmod(output.fileno(), int(part.about["mode"]) & 0o777)
        os.fsync(output.fileno())
    temporary.replace(target)
