"""What runs on a dask worker: plain functions, sent by value, so that workers need no DM installation.

They use the standard library and ``distributed`` alone, take and return plain values, and never raise on purpose: what
goes wrong is told to the ledger at the scheduler (:mod:`~dm.station.processing.executors.dask_ledger`).
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import pwd
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

STAGE_PREFIX = "dm-stage-"
STATE = "dm_stages"  # attribute of the worker: a State
INLINE = 256 << 10  # bytes of both streams that travel with the result
_ENDS = 32 << 10  # of longer streams: what survives the worker, of each end
_OUTPUT = (1 << 20) + 1
_OUTPUT_NAME = "output.json"
_PATIENCE = 60.0
_KILL_ROUNDS = 100


class State:
    """What a worker remembers: the server of its supervisors, the line to it, and their sockets."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.server: subprocess.Popen[bytes] | None = None
        self.line: socket.socket | None = None
        self.running: dict[str, socket.socket] = {}  # by token
        self.left: list[tuple[float, socket.socket]] = []  # of ended stages that left something running, until when

    def supervise(self, text: str, **arguments: Any) -> socket.socket:
        """Have a stage started and return the socket to its supervisor. :raises OSError: that cannot be done."""
        mine, theirs = socket.socketpair()
        message = json.dumps(arguments).encode()
        with self.lock, theirs:
            for last in (False, True):
                line = self._line(text)
                try:
                    socket.send_fds(line, [message], [theirs.fileno()])
                except OSError:  # the server was killed
                    if last:
                        raise
                else:
                    break
        return mine

    def _line(self, text: str) -> socket.socket:
        """Return the line to the server, which is started if need be."""
        if self.line is None or self.server is None or self.server.poll() is not None:
            if self.line is not None:
                self.line.close()
            self.line, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with end:
                self.server = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", text],
                    stdin=end.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
        return self.line

    def leave(self, supervisor: socket.socket, seconds: float) -> None:
        """Keep the socket for a while, as its end would end what is left; close those whose time is over."""
        now = time.monotonic()
        with self.lock:
            self.left.append((now + seconds, supervisor))
            for until, one in self.left:
                if until <= now:
                    one.close()
            self.left = [(until, one) for until, one in self.left if until > now]


def identify() -> dict[str, Any]:
    """Say who runs this worker, and where: ``{uid, account, host}``."""
    uid = os.geteuid()
    try:
        account = pwd.getpwuid(uid).pw_name
    except KeyError:
        account = str(uid)
    return {"uid": uid, "account": account, "host": socket.gethostname()}


def run(order: dict[str, Any]) -> None:
    """Run one stage process, unless the ledger says that it is not to be run here (any more).

    :param order: ``{owner, key, token, script, supervisor, limit, grace, directory, environment, variables}``.
    """
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()

    def tell(act: str, **values: Any) -> Any:
        deadline = time.monotonic() + _PATIENCE
        known = {name: order[name] for name in ("owner", "key", "token")}
        while True:
            try:
                return sync(worker.loop, worker.scheduler.dm_ledger_1, act=act, values={**known, **values})
            except OSError:  # the connection broke; saying it twice does no harm
                if time.monotonic() > deadline or worker.status.name in ("closing", "closed", "failed"):
                    raise
                time.sleep(0.5)

    if os.geteuid() == 0:
        tell("end", result={"reason": "The worker runs as root; stages never do."})
    elif tell("claim", worker=worker.address):
        tell("end", result=_carry_out(worker, order))


def _carry_out(worker: Any, order: dict[str, Any]) -> dict[str, Any]:
    state: State = worker.__dict__.setdefault(STATE, State())
    try:
        directory = _prepare(worker, order)
        arguments = {"directory": directory, "limit": order["limit"], "grace": order["grace"]}
        supervisor = state.supervise(order["supervisor"], **arguments)
    except OSError as error:
        return {"reason": f"The worker could not start it: {error.strerror} ({error.filename})."}
    state.running[order["token"]] = supervisor
    try:
        return _follow(worker, order, directory, supervisor)
    except Exception as error:  # it was started: that must be told, whatever this is
        return {"lost": f"Its result could not be taken: {type(error).__name__}: {error}."}
    finally:
        del state.running[order["token"]]
        state.leave(supervisor, order["grace"] + 1)


