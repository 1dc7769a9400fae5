"""Starting one process of a stage: in a session of its own, under its account, with nothing inherited."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

from dm.station.processing.executors.supervisor.records import StartOrder

SHELL = b"/bin/sh"
SEARCH = b"/usr/local/bin:/usr/bin:/bin"
SCRIPT = 3  # the descriptor the script comes by
_FROM_DESCRIPTOR = [b"sh", b"-c", b". /proc/self/fd/3", b"sh"]
_FROM_INPUT = [b"/bin/sh", b"-c", b'eval "$(cat)"', b"sh"]  # sudo passes on no further descriptor
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP, _PR_SET_NAME = 36, 38, 24, 15
_CAPABILITIES = 64
_NO_EXEC = 126


def prepare() -> None:
    """Make this process a supervisor: what stages leave behind becomes its child; root's rights end with setuid.

    :raises OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, value: int | bytes) -> None:
        if libc.prctl(option, value, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    prctl(_PR_SET_NAME, b"dm-supervisor\0")
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.geteuid() == 0:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        for capability in range(_CAPABILITIES):
            try:
                prctl(_PR_CAPBSET_DROP, capability)
            except OSError:
                break  # behind the last one this kernel has


class Spawner:
    """Starts processes.

    :param marker: name of the environment variable that says the key. :param output: of the one that names the file
        for values.
    """

    def __init__(self, marker: bytes, output: bytes) -> None:
        self._marker = marker
        self._output = output
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._root = os.geteuid() == 0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
        limit = b""
        if soft != resource.RLIM_INFINITY and wanted > soft:  # two descriptors for each process that runs
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            limit = f"ulimit -Sn {soft};".encode()
        self._head = limit + b"exec 3<&-;"
        self._switched_head = limit

    def start(self, order: StartOrder, out: int, err: int) -> int:
        """Start the process of an order with these descriptors as its output and return its pid.

        :raises OSError: it cannot be started. :raises PermissionError: it would run as root.
        """
        if order.user is None and self._root:
            raise PermissionError(1, "Stages never run as root")
        if order.user is not None and (not self._root or order.user[0] == 0):
            raise PermissionError(1, "Stages never run as root, and only root gives them another account")
        environment = {
            b"PATH": SEARCH,
            b"LANG": b"C",
            self._marker: order.key.encode(),
            self._output: order.output,
        }
        if order.prefix:
            export = b"export %s='%s';" % (self._output, order.output.replace(b"'", b"'\\''"))
            script = self._memory(self._switched_head + export + order.script)
        else:
            script = self._memory(self._head + order.script)
        try:
            if order.user is not None:
                return self._forked(order.user, environment, script, out, err)
            words = [word.encode("utf-8", "surrogateescape") for word in order.prefix]
            source, target = (script, 0) if words else (script, SCRIPT)
            actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, self._null, 0)] if target else []
            actions += [
                (os.POSIX_SPAWN_DUP2, source, target),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, err, 2),
            ]
            return os.posix_spawnp(
                words[0] if words else SHELL,
                [*words, *_FROM_INPUT] if words else _FROM_DESCRIPTOR,
                environment,
                file_actions=actions,
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
                setsigmask=[],
            )
        finally:
            os.close(script)

    def _forked(
        self,
        user: tuple[int, int, tuple[int, ...]],
        environment: dict[bytes, bytes],
        script: int,
        out: int,
        err: int,
    ) -> int:
        """Fork, become that user for good, run the script."""
        pid = os.fork()
        if pid:
            return pid
        try:
            uid, gid, groups = user
            os.setsid()
            for number, descriptor in enumerate((self._null, out, err, script)):
                os.dup2(descriptor, number)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.execve(SHELL, _FROM_DESCRIPTOR, environment)  # noqa: S606
        except BaseException as error:
            os.write(2, f"The process could not be started: {error}\n".encode("utf-8", "replace"))
        finally:
            os._exit(_NO_EXEC)

    @staticmethod
    def _memory(data: bytes) -> int:
        """Return a descriptor of a nameless file in memory with this content, to be read from its beginning."""
        descriptor = os.memfd_create("script", os.MFD_CLOEXEC)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor
