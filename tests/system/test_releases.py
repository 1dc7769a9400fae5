"""A station of the previous release at this site, and a station of this release at a site of the previous one.

The previous release is what ``PREVIOUS`` names in the history of this repository; its services and commands run from
its own sources, on the libraries of this environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dm.deploy import tomlwriter
from tests.live import STATION

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PREVIOUS = "5016126"  # 0.1.0: before identity, permissions and facility data


class Release:
    """An installation that runs the code of some release.

    :param sources: its directory of modules, or ``None`` for this release.
    """

    def __init__(self, root: Path, sources: Path | None) -> None:
        self.root = root
        self.sources = sources
        self.config = root / "etc" / "dm.toml"

    @property
    def environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("DM_", "PYTHONPATH"))}
        if self.sources is not None:
            mine["PYTHONPATH"] = str(self.sources)
        return mine

    def run(self, name: str, *words: object, setup: Path | None = None, user: str | None = None) -> str:
        """Run a command of the release, as after sourcing a setup file."""
        from dm.common.setupfile import read_setup

        environment = self.environment
        if setup is not None:
            environment |= read_setup(setup) | {"DM_HOME": str(self.root / "home")}
        if user is not None:
            environment["DM_LOGIN_FILE"] = str(self.root / "etc" / f".{user}.system.login")
        entry = tomllib.loads(((self.sources or ROOT / "src").parent / "pyproject.toml").read_text())
        module, _, function = entry["project"]["scripts"][name].partition(":")
        program = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; sys.exit({function}())"
        done = subprocess.run(
            [os.sys.executable, "-c", program, *map(str, words)],
            env=environment, capture_output=True, text=True, check=False, timeout=200, cwd="/",
        )  # fmt: skip
        assert done.returncode == 0, f"{name} {words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self) -> None:
        self.run(
            "dm-install", "--root", self.root, "--station", STATION, "--host", "localhost", "--listen", "127.0.0.1",
            "--free-ports",
        )  # fmt: skip

    def control(self, what: str, action: str) -> str:
        return self.run("dm-control", what, action, "--config", self.config)


@pytest.fixture(scope="module")
def previous(run_directory: Path) -> Path:
    """The sources of the previous release."""
    directory = run_directory / "previous"
    directory.mkdir(mode=0o755)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", PREVIOUS], capture_output=True, check=True)
    subprocess.run(["tar", "x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory / "src"


def joined(site: Release, station: Release) -> None:
    """Let a station belong to a site: its address, its authority, and the passwords the site gave its accounts."""
    sections = tomllib.loads(station.config.read_text())
    there = tomllib.loads(site.config.read_text())
    sections["station"]["storage_service_url"] = f"https://localhost:{there['storage']['port']}"
    station.config.write_text(tomlwriter.dumps(sections))
    for name in ("certificates/ca.pem", "certificates/server.pem", "certificates/server.key"):
        (station.root / "etc" / name).write_bytes((site.root / "etc" / name).read_bytes())
    for login in (site.root / "etc").glob(".*.login"):
        (station.root / "etc" / login.name).write_bytes(login.read_bytes())
    setup = station.root / "etc" / "dm.setup.sh"
    mine = tomllib.loads(station.config.read_text())["storage"]["port"]
    setup.write_text(setup.read_text().replace(f":{mine}", f":{there['storage']['port']}"))


@pytest.fixture(params=["old station, new site", "new station, old site"])
def pair(request: pytest.FixtureRequest, previous: Path, run_directory: Path) -> Iterator[tuple[Release, Release]]:
    """A running site and a running station of two releases."""
    new_site = request.param.endswith("new site")
    directory = run_directory / ("releases-1" if new_site else "releases-2")
    directory.mkdir(mode=0o755)
    site = Release(directory / "site", None if new_site else previous)
    station = Release(directory / "station", previous if new_site else None)
    try:
        site.install()
        station.install()
        joined(site, station)
        site.control("site", "start")
        station.control("station", "start")
        yield site, station
    finally:
        for release, side in ((station, "station"), (site, "site")):
            if release.config.exists():
                release.control(side, "stop")


def status(release: Release, service: str) -> dict[str, object]:
    """What a service says of itself."""
    port = tomllib.loads(release.config.read_text())[service]["port"]
    with httpx.Client(verify=str(release.root / "etc" / "certificates" / "ca.pem")) as http:
        return dict(http.get(f"https://localhost:{port}/status").json())


def test_they_work_together(pair: tuple[Release, Release], tmp_path: Path) -> None:
    site, station = pair
    setup = station.root / "etc" / "dm.setup.sh"

    def dm(name: str, *words: object, user: str | None = None, release: Release = station) -> str:
        return release.run(name, *words, setup=setup, user=user)

    introduced = [
        "interface" in status(release, service) for release, service in ((site, "storage"), (station, "catalog"))
    ]
    assert sorted(introduced) == [False, True]  # the previous release did not say; they are two releases
    source = station.root.parent / "source"
    source.mkdir(mode=0o755)
    for number in range(10):
        (source / f"f{number}.dat").write_bytes(b"x" * number)
    dm("dm-add-experiment", "--experiment", "both", "--station", STATION, "--type", "TEST")
    dm("dm-upload", "--experiment", "both", "--data-directory", source, "--wait")
    (source / "later.dat").write_bytes(b"later")
    dm("dm-start-daq", "--experiment", "both", "--data-directory", source, "--process-existing")
    dm("dm-stop-daq", "--experiment", "both", "--data-directory", source, "--wait")
    for release in (station, site):  # the users' programs of either release
        text = dm("dm-list-experiment-files", "--experiment", "both", "--display-format", "json", release=release)
        names = {json.loads(line)["fileName"] for line in text.splitlines()}
        assert names == {*(f"f{number}.dat" for number in range(10)), "later.dat"}
        target = tmp_path / f"of-{release.root.name}"
        dm("dm-download", "--experiment", "both", "--destination-directory", target, release=release)
        assert (next(target.rglob("f9.dat"))).read_bytes() == b"x" * 9
        assert "both" in dm("dm-list-experiments", release=release)
    dm("dm-add-user-experiment-role", "--username", "dmadmin", "--experiment", "both", "--role", "User")
    dm("dm-update-experiment", "--experiment", "both", "--description", "changed from the other release")
    assert "changed from" in dm("dm-get-experiment", "--experiment", "both", "--display-keys", "ALL", release=site)
    dm("dm-delete-experiment", "--experiment", "both", "--yes", "--wait")
