"""Whatever happens in a data directory: what is there when it rests arrives, while the DAQ still runs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dm.station.acquisition.office import Office
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office, tree, until

# Between reconciles, events tell of everything; polling does not tell of other contents under the same name.
RECONCILE = {"events": 3600.0, "both": 3600.0, "polling": 1.0}


class Chaos:
    """Does random things in a directory.

    :param outside: a directory beside it, to move things to and from.
    """

    def __init__(self, root: Path, outside: Path, seed: int) -> None:
        self.root = root
        self.outside = outside
        self.chance = random.Random(seed)
        self.number = 0

    def name(self, kind: str) -> str:
        self.number += 1
        return f"{kind}{self.number}"

    def directories(self) -> list[Path]:
        return [Path(place) for place, _names, _files in os.walk(self.root)]

    def files(self) -> list[Path]:
        return [Path(place) / name for place, _names, files in os.walk(self.root) for name in files]

    def write(self) -> None:
        place = self.chance.choice(self.directories())
        (place / self.name("f")).write_bytes(self.chance.randbytes(self.chance.randrange(5000)))

    def write_and_rename(self) -> None:
        place = self.chance.choice(self.directories())
        name = self.name("r")
        (place / f"{name}.tmp").write_bytes(self.chance.randbytes(500))
        (place / f"{name}.tmp").rename(self.chance.choice(self.directories()) / name)

    def rewrite(self) -> None:
        if files := self.files():
            self.chance.choice(files).write_bytes(self.chance.randbytes(self.chance.randrange(5000)))

    def append(self) -> None:
        if files := self.files():
            with self.chance.choice(files).open("ab") as file:
                file.write(self.chance.randbytes(100))

    def replace(self) -> None:
        if len(files := self.files()) > 1:
            first, second = self.chance.sample(files, 2)
            first.rename(second)

    def delete(self) -> None:
        if files := self.files():
            self.chance.choice(files).unlink()

    def make_directories(self) -> None:
        place = self.chance.choice(self.directories()) / self.name("d") / self.name("d")
        place.mkdir(parents=True)
        for _ in range(self.chance.randrange(4)):
            (place / self.name("f")).write_bytes(self.chance.randbytes(50))

    def move_directory(self) -> None:
        directories = self.directories()[1:]
        if not directories:
            return
        moved = self.chance.choice(directories)
        inside = [place for place in self.directories() if not place.is_relative_to(moved)]
        moved.rename(self.chance.choice(inside) / self.name("m"))

    def move_out_and_in(self) -> None:
        directories = self.directories()[1:]
        if directories and self.chance.random() < 0.5:
            self.chance.choice(directories).rename(self.outside / self.name("o"))
        elif waiting := sorted(self.outside.iterdir()):
            self.chance.choice(waiting).rename(self.chance.choice(self.directories()) / self.name("b"))

    def remove_directory(self) -> None:
        if directories := self.directories()[1:]:
            shutil.rmtree(self.chance.choice(directories))

    def storm(self, steps: int) -> None:
        """Do so many things."""
        deeds = [
            *[self.write] * 8, *[self.write_and_rename] * 4, *[self.rewrite] * 3, *[self.append] * 2, self.replace,
            self.delete, *[self.make_directories] * 4, self.move_directory, self.move_out_and_in,
        ]  # fmt: skip
        for step in range(steps):
            self.chance.choice(deeds)()
            if step % 40 == 39:
                self.remove_directory()


def live_through(site: Site, database: str, tmp_path: Path, method: str, seed: int) -> None:
    """Let it storm, and wait until storage has what is there."""
    print(f"seed {seed}")
    source, outside = tmp_path / "source", tmp_path / "outside"
    source.mkdir()
    outside.mkdir()
    experiment = site.experiment(f"random-{method}-{seed}")
    chaos = Chaos(source, outside, seed)

    def missing() -> set[bytes]:
        there, stored = tree(source), tree(experiment["dataDirectory"])
        return {path for path, digest in there.items() if stored.get(path) != digest}

    def start(office: Office) -> str:
        return str(office.start("daq", PRINCIPAL, experiment["name"], str(source), {"watchMethod": method})["id"])

    with running_office(site, database, scan_seconds=RECONCILE[method]) as office:
        daq = start(office)
        until(lambda: "lastReconcileTime" in office.info("daq", daq))
        for _ in range(4):
            chaos.storm(60)
            until(lambda: not missing(), what="all that is there")
        office.stop("daq", daq, abort=False)
        record = finish(office, "daq", daq)
        assert (record["status"], record["nProcessingErrors"]) == ("done", 0), record
        assert record["countFiles"] == record["nCompletedFiles"] + record["nSkippedFiles"]


@pytest.mark.parametrize("method", ["events", "polling", "both"])
def test_whatever_happens(site: Site, new_mongo_database: Callable[[], str], tmp_path: Path, method: str) -> None:
    live_through(site, new_mongo_database(), tmp_path, method, 1)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2, 12))
@pytest.mark.parametrize("method", ["events", "polling"])
def test_whatever_happens_again_and_again(
    site: Site, new_mongo_database: Callable[[], str], tmp_path: Path, method: str, seed: int
) -> None:
    live_through(site, new_mongo_database(), tmp_path, method, seed)
