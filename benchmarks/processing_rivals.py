"""What runs the same shell commands as the jobs of ``benchmarks/processing.py``, as a process of its own.

    python benchmarks/processing_rivals.py <name> <commands> <parallel> <directory> <command>

Prints a JSON object: ``seconds`` from the first submission to the last result, ``bytes`` of the records that are left,
and the ``version``. The names ending in ``-durable`` have, of each command, on disk before it starts that it does, and
after its end what became of it; but for those, nothing of this would know after a power cut what ran.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_WARM = 16


def run(command: str) -> int:
    """Run a command as everybody does here."""
    return subprocess.run(command, shell=True, check=False).returncode


class Notes:
    """A file in which each command has a line before and one after it, each on disk at once."""

    def __init__(self, directory: str) -> None:
        self._file = os.open(Path(directory) / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def run(self, number: int, command: str) -> int:
        """Run a command between its lines."""
        self._note({"number": number, "begun": time.time(), "command": command})
        status = run(command)
        self._note({"number": number, "ended": time.time(), "status": status})
        return status

    def _note(self, record: dict[str, object]) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")
        os.fdatasync(self._file)


def bare(count: int, parallel: int, directory: Path, command: str, durable: bool) -> float:
    """``subprocess`` in as many threads."""

    def one(number: int) -> int:
        return notes(str(directory)).run(number, command) if durable else run(command)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, range(_WARM)))
        begun = time.perf_counter()
        failed = sum(status != 0 for status in pool.map(one, range(count)))
        seconds = time.perf_counter() - begun
    return _judged(seconds, failed)


def huey(count: int, parallel: int, directory: Path, command: str, durable: bool) -> float:
    """Huey on SQLite, its consumer in this process."""
    from huey import SqliteHuey

    queue = SqliteHuey(filename=str(directory / "huey.db"), fsync=durable, timeout=60)
    task = queue.task()(run)
    consumer = queue.create_consumer(
        workers=parallel, worker_type="thread", periodic=False, initial_delay=0.005, max_delay=0.02
    )
    consumer.start()
    for result in [task(command) for _ in range(_WARM)]:
        result.get(blocking=True, timeout=60, max_delay=0.02)
    begun = time.perf_counter()
    results = [task(command) for _ in range(count)]
    failed = sum(result.get(blocking=True, timeout=600, backoff=1.0, max_delay=0.01) != 0 for result in results)
    seconds = time.perf_counter() - begun
    consumer.stop(graceful=True)
    return _judged(seconds, failed)


notes = functools.cache(Notes)  # one a process


def noted(directory: str, number: int, command: str) -> int:
    """Run a command between its lines, in a worker of Parsl."""
    from processing_rivals import notes

    return notes(directory).run(number, command)


def parsl(count: int, parallel: int, directory: Path, command: str, durable: bool) -> float:
    """Parsl's high-throughput executor on this host."""
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    own = str(Path(__file__).resolve().parent)
    executor = HighThroughputExecutor(
        label="local",
        address="127.0.0.1",
        cores_per_worker=1e-3,
        max_workers_per_node=parallel,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init=f"export PYTHONPATH={own}"),
    )
    os.chdir(directory)
    loaded = parsl.load(Config(executors=[executor], run_dir=str(directory / "runinfo"), strategy="none"))
    if durable:
        app = parsl.python_app(noted)

        def submit(number: int) -> object:
            return app(str(directory), number, command)
    else:
        app = parsl.bash_app(lambda words: words)

        def submit(_number: int) -> object:
            return app(command)

    for future in [submit(number) for number in range(_WARM * parallel)]:
        future.result()  # type: ignore[attr-defined]
    begun = time.perf_counter()
    futures = [submit(number) for number in range(count)]
    failed = sum(future.result() != 0 for future in futures)  # type: ignore[attr-defined]
    seconds = time.perf_counter() - begun
    loaded.cleanup()
    return _judged(seconds, failed)


RIVALS: dict[str, Callable[[int, int, Path, str, bool], float]] = {"bare": bare, "huey": huey, "parsl": parsl}


def _judged(seconds: float, failed: int) -> float:
    if failed:
        raise SystemExit(f"{failed} commands failed.")
    return seconds


def main() -> None:
    """Run one rival and print what it took."""
    name, count, parallel, place, command = sys.argv[1:]
    rival, _, durable = name.partition("-")
    directory = Path(place)
    # the libraries' own programs are found by name
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    seconds = RIVALS[rival](int(count), int(parallel), directory, command, bool(durable))
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    version = sys.version.split()[0] if rival == "bare" else importlib.metadata.version(rival)
    print(json.dumps({"seconds": seconds, "bytes": size, "version": version}), flush=True)
    if threading.active_count() > 1:
        os._exit(0)  # a library's thread goes on


if __name__ == "__main__":
    main()
