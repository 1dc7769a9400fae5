"""The Python client of the ZeroMQ interface: submit and follow processing jobs, be told of what becomes of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dm.common import environment
from dm.common.errors import AuthenticationError, ConfigurationError, InvalidSession, TaskTimeout
from dm.common.records import DmObject
from dm.common.rest import Credentials
from dm.station.processing.api import ProcessingJob
from dm.station.processing.zeromq.messages import EVENTS, prefix

if TYPE_CHECKING:
    from dm.station.processing.zeromq.link import Keys, Link

ADDRESS, EVENTS_ADDRESS = "DM_ZMQ_ADDRESS", "DM_ZMQ_EVENTS_ADDRESS"
SERVER_KEY, KEY_FILE = "DM_ZMQ_SERVER_KEY", "DM_ZMQ_KEY_FILE"
TIMEOUT = 60.0
MAX_WAIT_TIME = 30.0
_MAX_LOGINS = 5

Records = list[DmObject]
JobList = list[ProcessingJob]


class JobEvent(DmObject):
    """What became of a job (``event=job``) or of one of its files (``event=file``)."""

    DEFAULT_KEY_LIST: ClassVar[list[str]] = [
        "event",
        "id",
        "owner",
        "status",
        "stage",
        "filePath",
        "exitStatus",
        "time",
    ]


class ProcZmqApi:
    """Submit and follow processing jobs through ZeroMQ.

    Without arguments the environment (``DM_ZMQ_*`` and the login file; source dm.setup.sh) says where, who and by
    which key. Constructing never touches the network. Every method raises the exception class that REST would, or
    :class:`CommunicationError`. Usable from several threads, whose calls take turns.

    :param username: :param password: for the login, which happens when the service first asks for one; the account
        must be the key's. :param address: of requests. :param events_address: of events.
    :param server_key: the service's public key, as 40 characters or a ``.key`` file.
    :param key_file: the caller's ``.key_secret`` file, mode 0600.
    :param session: id of a session to use instead of a login, also of one begun by REST.
    :param timeout: seconds to wait for an answer; a service that is restarted meanwhile is waited for.
    :param credentials: asked for user name and password at login instead of the login file.
    :param keep_session: keep the session in ``~/.dm`` between programs.
    """

    def __init__(
        self,
        username: str | None = None,
        password: str | None = None,
        *,
        address: str | None = None,
        events_address: str | None = None,
        server_key: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        session: str | None = None,
        timeout: float = TIMEOUT,
        credentials: Credentials | None = None,
        keep_session: bool = False,
    ) -> None:
        self._username = username
        self._password = password
        self._given = {ADDRESS: address, EVENTS_ADDRESS: events_address, SERVER_KEY: server_key, KEY_FILE: key_file}
        self._session = session
        self._timeout = timeout
        self._credentials = credentials
        self._keep_session = keep_session
        self._loaded = session is not None or not keep_session
        self._made: Link | None = None

    @property
    def username(self) -> str:
        """The user name: given, else of the login file, else empty."""
        if self._username:
            return self._username
        path = environment.login_file_path()
        return environment.read_login_file(path)[0] if path else ""

    # --- session ---------------------------------------------------------------------------------------------

    def login(self) -> DmObject:
        """Log in now and return ``username``, ``systemRoles`` and ``stationRoles``. Calls log in by themselves.

        :raises AuthenticationError: no credentials, or the service refuses them.
        :raises AuthorizationError: the key belongs to another account.
        """
        username, password = self._login_words()
        found = self._link.call(
            {"op": "login", "username": username, "password": password}, self._timeout, repeatable=True
        )
        self._keep(found.pop("session"))
        return DmObject(found)

    def logout(self) -> None:
        """End the session."""
        session = self._current()
        if session:
            with contextlib.suppress(InvalidSession, AuthenticationError):  # it had ended already: just as good
                self._link.call({"op": "logout", "session": session}, self._timeout, repeatable=True)
        self._keep(None)

    def ping(self) -> DmObject:
        """Return ``service``, ``station``, ``account`` (of the key) and ``time``; takes no session."""
        return DmObject(self._link.call({"op": "ping"}, self._timeout, repeatable=True))

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._made is not None:
            self._made.close()

    def __enter__(self) -> ProcZmqApi:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs ------------------------------------------------------------------------------------------------

    def submit(  # noqa: PLR0917 - the order of startProcessingJob
        self,
        workflowOwner: str,
        workflowName: str,
        argsDict: Mapping[str, Any] | None = None,
        idempotencyKey: str | None = None,
        jobOwner: str | None = None,
        priority: int | None = None,
    ) -> ProcessingJob:
        """Start a job and return its record; arguments as of ``WorkflowProcApi.startProcessingJob``.

        Without an ``idempotencyKey`` one is made up, so that a call interrupted by a restart of the service starts
        the job once.

        :raises ObjectNotFound: no such workflow or experiment.
        """
        wish = _job(argsDict, idempotencyKey or str(uuid.uuid4()), jobOwner, priority)
        return ProcessingJob(self._call("submit", {"owner": workflowOwner, "workflow": workflowName, **wish}))

    def submitMany(self, workflowOwner: str, workflowName: str, jobs: Sequence[Mapping[str, Any]]) -> Records:
        """Start up to 500 jobs of a workflow with one request; one that is refused does not stop the others.

        :param jobs: of each ``argsDict`` and perhaps ``idempotencyKey`` and ``jobOwner``.
        :returns: of each, in the same order, ``id``, ``owner`` and ``status``, or ``errorCode``, ``errorClass`` and
            ``errorMessage``. :raises ObjectNotFound: no such workflow.
        """
        wishes = [{**job, "idempotencyKey": job.get("idempotencyKey") or str(uuid.uuid4())} for job in jobs]
        found = self._call("submitMany", {"owner": workflowOwner, "workflow": workflowName, "jobs": wishes})
        return [DmObject(item) for item in found]

    def status(self, id: str, waitTime: float | None = None) -> ProcessingJob:
        """Return a job with its processes.

        :param waitTime: seconds (at most 30) to wait for its end first. :raises ObjectNotFound: none the user may see.
        """
        asked = {"jobId": id} if waitTime is None else {"jobId": id, "waitTime": waitTime}
        return ProcessingJob(self._call("status", asked, timeout=self._timeout + (waitTime or 0)))

    def list(
        self,
        owner: str | None = None,
        queryDict: Mapping[str, Any] | None = None,
        skip: int = 0,
        limit: int = 5_000,
        keyList: str | Sequence[str] = "DEFAULT",
    ) -> JobList:
        """Return jobs, oldest first; arguments as of ``WorkflowProcApi.listProcessingJobs``."""
        keys = keyList if isinstance(keyList, str) else [*keyList]
        page = {"owner": owner or None, "queryDict": dict(queryDict or {}), "skip": skip, "limit": limit}
        return [ProcessingJob(item) for item in self._call("list", {**page, "keyList": keys})]

    def abort(self, id: str) -> ProcessingJob:
        """Stop a job and return its record. :raises InvalidObjectState: it has ended already."""
        return ProcessingJob(self._call("abort", {"jobId": id}, repeatable=False))

    def resume(self, id: str) -> ProcessingJob:
        """Let a failed or aborted job go on where it stopped. :raises InvalidObjectState: it cannot."""
        return ProcessingJob(self._call("resume", {"jobId": id}, repeatable=False))

    def restart(self, id: str, fromStage: str | None = None) -> ProcessingJob:
        """Run a stage of an ended job anew (default: the first), and all that come after it.

        :raises InvalidObjectState: the job has not ended.
        """
        asked = {"jobId": id, "fromStage": fromStage} if fromStage else {"jobId": id}
        return ProcessingJob(self._call("restart", asked, repeatable=False))

    def wait(self, id: str, timeout: float | None = None) -> ProcessingJob:
        """Wait for the end of a job, also over restarts of the service.

        :param timeout: seconds; ``None``: as long as it takes. :returns: the final record; look at ``status``.
        :raises TaskTimeout: it has not ended in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = MAX_WAIT_TIME if deadline is None else max(0.0, deadline - time.monotonic())
            job = self.status(id, min(left, MAX_WAIT_TIME))
            if job.is_over:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise TaskTimeout(f"Job {id} has not ended after {timeout:g} s: its status is {job['status']!r}.")

    # --- events ----------------------------------------------------------------------------------------------

    def events(
        self, owner: str | None = None, id: str | None = None, timeout: float | None = None
    ) -> Iterator[JobEvent]:
        """Yield events as they come: what becomes of jobs and of their files.

        A key sees those of its own account's jobs, or everybody's where it was authorised so. Events are told once:
        what happens while a program is not connected it learns from :meth:`list` and :meth:`status`.

        :param owner: of whose jobs; default: all that the key may see. :param id: of this job only; takes ``owner``.
        :param timeout: seconds without an event after which the iterator ends; ``None``: never.
        """
        import zmq

        from dm.station.processing.zeromq.link import received

        context: zmq.Context[Any] = zmq.Context()
        socket = self._keys().socket(context, zmq.SUB)
        try:
            for event in EVENTS:
                socket.subscribe((prefix(event, owner) + (id or "") if owner else f"{event}.").encode("ascii"))
            socket.setsockopt(zmq.RCVHWM, 100_000)
            socket.connect(self._setting(EVENTS_ADDRESS))
            while socket.poll(None if timeout is None else max(1, round(timeout * 1000))):
                yield JobEvent(received(socket.recv_multipart()))
        except zmq.ZMQError as error:
            where = self._setting(EVENTS_ADDRESS)
            raise ConfigurationError(f"Address {where!r} cannot be used: {error.strerror}.") from error
        finally:
            context.destroy(linger=0)

    # --- the wire --------------------------------------------------------------------------------------------

    @property
    def _link(self) -> Link:
        if self._made is None:
            from dm.station.processing.zeromq.link import Link

            self._made = Link(self._setting(ADDRESS), self._keys())
        return self._made

    def _keys(self) -> Keys:
        from dm.station.processing.zeromq.link import Keys

        return Keys(self._setting(SERVER_KEY), self._setting(KEY_FILE))

    def _setting(self, name: str) -> str:
        value = self._given[name] or os.environ.get(name, "")
        if not value:
            argument = name.removeprefix("DM_ZMQ_").lower()
            raise ConfigurationError(f"Variable {name} is not set; source dm.setup.sh, or give {argument}.")
        return os.fspath(value)

    def _call(
        self, op: str, arguments: Mapping[str, Any], *, timeout: float | None = None, repeatable: bool = True
    ) -> Any:
        """Call; log in first where there is no session, and again when the service asks for it."""
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        if not self._current():
            self.login()
        for logins in itertools.count():
            request = {"op": op, "session": self._session, **arguments}
            try:
                return self._link.call(request, max(1.0, deadline - time.monotonic()), repeatable)
            except (InvalidSession, AuthenticationError):
                if logins >= _MAX_LOGINS or time.monotonic() >= deadline:
                    raise
            self.login()  # sessions end, and with the service
        raise AssertionError("unreachable")

    def _current(self) -> str | None:
        if not self._loaded:
            self._loaded = True
            self._session = self._file().load()
        return self._session

    def _keep(self, session: str | None) -> None:
        self._session, self._loaded = session, True
        if self._keep_session:
            self._file().save(session)

    def _file(self) -> Any:
        from dm.common.sessionfile import SessionFile

        return SessionFile(self._setting(ADDRESS), self.username)

    def _login_words(self) -> tuple[str, str]:
        if self._username and self._password is not None:
            return self._username, self._password
        if self._credentials is not None:
            return self._credentials()
        path = environment.login_file_path()
        if path is None:
            raise AuthenticationError(
                f"No user name and password; give them, or name a login file in {environment.LOGIN_FILE}."
            )
        username, password = environment.read_login_file(path)
        if self._username not in (None, "", username):
            raise AuthenticationError(f"No password for user {self._username}; login file {path} is {username}'s.")
        return username, password


def _job(arguments: Mapping[str, Any] | None, key: str, owner: str | None, priority: int | None) -> dict[str, Any]:
    wish: dict[str, Any] = {"argsDict": dict(arguments or {}), "idempotencyKey": key}
    if owner:
        wish["jobOwner"] = owner
    if priority is not None:
        wish["priority"] = priority
    return wish
