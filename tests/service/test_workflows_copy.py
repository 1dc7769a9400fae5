"""``dm-process copy`` against a real sshd, a real GridFTP server and real rsync, both ways, and with faults."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.common.errors import ConfigurationError, InvalidArgument, TransferError
from dm.station.workflows.tools import copying
from dm.station.workflows.tools.copying import Access
from tests.beamline_files import beamline_file
from tests.service.acquisition_hosts import running_sshd
from tests.service.gridftp_server import GridAuthority, GridFtpServer, running

FILE = "sas/nexus-example.hdf5"
ODD = '-o a\'b "c" $(touch hacked) ü%41#.h5'


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def ssh(run_directory: Path) -> Iterator[Access]:
    directory = run_directory / "copy-ssh"
    with running_sshd(directory) as command:
        port = int(command[command.index("-p") + 1])
        yield Access(identity=str(directory / "user"), known_hosts=str(directory / "known"), port=port)


@pytest.fixture(scope="module")
def gridftp(run_directory: Path) -> Iterator[GridFtpServer]:
    with running(GridFtpServer(run_directory / "copy-gridftp")) as server:
        yield server


@pytest.mark.parametrize("name", ["raw.h5", ODD])
def test_there_and_back_by_ssh(name: str, ssh: Access, open_directory: Path) -> None:
    source, there = open_directory / name, open_directory / "there" / "deep"
    shutil.copyfile(beamline_file(FILE), source)
    told = copying.run(str(source), f"localhost:{there}/", ssh)
    assert (told["copiedMd5Sum"], md5(there / name)) == (md5(source), md5(source))
    assert (there / name).stat().st_mtime_ns == source.stat().st_mtime_ns
    back = open_directory / "back"
    told = copying.run(f"localhost:{there / name}", f"{back}/", ssh)
    assert (told["copied"], told["copiedSize"]) == (str(back / name), source.stat().st_size)
    assert [path.name for path in back.iterdir()] == [name]
    assert md5(back / name) == md5(source)


def test_a_directory_by_ssh(ssh: Access, open_directory: Path) -> None:
    source = open_directory / "run"
    (source / "inner").mkdir(parents=True)
    for name in ("a.dat", f"inner/{ODD}"):
        (source / name).write_text(name)
    copying.run(f"{source}/", f"localhost:{open_directory}/there/", ssh)
    copying.run(f"localhost:{open_directory}/there/", f"{open_directory}/back/", ssh)
    back = open_directory / "back"
    assert {str(path.relative_to(back)): path.read_text() for path in back.rglob("*") if path.is_file()} == {
        name: name for name in ("a.dat", f"inner/{ODD}")
    }


def test_there_and_back_by_gridftp(gridftp: GridFtpServer, open_directory: Path) -> None:
    source = open_directory / ODD  # any name here, a plain one there
    shutil.copyfile(beamline_file(FILE), source)
    told = copying.run(str(source), f"{gridftp.url}{open_directory}/there/raw.h5", Access(streams=3))
    assert told["copiedMd5Sum"] == md5(open_directory / "there" / "raw.h5") == md5(source)
    told = copying.run(f"{gridftp.url}{open_directory}/there/raw.h5", str(open_directory / "back" / ODD), Access())
    assert md5(open_directory / "back" / ODD) == md5(source)
    copying.run(f"{gridftp.url}{open_directory}/there/", f"{open_directory}/tree/", Access())
    assert md5(open_directory / "tree" / "raw.h5") == md5(source)
    with pytest.raises(InvalidArgument, match="is not safe with GridFTP"):
        copying.run(str(source), f"{gridftp.url}{open_directory}/there/", Access())


def test_gridftp_with_a_credential(run_directory: Path, open_directory: Path) -> None:
    authority = GridAuthority(open_directory / "ca")
    certificate, key = authority.issue("station")
    proxy = open_directory / "proxy"
    proxy.write_bytes(certificate.read_bytes() + key.read_bytes())
    proxy.chmod(0o600)
    target = open_directory / "there" / "raw.h5"
    with running(GridFtpServer(open_directory / "server", authority)) as server:
        url = f"{server.url}{target}"
        with pytest.raises(TransferError):
            copying.run(str(beamline_file(FILE)), url, Access(certificates=str(authority.certificates)))
        access = Access(proxy=str(proxy), certificates=str(authority.certificates))
        copying.run(str(beamline_file(FILE)), url, access)
    assert md5(target) == md5(beamline_file(FILE))


def test_what_arrives_damaged_is_noticed(open_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An rsync whose first run spoils what it wrote, as a failing disk does."""
    real = shutil.which("rsync")
    programs = open_directory / "bin"
    programs.mkdir()
    (programs / "rsync").write_text(
        f'#!/bin/sh\n{real} "$@" || exit $?\nfor last; do :; done\n'
        f'[ -e "{open_directory}/once" ] || {{ touch "{open_directory}/once"; '
        'printf X | dd of="$last" bs=1 seek=1000 conv=notrunc status=none; touch -r "$SOURCE" "$last"; }\n'
    )
    (programs / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SOURCE", str(beamline_file(FILE)))
    with pytest.raises(TransferError, match="differ at both ends"):
        copying.run(str(beamline_file(FILE)), str(open_directory / "target.h5"), Access())


def test_what_cannot_be_copied(
    ssh: Access, gridftp: GridFtpServer, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(beamline_file(FILE))
    for source, target, access, reason in (
        (f"localhost:{open_directory}/nothing", f"{open_directory}/x", ssh, "No such file"),
        (f"{gridftp.url}{open_directory}/nothing", f"{open_directory}/x", Access(), "No such file"),
        (here, f"localhost:{open_directory}/x", Access(port=ssh.port), "Host key verification failed"),
    ):
        with pytest.raises(TransferError, match=reason):
            copying.run(source, target, access)
    for source, target, reason in (
        (f"{open_directory}/nothing", "localhost:/x", r"File .* does not exist"),
        (f"{open_directory}/nothing/", "localhost:/x/", r"Directory .* does not exist"),
        (f"{open_directory}/", "localhost:/x", "end it with '/'"),
        ("one:/a", "other:/b", "one must be a local path"),
        (here, "localhost:/x", None),
    ):
        if reason:
            with pytest.raises(InvalidArgument, match=reason):
                copying.run(source, target, Access())
    with pytest.raises(InvalidArgument, match="holds blanks or quotes"):
        copying.run(here, "localhost:/x", Access(identity="/a b"))
    assert not list(open_directory.iterdir()), "nothing half is left"
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError, match="Program 'rsync' is missing; install the package rsync"):
        copying.run(here, "localhost:/x", Access())
