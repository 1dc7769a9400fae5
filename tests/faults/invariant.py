"""Invariant I: what must hold after every fault, whatever it was.

Every source file that was complete is exactly once in the catalog, present at its storage path with equal bytes
(SHA-256), right owner, group and mode; nothing else is at final names; no temporary file is left; the counts of the
DAQ or upload add up; the services answer their status call; no traceback reached a client; no secret is in a log.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.common.paths import encode
from dm.site.storage.manifest import read
from tests.faults.bench import OWNER, Bench
from tests.service.acquisition_fixtures import ADMIN, MANAGER, SERVICE, until

_TRACE = re.compile(r"Traceback \(most recent call last\)|File \"/[^\"]*\.py\"")
_GROUP = OWNER.pw_gid


@dataclass(frozen=True)
class Task:
    """A DAQ or upload that is over: its kind and id."""

    kind: str
    id: str


@dataclass
class Found:
    """What a check found, for tests that want to say more.

    :param record: of the DAQ or upload. :param rows: its ledger, by path. :param batches: how often each path was sent.
    """

    record: dict[str, Any] = field(default_factory=dict)
    rows: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    batches: Counter[bytes] = field(default_factory=Counter)


def contents(directory: Path) -> dict[bytes, str]:
    """Return relative path -> SHA-256 of all regular files below a directory; links are not followed."""
    root = os.fsencode(directory)
    found = {}
    for place, _names, files in os.walk(root):
        for name in files:
            path = os.path.join(place, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as stream:
                    found[os.path.relpath(path, root)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def check(
    bench: Bench,
    experiment: Mapping[str, Any],
    source: Path | Iterable[Path],
    *,
    task: Task | None = None,
    refused: Iterable[bytes] = (),
    expected: Mapping[bytes, str] | None = None,
    versions: Mapping[bytes, int] | None = None,
    resent: int = 1,
    tolerated: Callable[[str], bool] | None = None,
) -> Found:
    """Check Invariant I of one experiment.

    :param source: data directory, or several that were moved to the same place.
    :param task: whose counts and ledger to check.
    :param refused: source files that rightly are not in storage.
    :param expected: path -> SHA-256 where the source does not say (any more). :param versions: other than 1.
    :param resent: how often a file may have been published, by what the manifest says.
    :param tolerated: which lines with a traceback in a service's log the fault explains.
    :raises AssertionError: it does not hold.
    """
    if expected is None:
        sources = [source] if isinstance(source, Path) else list(source)
        gone = set(refused)
        expected = {path: digest for one in sources for path, digest in contents(one).items() if path not in gone}
    found = Found()
    _storage(bench, experiment, expected, versions or {})
    _catalog(bench, experiment, expected, versions or {})
    _nothing_left(bench, experiment)
    manifest = read(str(bench.view(experiment["storageDirectory"])))
    # a batch that storage had to do again after a crash has its lines twice; that is once published
    found.batches = Counter(path for path, _batch in {(encode(str(line["path"])), line["batch"]) for line in manifest})
    usual = versions or {}
    too_often = {path: count for path, count in found.batches.items() if count >= resent + usual.get(path, 1)}
    assert not too_often, f"sent more often than {resent} times: {too_often}"
    if task is not None:
        _counts(bench, task, found)
    services(bench)
    logs(bench, tolerated)
    return found


def _storage(
    bench: Bench, experiment: Mapping[str, Any], expected: Mapping[bytes, str], versions: Mapping[bytes, int]
) -> None:
    """Final names hold the sources' bytes and nothing else, with their owner, group and mode; storage knows them."""
    data = bench.data(experiment)
    there = contents(data)
    _same("storage", there.keys(), expected.keys())
    assert {path for path in expected if there[path] != expected[path]} == set(), "other bytes than the source's"
    for place, names, files in os.walk(os.fsencode(data)):
        for name in [*names, *files]:
            status = os.lstat(os.path.join(place, name))
            shown = os.path.join(place, name)
            assert (status.st_uid, status.st_gid) == (OWNER.pw_uid, _GROUP), f"owner of {shown!r}"
            allowed = {0o2750} if stat.S_ISDIR(status.st_mode) else {0o640, 0o750}
            assert stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode), f"{shown!r} is no file"
            assert status.st_mode & 0o7777 in allowed, f"mode {status.st_mode & 0o7777:o} of {shown!r}"
    rows = _pages(
        lambda after: bench.rest("storage").get(
            "/files", experimentName=experiment["name"], limit=10_000, after=after or 0
        ),
        "nextAfter",
    )
    known = Counter(encode(str(row["experimentFilePath"])) for row in rows)
    _same("storage's list", known.keys(), expected.keys())
    assert set(known.values()) <= {1}
    for row in rows:
        path = encode(str(row["experimentFilePath"]))
        assert row["version"] == versions.get(path, 1), f"version of {path!r} in storage"
        assert row["fileSize"] == os.lstat(os.path.join(os.fsencode(data), path)).st_size


