"""Following a DAQ or upload: a bar on a terminal, lines elsewhere, and standard output as ever."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.live import PROGRAMS, STATION, Suite

_numbers = itertools.count(1)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_RECORD = re.compile(r"id=\S+ experimentName=\S+ dataDirectory=\S+ status=(\w+) nProcessedFiles=\d+ .* \n")


@pytest.fixture
def experiment(suite: Suite) -> str:
    name = f"following-{next(_numbers)}"
    suite.dm("dm-add-experiment", "--experiment", name, "--station", STATION, "--type", "TEST")
    return name


@pytest.fixture
def source(open_directory: Path) -> Path:
    for number in range(30):
        (open_directory / f"f{number:02d}.dat").write_bytes(b"%d" % number * 1000)
    return open_directory


def run(suite: Suite, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a script does, with pipes."""
    command = [str(PROGRAMS / str(words[0])), *map(str, words[1:])]
    return subprocess.run(command, env=suite.environment, capture_output=True, text=True, check=False, timeout=90)


@dataclass
class Terminal:
    """A command on a terminal of its own."""

    process: subprocess.Popen[bytes]
    descriptor: int
    seen: str = ""

    def read(self, until: str = "", seconds: float = 60.0) -> str:
        """Read until a text has come, or to the end; return everything so far without escapes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if until and until in self.text:
                return self.text
            if not select.select([self.descriptor], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # the other end was closed
                data = b""
            if not data:
                break
            self.seen += data.decode()
        assert not until or until in self.text, f"{until!r} did not come: {self.text!r}"
        return self.text

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self.seen).replace("\r\n", "\n")


@contextmanager
def terminal(suite: Suite, *words: object, columns: int = 120, term: str = "xterm") -> Iterator[Terminal]:
    """Run a command on a terminal."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    command = [str(PROGRAMS / str(words[0])), *map(str, words[1:])]
    environment = {**suite.environment, "TERM": term}
    for name in ("NO_COLOR", "COLUMNS", "LINES", "CI"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command, env=environment, stdin=inner, stdout=inner, stderr=inner, start_new_session=True, close_fds=True
    )
    os.close(inner)
    try:
        yield Terminal(process, outer)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        os.close(outer)


def test_scripts_get_the_published_output_and_nothing_else(suite: Suite, experiment: str, source: Path) -> None:
    words = ["--experiment", experiment, "--data-directory", source]
    started = run(suite, "dm-upload", *words)
    assert (started.returncode, started.stderr) == (0, "")
    assert _RECORD.fullmatch(started.stdout), started.stdout
    waited = run(suite, "dm-upload", *words, "--wait", "--reprocess")
    assert (waited.returncode, waited.stderr) == (0, "")
    assert _RECORD.fullmatch(waited.stdout).group(1) == "done"  # type: ignore[union-attr]


def test_lines_for_logs(suite: Suite, experiment: str, source: Path) -> None:
    words = ["--experiment", experiment, "--data-directory", source]
    done = run(suite, "dm-upload", *words, "--follow", "--interval", "0.1")
    assert done.returncode == 0 and _RECORD.fullmatch(done.stdout).group(1) == "done"  # type: ignore[union-attr]
    *lines, last = done.stderr.splitlines()
    assert lines and all(re.match(r"20\d\d/\d\d/\d\d \d\d:\d\d:\d\d \S+ \w+: ", line) for line in lines), lines
    assert re.fullmatch(r"Upload \S+: done\. 30 files, [\d.]+ kB in \d+ s \([\d.,]+ files/s, [\d.]+ kB/s\)\.", last), (
        last
    )
    upload = done.stdout.split()[0].removeprefix("id=")
    again = run(suite, "dm-follow-upload", "--id", upload)
    assert again.returncode == 0 and again.stderr.splitlines() == [last]


