"""How a service answers while others hold connections and say nothing.

Silent TCP connections, connections that sent half a TLS hello, and (with ``--drip``) clients that send their request
one byte at a time are reopened again and again, while 8 clients ask ``/status`` 2,000 times, each time on a new
connection. Prints p50, p99 and the maximum; exits with 1 when p99 is over 200 ms or the maximum over 1 s.

    python benchmarks/tls_silent.py                              a server of our own, in a process of its own
    python benchmarks/tls_silent.py --target localhost:22236     a running service
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HALF_HELLO = bytes.fromhex("16030102000100") + b"\x01\xfc\x03\x03" + bytes(60)
DRIPPED = b"GET /status HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 4000


def serve(directory: Path) -> None:
    """Run a server with the routes every service has, until SIGTERM; print its port."""
    from dm.common import tls
    from dm.common.errors import AuthenticationError
    from dm.common.health import Health
    from dm.common.web.application import Application
    from dm.common.web.server import Server
    from dm.common.web.server import serve as run
    from dm.common.web.sessions import MemorySessionStore

    class Nobody:
        def login(self, username, password):
            raise AuthenticationError("Incorrect username or password.")

        def authorize(self, request, access, arguments, route):
            return None

    tls.make_authority(directory)
    certificate, key = tls.issue(directory, ["localhost", "127.0.0.1"])
    health = Health("benchmark")
    health.check("nothing", lambda: ("ok", "nothing to check"))
    application = Application("benchmark", [], Nobody(), Nobody(), MemorySessionStore(), health)
    server = Server(application, "127.0.0.1", 0, certificate, key)
    run(server, "benchmark", on_ready=lambda: print(server.port, flush=True))


async def _hold(host: str, port: int, kind: str) -> None:
    """Keep one bad connection open, for ever anew."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(host, port, ssl=context if kind == "drip" else None)
            try:
                if kind == "half":
                    writer.write(HALF_HELLO)
                elif kind == "drip":
                    for byte in DRIPPED:
                        writer.write(bytes([byte]))
                        await writer.drain()
                        await asyncio.sleep(0.1)
                        if reader.at_eof():
                            break
                await asyncio.wait_for(reader.read(1), random.uniform(0.2, 3))
            except TimeoutError:
                pass
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.001)


async def attack(host: str, port: int, silent: int, half: int, drip: int) -> None:
    """Hold all bad connections until killed."""
    kinds = ["silent"] * silent + ["half"] * half + ["drip"] * drip
    holders = [asyncio.create_task(_hold(host, port, kind)) for kind in kinds]
    await asyncio.sleep(0.5)
    print("holding", flush=True)
    await asyncio.gather(*holders)


def ask(host: str, port: int, context: ssl.SSLContext) -> float:
    """Ask /status on a new connection; return the seconds it took."""
    began = time.perf_counter()
    with socket.create_connection((host, port), 30) as plain, context.wrap_socket(plain, server_hostname=host) as sock:
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = b""
        while data := sock.recv(65536):
            reply += data
    if not reply.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"unexpected reply {reply[:80]!r}")
    return time.perf_counter() - began


def measure(host: str, port: int, calls: int, clients: int) -> list[float]:
    """Ask from several threads; return all times in seconds, sorted."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    times: list[float] = []
    failures: list[BaseException] = []

    def client() -> None:
        try:
            for _ in range(calls // clients):
                times.append(ask(host, port, context))
        except (OSError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{len(failures)} clients failed: {failures[0]!r}")
    return sorted(times)


@contextlib.contextmanager
def child(*arguments: object):
    """Run this file in another process, wait for its first line, stop it afterwards."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(15)
        process.stdout.close()


def report(title: str, times: list[float]) -> tuple[float, float]:
    """Print one line; return p99 and maximum in milliseconds."""
    p50, p99, worst = (1000 * value for value in (statistics.median(times), times[len(times) * 99 // 100], times[-1]))
    rate = len(times) / sum(times)
    print(f"{title:<46} p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  max {worst:7.1f} ms  ({rate:.0f}/s a client)")
    return p99, worst


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="host:port of a running service")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--silent", type=int, default=100)
    parser.add_argument("--half", type=int, default=20)
    parser.add_argument("--drip", type=int, default=0, help="clients that send a request byte by byte, e.g. 200")
    parser.add_argument("--serve", metavar="DIRECTORY", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return 0
    if options.attack:
        host, _, port = options.attack.rpartition(":")
        asyncio.run(attack(host, int(port), options.silent, options.half, options.drip))
        return 0
    with contextlib.ExitStack() as stack:
        target = options.target
        if target is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            target = "127.0.0.1:" + stack.enter_context(child("--serve", directory))
        host, _, port = target.rpartition(":")
        report("quiet", measure(host, int(port), options.calls, options.clients))
        bad = ["--silent", options.silent, "--half", options.half, "--drip", options.drip]
        stack.enter_context(child("--attack", target, *bad))
        title = f"{options.silent} silent, {options.half} half a hello, {options.drip} dripping"
        p99, worst = report(title, measure(host, int(port), options.calls, options.clients))
    good = p99 < 200 and worst < 1000
    print("within p99 < 200 ms and max < 1 s" if good else "OVER p99 < 200 ms or max < 1 s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