def _catalog(
    bench: Bench, experiment: Mapping[str, Any], expected: Mapping[bytes, str], versions: Mapping[bytes, int]
) -> None:
    """The catalog has each file exactly once, with its size and md5."""
    name = experiment["name"]
    rows = _pages(
        lambda after: bench.rest("catalog").get(
            f"/experimentFilePages/{name}", limit=1000, **({"after": after} if after else {})
        ),
        "after",
    )
    known = Counter(encode(str(row["experimentFilePath"])) for row in rows)
    _same("catalog", known.keys(), expected.keys())
    assert set(known.values()) <= {1}, f"twice in the catalog: {[path for path in known if known[path] > 1]}"
    data = os.fsencode(bench.data(experiment))
    for row in rows:
        path = encode(str(row["experimentFilePath"]))
        with open(os.path.join(data, path), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            assert row["fileSize"] == size, f"size of {path!r} in the catalog"
            assert row["md5Sum"] == hashlib.file_digest(stream, "md5").hexdigest(), f"md5 of {path!r} in the catalog"
        assert row.get("version", 1) == versions.get(path, 1), f"version of {path!r} in the catalog"


def _nothing_left(bench: Bench, experiment: Mapping[str, Any]) -> None:
    """No temporary file anywhere in the experiment, and only what belongs there in ``system``."""
    top = bench.view(experiment["storageDirectory"])
    # storage clears a batch's staging directory after it has answered for it
    until(lambda: not os.listdir(top / ".staging"), 30, f"an empty {top}/.staging")
    for place, _names, files in os.walk(os.fsencode(top)):
        left = [name for name in files if name.startswith((b".dm-", b".own-")) or name.endswith(b".new")]
        assert not left, f"left in {place!r}: {left}"
    assert set(os.listdir(top / "system")) <= {"manifest", "versions", "experiment.json"}


def _counts(bench: Bench, task: Task, found: Found) -> None:
    """Completed, failed and skipped files add up, and are what the ledger says."""
    record = bench.info(task.kind, task.id)
    rows = bench.files(task.kind, task.id)
    found.record, found.rows = record, {encode(str(row["path"])): row for row in rows}
    assert len(found.rows) == len(rows), "a file has two rows in the ledger"
    assert record["status"] in ("done", "failed", "aborted"), record
    parts = record["nCompletedFiles"] + record["nProcessingErrors"] + record["nSkippedFiles"]
    assert record["countFiles"] == parts == len(rows), record
    assert record["nWaitingFiles"] == 0
    states = Counter(str(row["state"]) for row in rows)
    assert states["done"] == record["nCompletedFiles"], (states, record)
    assert states["failed"] == record["nProcessingErrors"], (states, record)
    assert states["skipped"] + states["vanished"] == record["nSkippedFiles"], (states, record)
    told = [str(row.get("lastError") or "") for row in rows] + [str(record.get("errorMessage") or "")]
    assert not [text for text in told if _TRACE.search(text)], "a traceback in a record"


def services(bench: Bench) -> None:
    """Every service that was started answers its status call, and no answer ever held a traceback."""
    for service in bench.services:
        if service.process is not None:
            assert service.status()["status"] in ("ok", "warning", "critical")
    assert bench.tracebacks == []


def logs(bench: Bench, tolerated: Callable[[str], bool] | None = None) -> None:
    """No secret is in a log, and nothing that nobody had thought of."""
    secrets = [password.encode() for _name, password in (ADMIN, MANAGER, SERVICE)]
    secrets += [client.cookie.encode() for client in bench.clients.values() if client.cookie]
    secrets += bench.grant_secrets()
    for service in bench.services:
        for file in (service.log, service.said):
            if not file.exists():
                continue
            start = bench.read_logs.get(file, 0)
            with file.open("rb") as stream:
                stream.seek(start)
                text = stream.read()
            bench.read_logs[file] = start + len(text)
            assert not [secret for secret in secrets if secret in text], f"a secret in {file}"
            for trace in _traces(text.decode("utf-8", "replace")):
                known = trace.splitlines()[-1].startswith("dm.common.errors.")  # a 503 is logged with its cause
                assert known or (tolerated is not None and tolerated(trace)), f"{file} has a traceback:\n{trace}"


def _traces(text: str) -> list[str]:
    """Return the logged messages that hold a traceback, each with all its lines."""
    messages = re.split(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", text, flags=re.MULTILINE)
    return [message.strip() for message in messages if "Traceback (most recent call last)" in message]


def _pages(get: Callable[[Any], Any], following: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    after: Any = None
    while True:
        page = get(after)
        rows += page["files"]
        after = page[following]
        if after is None:
            return rows


def _same(what: str, found: Iterable[bytes], expected: Iterable[bytes]) -> None:
    found, expected = set(found), set(expected)
    missing, extra = sorted(expected - found), sorted(found - expected)
    assert not missing and not extra, f"{what}: {len(missing)} missing {missing[:5]}, {len(extra)} too many {extra[:5]}"