def test_failed_files_are_named_at_the_end(suite: Suite, experiment: str, source: Path) -> None:
    run(suite, "dm-upload", "--experiment", experiment, "--data-directory", source, "--wait")
    other = source / "other"
    other.mkdir()
    for number in range(12):
        (other / f"f{number:02d}.dat").write_bytes(b"other bytes")
    done = run(suite, "dm-upload", "--experiment", experiment, "--data-directory", other, "--follow")
    assert done.returncode == 11 and _RECORD.fullmatch(done.stdout).group(1) == "failed"  # type: ignore[union-attr]
    lines = done.stderr.splitlines()
    assert " 12 failed in " in "".join(lines)
    assert len([line for line in lines if re.match(r"  f\d\d\.dat: File .* already exists", line)]) == 10
    assert any(re.match(r"  \.\.\. and 2 more: dm-list-daq-files --id \S+ --state failed", line) for line in lines)
    assert lines[-1].startswith("Error: ")


@pytest.mark.parametrize("columns", [50, 120])
def test_a_bar_on_a_terminal(suite: Suite, experiment: str, source: Path, columns: int) -> None:
    words = ["--experiment", experiment, "--data-directory", source]
    with terminal(suite, "dm-upload", *words, "--follow", columns=columns) as shown:
        text = shown.read()
        assert shown.process.wait(30) == 0
    assert "━" in text and re.search(r"\d+ of 30\+? files|no files yet", text)
    assert re.search(r"Upload \S+: done\. 30 files", text.replace("\n", ""))
    assert "\x1b[2K" in shown.seen  # the bar is taken away again
    assert _RECORD.search(text.replace("\n", "") + "\n")


def test_a_terminal_without_movement_gets_lines(suite: Suite, experiment: str, source: Path) -> None:
    words = ["--experiment", experiment, "--data-directory", source]
    with terminal(suite, "dm-upload", *words, "--follow", term="dumb") as shown:
        text = shown.read()
    assert "━" not in text and "\x1b" not in shown.seen and re.search(r"Upload \S+: done\. 30 files", text)


def test_people_are_told_how_to_follow(suite: Suite, experiment: str, source: Path) -> None:
    with terminal(suite, "dm-upload", "--experiment", experiment, "--data-directory", source) as shown:
        text = shown.read()
        assert shown.process.wait(30) == 0
    upload = re.search(r"Follow it with: dm-follow-upload --id (\S+)\n", text)
    assert upload and f"id={upload.group(1)} " in text


def test_whoever_is_killed_gives_the_cursor_back(suite: Suite, experiment: str, source: Path) -> None:
    words = ["--experiment", experiment, "--data-directory", source]
    with terminal(suite, "dm-start-daq", *words, "--process-existing", "--follow") as shown:
        shown.read("30 of 30 files")
        shown.process.terminate()
        shown.read()
        assert shown.process.wait(30) == 143
    assert shown.seen.rindex("\x1b[?25h") > shown.seen.rindex("\x1b[?25l")
    suite.dm("dm-stop-daq", *words)


def test_ctrl_c_leaves_a_daq_running_and_says_so(suite: Suite, experiment: str, source: Path) -> None:
    words = ["--experiment", experiment, "--data-directory", source]
    with terminal(suite, "dm-start-daq", *words, "--process-existing", "--follow") as shown:
        shown.read("30 of 30 files")
        os.killpg(shown.process.pid, signal.SIGINT)
        text = shown.read()
        assert shown.process.wait(30) == 130
    found = re.search(r"DAQ (\S+) goes on\. Follow it again with: dm-follow-daq --id (\S+)\n", text)
    assert found and found.group(1) == found.group(2) and "Traceback" not in text
    daq = found.group(1)
    assert f"Stop it with: dm-stop-daq --experiment {experiment} --data-directory {source}\n" in text
    assert "status=running" in suite.dm("dm-get-daq-info", "--id", daq)
    with terminal(suite, "dm-follow-daq", "--id", daq) as shown:
        shown.read("30 of 30 files")
        suite.dm("dm-stop-daq", *words)
        text = shown.read()
        assert shown.process.wait(30) == 0
    assert re.search(rf"DAQ {daq}: done\. 30 files", text)
