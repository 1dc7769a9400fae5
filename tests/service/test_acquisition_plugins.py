"""Plugins in the pipeline: order, what one that hangs or is away does to others, and what survives a restart."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import ConfigurationError, InvalidArgument, ObjectNotFound, ServiceUnavailable
from dm.station.acquisition.extensions import make_plugins
from dm.station.acquisition.listing import listed_files
from dm.station.acquisition.office import Office
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginOptions
from dm.station.acquisition.transports.base import NoSettings
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office, tree, until
from tests.service.plugin_fixtures import context


class Seen(Plugin):
    """Counts what it sees."""

    name = "seen"

    def __init__(self, name: str = "seen", order: int = Order.LAST, after: tuple[str, ...] = ()) -> None:
        super().__init__(NoSettings(), context())
        self.name = name
        self.placing = PluginOptions(order=order, after=frozenset(after))
        self.files: Counter[bytes] = Counter()
        self.told: dict[bytes, dict[str, Any]] = {}

    def process(self, batch: PluginBatch) -> None:
        self.act(batch)
        for file in batch.files:
            self.files[file.path] += 1
            self.told[file.path] = dict(file.metadata)

    def act(self, batch: PluginBatch) -> None:
        """What a kind of it does first."""


class Away(Seen):
    """Its service is away until told otherwise."""

    away = True
    calls = 0

    def act(self, batch: PluginBatch) -> None:
        self.calls += 1
        if self.away:
            raise ServiceUnavailable("The cluster does not answer.")


class Hanging(Seen):
    """Hangs until told otherwise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.go_on = threading.Event()
        self.inside = 0

    def act(self, batch: PluginBatch) -> None:
        self.inside += 1
        self.go_on.wait(60)


class Preparing(Seen):
    """Adds metadata that later plugins need."""

    prepares = True

    def act(self, batch: PluginBatch) -> None:
        for file in batch.files:
            file.metadata["found"] = file.size


@pytest.fixture
def experiment(site: Site, request: pytest.FixtureRequest) -> dict[str, Any]:
    return site.experiment(f"g{abs(hash(request.node.name)) % 10**8}")


def begin(office: Office, kind: str, experiment: dict[str, Any], source: Path, **keys: Any) -> str:
    return str(office.start(kind, PRINCIPAL, experiment["name"], str(source), keys)["id"])


def write(directory: Path, count: int) -> set[bytes]:
    directory.mkdir(exist_ok=True)
    for number in range(count):
        (directory / f"f{number}").write_bytes(b"%d" % number)
    return {b"f%d" % number for number in range(count)}


