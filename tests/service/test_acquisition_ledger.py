"""The ledger and the lease on a real MongoDB-wire server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from bson.binary import Binary

from dm.common.errors import ConfigurationError, ServiceUnavailable
from dm.station.acquisition import journal
from dm.station.acquisition.batch import Batch
from dm.station.acquisition.completion import Rule
from dm.station.acquisition.lease import Lease, process_start
from dm.station.acquisition.ledger import Ledger
from dm.station.acquisition.rows import Item, State, row_id, shown, stamp_key
from dm.station.acquisition.store import Store
from dm.station.acquisition.transports.base import FileStamp

NAMES = [b"a", b"sub/b \xff\xfe", "ü/日本".encode(), b"$where", b"x.y", b"new\nline", b"n" * 255]


@pytest.fixture
def store(new_mongo_database: Callable[[], str]) -> Iterator[Store]:
    found = Store(new_mongo_database())
    found.prepare()
    yield found
    found.close()


def found(names: list[bytes]) -> list[tuple[bytes, FileStamp, Rule]]:
    return [(name, FileStamp(2**32 + number, -number), Rule.CLOSED) for number, name in enumerate(names)]


def test_files_survive_with_exact_names_sizes_and_times(store: Store) -> None:
    ledger = Ledger(store, "t")
    ledger.ready(found(NAMES))
    again = Ledger(store, "t")
    items = {item.path: item for item in again.load()}
    assert set(items) == set(NAMES)
    assert items[NAMES[1]].size == 2**32 + 1
    assert items[NAMES[1]].mtime_ns == -1
    for path, stamp, _rule in found(NAMES):
        assert again.knows(path, stamp) is State.READY
        assert again.knows(path, FileStamp(stamp.size + 1, stamp.mtime_ns)) is None


def test_outcomes_counts_and_a_new_version(store: Store) -> None:
    ledger = Ledger(store, "t")
    items = ledger.ready(found(NAMES[:4]))
    ledger.finish(
        [
            (items[0], State.DONE, {"digests": {"xxh3_128": "0" * 32}, "version": 1}),
            (items[1], State.FAILED, {"lastError": "No space."}),
            (items[2], State.VANISHED, {"lastError": ""}),
            (items[3], State.STORED, {"pendingPlugins": ["catalog"]}),
        ]
    )
    assert [ledger.count(state) for state in (State.DONE, State.FAILED, State.VANISHED, State.STORED)] == [1, 1, 1, 1]
    assert list(ledger.errors.values()) == ["No space."]
    row = store.row(row_id("t", NAMES[1]))
    assert row is not None
    assert shown(row)["state"] == "failed"
    assert os.fsencode(shown(row)["path"]) == NAMES[1]
    assert ledger.knows(NAMES[2], FileStamp(items[2].size, items[2].mtime_ns)) is None  # vanished: anew when back
    again = ledger.ready([(NAMES[0], FileStamp(7, 7), Rule.SETTLED)])
    assert again == [Item(NAMES[0], 7, 7, "settled")]
    assert ledger.count(State.DONE) == 0
    assert ledger.count(State.READY) == 1
    assert len(store.page("t", 0, 100)) == 4
    fresh = Ledger(store, "t")
    assert [item.path for item in fresh.load()] == [NAMES[0]]
    assert fresh.count(State.STORED) == 1


def test_bytes_add_up_whatever_becomes_of_files(store: Store) -> None:
    ledger = Ledger(store, "t")
    stamps = [FileStamp(1000 * number, number) for number in range(1, 6)]
    items = ledger.ready([(NAMES[number], stamp, Rule.SETTLED) for number, stamp in enumerate(stamps)])

    def sizes(of: Ledger = ledger) -> tuple[int, int, int, int]:
        return of.bytes_done, of.bytes_waiting, of.bytes_failed, of.bytes_total

    assert sizes() == (0, 15_000, 0, 15_000)
    ledger.finish([(items[0], State.DONE, {}), (items[1], State.FAILED, {"lastError": "No space."})])
    ledger.finish([(items[2], State.STORED, {}), (Item(NAMES[3], 0, 0, ""), State.VANISHED, {})])
    assert sizes() == (1000, 8000, 2000, 11_000)
    ledger.forget(NAMES[4])  # it changed on its way
    items[4:] = ledger.ready([(NAMES[4], FileStamp(7000, 9), Rule.SETTLED)])
    assert sizes() == (1000, 10_000, 2000, 13_000)
    retried = [(item, State.READY, {"lastError": ""}) for item in items[1:2]]
    ledger.finish(list(retried))
    assert sizes() == (1000, 12_000, 0, 13_000)
    fresh = Ledger(store, "t")
    fresh.load()
    assert sizes(fresh) == sizes()
    ledger.finish([(item, State.DONE, {}) for item in (items[1], items[2], items[4])])
    assert sizes() == (13_000, 0, 0, 13_000)


def test_what_is_written_twice_counts_once(store: Store) -> None:
    ledger = Ledger(store, "t")
    Ledger(store, "t").ready(found(NAMES))
    again = Ledger(store, "t")
    again.load()
    items = again.ready(found(NAMES))  # the first answer was lost, say
    assert again.count(State.READY) == len(again.listing(None, 0, 100)) == len(NAMES)
    outcomes = [(item, State.DONE, {}) for item in items]
    again.finish(outcomes)
    late = Ledger(store, "t")
    late.finish(outcomes)
    assert len(store.page("t", 0, 100)) == len(NAMES)
    assert ledger.load() == []
    assert ledger.count(State.DONE) == len(NAMES)
    assert list(store.intakes("t")) == []


def test_a_crash_between_rows_and_journal_leaves_the_files_to_do(store: Store) -> None:
    ledger = Ledger(store, "t")
    items = ledger.ready(found(NAMES))
    ledger.finish([(item, State.DONE, {"version": 1}) for item in items[:3]])
    store.journal.delete_many({"task": "t"})
    again = Ledger(store, "t")
    assert {item.path for item in again.load()} == set(NAMES)
    again.finish([(item, State.DONE, {"version": 1}) for item in items])
    assert len(again.listing("done", 0, 100)) == len(NAMES)
    assert Ledger(store, "t").load() == []


def test_every_state_is_listed_page_by_page(store: Store) -> None:
    names = [b"f%03d" % number for number in range(250)]
    ledger = Ledger(store, "t")
    items = [item for start in range(0, 250, 50) for item in ledger.ready(found(names[start : start + 50]))]
    ledger.finish([(item, State.DONE, {}) for item in items[::2]])
    ledger.note_failures([(items[1], "Disk full.", 5.0)])
    for book in (ledger, Ledger(store, "t")):
        if book is not ledger:
            book.load()
        for state, expected in ((None, names), ("ready", names[1::2]), ("done", names[::2])):
            pages = [book.listing(state, skip, 30) for skip in range(0, 270, 30)]
            seen = [os.fsencode(row["path"]) for page in pages for row in page]
            assert sorted(seen) == expected
        assert book.count(State.READY) == 125
    failing = ledger.find(names[1])
    assert failing is not None
    assert (failing["state"], failing["lastError"]) == ("ready", "Disk full.")
    assert [event["event"] for event in failing["history"]] == ["failed"]
    untold = ledger.find(names[3])
    assert untold is not None
    assert untold["state"] == "ready"
    assert ledger.find(b"other") is None
    assert {item.path for item in ledger.refill(1000)} == set(names[1::2])


def test_a_retaken_file_and_one_superseded_before_its_turn(store: Store) -> None:
    ledger = Ledger(store, "t")
    [item] = ledger.ready([(b"a", FileStamp(1, 1), Rule.CLOSED)])
    ledger.forget(b"a")
    [item] = ledger.ready([(b"a", FileStamp(2, 2), Rule.CLOSED)])
    assert ledger.count(State.READY) == 1
    assert [found.size for found in ledger.refill(10)] == [2]
    ledger.finish([(item, State.DONE, {})])
    assert list(store.intakes("t")) == []
    ledger.ready([(b"a", FileStamp(3, 3), Rule.SETTLED)])
    again = Ledger(store, "t")
    assert [(found.path, found.size, found.rule) for found in again.load()] == [(b"a", 3, "settled")]
    assert again.count(State.READY) == 1
    assert again.count(State.DONE) == 0


def test_a_long_journal_becomes_short_and_tells_the_same(store: Store) -> None:
    ledger = Ledger(store, "t")
    names = [b"f%03d" % number for number in range(600)]
    items = ledger.ready(found(names))
    for item in items:
        ledger.finish([(item, State.DONE, {})])
    assert len(store.journal_of("t")) < 120
    again = Ledger(store, "t")
    assert again.load() == []
    assert again.count(State.DONE) == 600
    assert again.bytes_done == ledger.bytes_done == sum(item.size for item in items)
    for path, stamp, _rule in found(names):
        assert again.knows(path, stamp) is State.DONE


def test_baseline_and_prior_files_are_not_new(store: Store) -> None:
    first = Ledger(store, "first")
    items = first.ready(found([b"done", b"failed"]))
    first.finish([(items[0], State.DONE, {}), (items[1], State.FAILED, {"lastError": "x"})])
    second = Ledger(store, "second")
    second.save_baseline([(name, stamp) for name, stamp, _rule in found(NAMES)])
    third = Ledger(store, "second")
    third.load_prior("first")
    third.load_baseline()
    for name, stamp, _rule in found(NAMES):
        assert third.knows(name, stamp) is State.BASELINE
    assert third.state(b"done") is State.PRIOR
    assert third.state(b"failed") is None
    third.forget(NAMES[0])
    assert third.knows(NAMES[0], found(NAMES)[0][1]) is None


def test_batches_and_baselines_can_be_written_again(store: Store) -> None:
    task = SimpleNamespace(id="t")
    batch = Batch.of(task, [Item(name, 2**40, -1, "closed", 2) for name in NAMES])  # type: ignore[arg-type]
    for phase in ("move", "plugins"):
        batch.phase = phase
        store.add_batch(batch.document())
        store.add_baseline("t", 0, bytes(range(256)))
    [document] = store.batches_of("t")
    again = Batch.adopt(task, document)  # type: ignore[arg-type]
    assert again.phase == "plugins"
    assert [load.item for load in again.loads] == [load.item for load in batch.loads]
    assert store.baseline("t") == [bytes(range(256))]
    store.forget_task("t")
    assert store.batches_of("t") == []


def test_claims_are_exclusive(store: Store) -> None:
    assert store.claim("k", "one") == "one"
    assert store.claim("k", "two") == "one"
    store.release("k", "two")
    assert store.claim("k", "two") == "one"
    store.release("k", "one")
    assert store.claim("k", "two") == "two"


def test_a_database_that_is_down_is_told_in_one_sentence() -> None:
    store = Store("mongodb://127.0.0.1:1/dm", timeout=0.2)
    try:
        with pytest.raises(ServiceUnavailable, match="acquisition database does not answer") as caught:
            store.ping()
        assert len(str(caught.value)) < 300
    finally:
        store.close()


def test_a_second_service_refuses_while_the_first_lives(store: Store) -> None:
    first = Lease(store, 20, lambda: None)
    first.acquire()
    try:
        with pytest.raises(ConfigurationError, match=f"process {os.getpid()} on .* works with this database"):
            Lease(store, 20, lambda: None).acquire()
    finally:
        first.release()
    second = Lease(store, 20, lambda: None)
    second.acquire()
    assert second.fence == first.fence + 1
    second.release()


def test_the_lease_of_a_dead_process_is_taken_at_once(store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_start(child.pid)
    assert started
    import socket

    store.take_lease(
        None, {"owner": "o", "host": socket.gethostname(), "pid": child.pid, "started": started, "fence": 4, "beat": 1}
    )
    with pytest.raises(ConfigurationError):
        Lease(store, 20, lambda: None).acquire()
    child.kill()
    child.communicate()
    heir = Lease(store, 20, lambda: None)
    heir.acquire()
    assert heir.fence == 5
    heir.release()


def test_a_silent_owner_elsewhere_loses_the_lease_and_a_living_one_keeps_it(store: Store) -> None:
    import threading

    theirs = {"owner": "them", "host": "other.example.org", "pid": 1, "started": "x", "fence": 1, "beat": 1}
    store.take_lease(None, theirs)
    heir = Lease(store, 2, lambda: None)
    beating = threading.Event()

    def beat() -> None:
        number = 1
        while not beating.wait(0.1):
            number += 1
            store.renew_lease("them", number)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(ConfigurationError):
        heir.acquire()
    beating.set()
    heart.join()
    lost = threading.Event()
    heir = Lease(store, 2, lost.set)
    heir.acquire()
    assert store.renew_lease("them", 99) is False
    store.take_lease(store.lease(), {"owner": "thief", "beat": 0})
    assert lost.wait(10)
    heir.release()


def test_a_journal_made_short_in_parts_tells_the_last_of_each_file(store: Store) -> None:
    def entry(number: int, records: list[journal.Record]) -> dict[str, object]:
        return {"_id": f"t:{number:012d}", "task": "t", "data": Binary(journal.pack_records(records))}

    stamp = stamp_key(1, 1)
    many = [(key, stamp | State.DONE, 1) for key in range(1, journal.BLOCK + 1)]
    store.journal.insert_many(
        [entry(1, [(1, stamp | State.READY, 1)]), entry(2, many)]
        + [entry(3 + number, [(10**9 + number, stamp | State.DONE, 1)]) for number in range(600)]
    )
    for _time in range(2):
        ledger = Ledger(store, "t")
        ledger.load()
        assert (ledger.count(State.READY), ledger.count(State.DONE)) == (0, journal.BLOCK + 600)
    assert len(store.journal_of("t")) < 10
