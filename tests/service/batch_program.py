"""``dm-batch-run`` for an account that may not enter the directories of the tests' own interpreter."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import dm

_RUN = "import sys; sys.path.insert(0, {!r}); from dm.station.processing.batch.command import main; main()"
_NOT_COPIED = ("test", "tests", "idlelib", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "distutils", "lib2to3",
               "site-packages", "dist-packages", "config-*")  # fmt: skip


@pytest.fixture(scope="session")
def batch_program(run_directory: Path) -> Iterator[Path]:
    """A program that is ``dm-batch-run`` and that ``nobody`` can run."""
    directory = run_directory / "batch-program"
    program = directory / "dm-batch-run"
    if directory.exists():  # made for another module that imports this fixture
        yield program
        return
    directory.mkdir(mode=0o755)
    interpreter, packages = Path(sys.executable), Path(dm.__file__).parents[1]
    if not _works(interpreter, packages):
        interpreter, packages = _copied(directory)
        assert _works(interpreter, packages)
    program.write_text(f'#!/bin/sh\nexec {interpreter} -c {shlex.quote(_RUN.format(str(packages)))} "$@"\n')
    program.chmod(0o755)
    yield program
    shutil.rmtree(directory)


def _works(interpreter: Path, packages: Path) -> bool:
    command = [interpreter, "-c", _RUN.format(str(packages)), "--help"]
    account = {"user": pwd.getpwnam("nobody").pw_uid} if os.geteuid() == 0 else {}
    try:
        done = subprocess.run(command, check=False, capture_output=True, cwd="/", **account)
        return done.returncode == 0
    except PermissionError:
        return False


def _copied(directory: Path) -> tuple[Path, Path]:
    """Copy the interpreter, which finds its library beside itself, and the packages that the command needs."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base, packages = Path(sys.base_prefix), directory / "packages"
    ignored = shutil.ignore_patterns(*_NOT_COPIED)
    shutil.copytree(base / "lib" / version, directory / "lib" / version, ignore=ignored, copy_function=_link)
    for shared in (base / "lib").glob("libpython*.so*"):
        _link(shared.resolve(), directory / "lib" / shared.name)
    for package in (click, dm):
        source = Path(package.__file__).parent
        shutil.copytree(source, packages / source.name, copy_function=_link)
    interpreter = directory / "bin" / version
    interpreter.parent.mkdir()
    _link(Path(sys._base_executable).resolve(), interpreter)
    for place in (directory, *directory.rglob("*/")):
        place.chmod(0o755)
    return interpreter, packages


def _link(source: str | Path, target: str | Path) -> str:
    """Give a file another name, at which all may read it, or copy it."""
    mode = os.stat(source).st_mode
    if mode & stat.S_IROTH:
        try:
            os.link(source, target)
        except OSError:  # on another file system
            shutil.copy(source, target)
    else:
        shutil.copy(source, target)
        os.chmod(target, mode | 0o444)
    return str(target)