def test_one_that_hangs_leaves_threads_for_the_others(
    site: Site, experiment: dict[str, Any], new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    hanging = [Hanging("hanging"), Hanging("hanging too")]
    write(tmp_path / "slow", 60)
    names = write(tmp_path / "quick", 60)
    with running_office(site, new_mongo_database(), [*hanging], workers=6, batch_files=5) as office:
        slow = [
            begin(office, "upload", experiment, tmp_path / "slow", destDirectory=f"slow{number}") for number in range(3)
        ]
        until(lambda: hanging[0].inside == 3, what="half of the threads")
        skipped = {"destDirectory": "quick", "skipPlugins": "hanging,hanging too"}
        quick = begin(office, "upload", experiment, tmp_path / "quick", **skipped)
        assert finish(office, "upload", quick)["status"] == "done"
        stored = Path(experiment["dataDirectory"])
        assert tree(stored / "quick").keys() == names
        until(lambda: all(len(tree(stored / f"slow{number}")) == 60 for number in range(3)), what="storing went on")
        assert max(plugin.inside for plugin in hanging) <= 3
        assert office.after.gate.longest()[0] in ("hanging", "hanging too")
        for plugin in hanging:
            plugin.go_on.set()
        assert {finish(office, "upload", upload)["status"] for upload in slow} == {"done"}
        assert all(len(plugin.files) == 180 for plugin in hanging)
        assert office.after.gate.longest() == ("", 0.0)


def test_a_service_that_is_away_stops_nothing_else(
    site: Site, experiment: dict[str, Any], new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    database = new_mongo_database()
    source = tmp_path / "source"
    names = write(source, 90)
    options: dict[str, Any] = {"batch_files": 5, "open_batches": 2, "queue_files": 100}

    def plugins() -> list[Seen]:
        return [
            Preparing("found", Order.METADATA),
            Away("cluster"),
            Seen("beside"),
            Seen("behind", after=("cluster",)),
        ]

    first = plugins()
    with running_office(site, database, list(first), **options) as office:
        daq = begin(office, "daq", experiment, source, processExistingFiles=True)
        until(lambda: first[2].files.keys() == names, what="what is beside it")
        assert tree(experiment["dataDirectory"]).keys() == names, "more than what may be open is stored"
        (source / "f0").write_bytes(b"a second edition")
        target = Path(experiment["dataDirectory"]) / "f0"
        until(lambda: target.read_bytes() == b"a second edition", what="a changed file is taken again")
        assert not first[3].files
        rows = until(
            lambda: office.store.rows_in(daq, "stored") if len(office.store.rows_in(daq, "stored")) == 90 else 0
        )
        assert {tuple(row["pendingPlugins"]) for row in rows} == {("cluster", "behind")}
        assert {row["lastError"] for row in rows} == {"Plugin cluster: The cluster does not answer."}
        info = office.info("daq", daq)
        assert (info["nWaitingFiles"], info["nProcessingErrors"]) == (90, 0)
        assert "does not answer" in info["errorMessage"]
        assert isinstance(first[1], Away) and first[1].calls < 60, "it is not asked by every batch"
    second = plugins()
    with running_office(site, database, list(second), **options) as office:
        office.stop("daq", daq, abort=False)
        until(lambda: isinstance(second[1], Away) and second[1].calls, what="asked again after the restart")
        assert isinstance(second[1], Away)
        second[1].away = False
        record = finish(office, "daq", daq)
        assert (record["status"], record["nCompletedFiles"]) == ("done", 90)
        assert second[1].files.keys() == second[3].files.keys() == names
        told = {path: metadata["found"] for path, metadata in second[1].told.items()}
        assert told == {name: os.path.getsize(os.fsencode(source) + b"/" + name) for name in names}
        assert not set(second[2].files) - {b"f0"}, "what had its turn has not another"
        assert {row["version"] for row in listed_files(office, daq, None, 0, 100) if row["path"] == "f0"} == {2}


class Choosy(Seen):
    """Cannot do the files of one upload, and says so by an exception."""

    calls = 0

    def act(self, batch: PluginBatch) -> None:
        if any(b"bad" in file.path for file in batch.files):
            self.calls += 1
            raise ObjectNotFound("The experiment is unknown there.")


def test_an_error_about_some_files_is_no_outage(
    site: Site, experiment: dict[str, Any], new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    choosy = Choosy()
    names = write(tmp_path, 30)
    options: dict[str, Any] = {"batch_files": 5, "retry_first_seconds": 5, "retry_most_seconds": 5}
    with running_office(site, new_mongo_database(), [choosy], **options) as office:
        bad = begin(office, "upload", experiment, tmp_path, destDirectory="bad")
        until(lambda: choosy.calls)
        good = begin(office, "upload", experiment, tmp_path, destDirectory="good")
        assert finish(office, "upload", good)["status"] == "done"
        assert choosy.files.keys() == {b"good/" + name for name in names}
        assert not office.after.gate.away(choosy)
        office.stop("upload", bad, abort=True)
        assert finish(office, "upload", bad)["status"] == "aborted"


def test_patience_has_an_end(
    site: Site, experiment: dict[str, Any], new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    write(tmp_path, 12)
    away, beside = Away("cluster"), Seen("beside")
    with running_office(site, new_mongo_database(), [away, beside], batch_files=5, retry_hours=1 / 3600) as office:
        upload = begin(office, "upload", experiment, tmp_path)
        record = finish(office, "upload", upload)
        assert (record["status"], record["nProcessingErrors"]) == ("failed", 12)
        assert len(beside.files) == 12


def test_secrets_of_plugins_are_no_data(
    site: Site, experiment: dict[str, Any], new_mongo_database: Callable[[], str], tmp_path: Path
) -> None:
    write(tmp_path, 1)
    secretive = Seen()
    secretive.secrets = (tmp_path / "webhook.secret",)
    refused = pytest.raises(InvalidArgument, match="files of the DM installation itself")
    with running_office(site, new_mongo_database(), [secretive]) as office, refused:
        begin(office, "upload", experiment, tmp_path)


def test_order_and_after() -> None:
    names = ["tests.service.test_acquisition_plugins:" + kind for kind in ("Late", "Early", "Middle")]
    tables: dict[str, dict[str, Any]] = {
        "late": {"class": names[0], "after": ["middle"]},
        "second": {"class": names[1], "order": 15},
        "middle": {"class": names[2], "required": False, "concurrency": 1},
        "early": {"class": names[1]},
    }
    made = make_plugins(tables, context())
    assert [plugin.name for plugin in made] == ["early", "second", "middle", "late"]
    early, second, middle, late = made
    assert (middle.required, early.required, middle.placing.concurrency) == (False, True, 1)
    assert late.waits_for(middle) and late.waits_for(early) and not middle.waits_for(late)
    assert second.waits_for(early) and not early.waits_for(second)
    for wrong, said in (
        ({"late": {"class": names[0], "after": ["nothing"]}}, "no plugin of these settings"),
        ({"a": {"class": names[0], "after": ["b"]}, "b": {"class": names[0], "after": ["a"]}}, "wait for each other"),
        ({"early": {"class": names[1], "after": ["late"]}, "late": {"class": names[0]}}, "wait for each other"),
        ({"late": {"class": names[0], "order": -1}}, "order"),
        ({"late": {"class": names[0], "unknown": 1}}, "unknown"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            make_plugins(wrong, context())


class Early(Plugin):
    name = "early"
    order = Order.METADATA

    def process(self, batch: PluginBatch) -> None:
        """Do nothing."""


class Middle(Early):
    name = "middle"
    order = Order.LAST


class Late(Middle):
    name = "late"