def _prepare(worker: Any, order: dict[str, Any]) -> str:
    """Make the directory of a stage and return it."""
    base = order["directory"] or worker.local_directory
    os.makedirs(base, exist_ok=True)
    directory = tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=base)
    with open(os.path.join(directory, "script"), "xb") as file:
        file.write(order["script"])
    environment = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in order["environment"])
    }
    environment.update(order["variables"])
    environment["DM_OUTPUT_FILE"] = os.path.join(directory, _OUTPUT_NAME)
    with open(os.path.join(directory, "environment"), "w") as text:
        json.dump(environment, text)
    return directory


def _follow(worker: Any, order: dict[str, Any], directory: str, supervisor: socket.socket) -> dict[str, Any]:
    """Wait for the end of a stage and return its result."""
    answer = _answer(worker, supervisor)
    if not answer:
        _kill_marked(order["variables"])
        shutil.rmtree(directory, ignore_errors=True)
        return {"lost": "The supervisor of the process on the worker's host was killed, so nobody saw its end."}
    result: dict[str, Any] = json.loads(answer)
    result["output"] = _regular(os.path.join(directory, _OUTPUT_NAME))
    return result | _streams(directory, result["sizes"], order["limit"])


def _answer(worker: Any, supervisor: socket.socket) -> bytes:
    """Return what the supervisor says at the end; a worker that closes takes its stages with it."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(supervisor, select.POLLIN)
    while True:
        if poll.poll(500):
            part = supervisor.recv(1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)
        elif worker.status.name in ("closing", "closed", "failed"):
            with contextlib.suppress(OSError):
                supervisor.shutdown(socket.SHUT_WR)


def _kill_marked(variables: dict[str, str]) -> None:
    """Kill what has all these variables in its environment, until it has been seen twice that nothing has."""
    marks = {f"{name}={value}".encode() for name, value in variables.items() if name.startswith("DM_")}
    clean = 0  # once is not enough: what is just being started shows no environment
    for _ in range(_KILL_ROUNDS):
        clean = 0 if _killed(marks) else clean + 1
        if clean == 2:
            return
        time.sleep(0.05)


def _killed(marks: set[bytes]) -> int:
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as stream:
                if marks and marks <= set(stream.read().split(b"\0")):
                    os.kill(int(name), signal.SIGKILL)
                    found += 1
    return found


def _regular(path: str) -> bytes:
    """Return the beginning of a file, if it is one and no link or pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _OUTPUT) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _streams(directory: str, sizes: list[int], limit: int) -> dict[str, Any]:
    """Return both streams if they are small, else their ends and the directory to read them from."""
    kept = [min(size, limit) for size in sizes]
    paths = [os.path.join(directory, name) for name in ("stdout", "stderr")]
    if sum(kept) <= INLINE:
        streams = [read(path, 0, INLINE) for path in paths]
        shutil.rmtree(directory, ignore_errors=True)
        return {"streams": streams, "directory": ""}
    streams = []
    for path, size in zip(paths, kept, strict=True):
        if size <= 2 * _ENDS:
            streams.append(read(path, 0, 2 * _ENDS))
        else:
            missing = b"\n[... the rest was lost with its worker ...]\n"
            streams.append(read(path, 0, _ENDS) + missing + read(path, size - _ENDS, _ENDS))
    return {"streams": streams, "directory": directory}


def read(path: str, offset: int, size: int) -> bytes:
    """Return a part of a file; empty behind its end, or when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except OSError:
        return b""


def remove(directory: str) -> None:
    """Remove the directory of an ended stage."""
    if os.path.basename(directory).startswith(STAGE_PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def send_signal(token: str, number: int, dask_worker: Any) -> bool:
    """Have a signal sent to all a stage started; false when it does not run here."""
    state = dask_worker.__dict__.get(STATE)
    supervisor = state.running.get(token) if state else None
    if supervisor is None:
        return False
    try:
        supervisor.sendall(b"%d\n" % number)
    except OSError:  # it has just ended
        return False
    return True
