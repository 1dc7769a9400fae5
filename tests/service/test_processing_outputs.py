"""All that processes printed, over REST: of ended ones, of running ones, in parts, and to whom."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dm.common import tls
from dm.common.errors import AuthorizationError, InvalidRequest, ObjectNotFound
from tests.service import storage_fixtures as storage
from tests.service.processing_fixtures import OWNER, PATIENCE, Running, running_processing

LONG = "seq 1 200000; echo end >&2"  # 1.3 MB: much more than the record has
LONG_OUTPUT = b"".join(b"%d\n" % number for number in range(1, 200_001))


@pytest.fixture(scope="module")
def service(
    postgres_url: str, mongo_url: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with (
        storage.running_site(postgres_url, certificates, tmp_path_factory.mktemp("site")) as site,
        running_processing(site, mongo_url, certificates, tmp_path_factory.mktemp("processing")) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def long(service: Running) -> str:
    """Id of an ended job whose first process printed much."""
    job = service.finished(service.start(service.workflow({"1": {"command": LONG}}, "long")))
    assert job["status"] == "done"
    return str(job["id"])


def output(service: Running, job: str, number: int = 0, stream: str = "stdOut", follow: bool = False) -> bytes:
    return b"".join(service.api().getProcessingJobOutput(OWNER, job, number, stream, follow))


def test_output_is_whole_where_the_record_has_beginning_and_end(service: Running, long: str) -> None:
    child = service.api().getChildProcess(OWNER, long, 0)
    assert child["outputTruncated"] and "left out" in child["stdOut"] and len(child["stdOut"]) < 70_000
    assert output(service, long) == LONG_OUTPUT
    assert output(service, long, stream="stdErr") == b"end\n"
    assert output(service, long, follow=True) == LONG_OUTPUT


def test_short_binary_and_empty_output(service: Running) -> None:
    stages = {"1": {"command": r"printf 'a\377\000b'; printf e >&2"}, "2": {"command": "true"}}
    job = service.finished(service.start(service.workflow(stages, "short")))["id"]
    assert output(service, job) == b"a\xff\x00b" and output(service, job, stream="stdErr") == b"e"
    assert output(service, job, 1) == b"" == output(service, job, 1, "stdErr", follow=True)


def test_the_reply_is_plain_text_in_parts(service: Running, long: str) -> None:
    client = service.rest()
    client.login()
    path = f"{service.url.removesuffix('/dm')}/dm/processingJobsByOwner/{OWNER}/{long}/childProcesses/0/stdOut"
    with httpx.Client(
        verify=tls.client_context(service.site.ca_file), headers={"Cookie": f"SESSIONID={client.cookie}"}
    ) as http:
        whole = http.get(path)
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert whole.headers["content-disposition"].startswith("attachment;")
        assert int(whole.headers["content-length"]) == len(LONG_OUTPUT)
        part = http.get(path, headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, LONG_OUTPUT[100:200])
        assert http.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
        assert http.get(path, params={"offset": len(LONG_OUTPUT) - 7}).content == LONG_OUTPUT[-7:]
        assert http.get(path, params={"offset": len(LONG_OUTPUT) + 7}).content == b""
        rest = http.get(path, params={"offset": 1000}, headers={"Range": "bytes=0-9"})
        assert rest.content == LONG_OUTPUT[1000:1010]
        for query in ({"offset": -1}, {"offset": "x"}, {"waitTime": 31}, {"follow": 1}):
            assert http.get(path, params=query).status_code == 400


def test_a_running_process_is_followed_without_polling(service: Running, open_directory: Path) -> None:
    open_directory.chmod(0o777)
    go = open_directory / "go"
    command = f"echo first; until test -e {go}; do sleep 0.05; done; echo second; echo last >&2; sleep 0.3; echo third"
    job = service.start(service.workflow({"1": {"command": "true"}, "2": {"command": command}}, "followed"))["id"]
    pieces: list[bytes] = []

    def follow() -> None:
        for piece in service.api().getProcessingJobOutput(OWNER, job, 1, follow=True):
            pieces.append(piece)
            if b"".join(pieces) == b"first\n":
                go.touch()

    thread = threading.Thread(target=follow)  # begins before the process does
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive() and b"".join(pieces) == b"first\nsecond\nthird\n" and len(pieces) >= 2
    assert service.finished({"id": job})["status"] == "done"
    assert output(service, job, 1, "stdErr") == b"last\n"


def test_long_output_is_followed_byte_for_byte(service: Running) -> None:
    """What moves from the running process to the kept files meanwhile is neither lost nor told twice."""
    command = "for i in 1 2 3 4 5 6 7 8; do seq 1 20000; sleep 0.05; done; printf '\\377\\000'"
    job = service.start(service.workflow({"1": {"command": command}}, "flood"))["id"]
    expected = b"".join(b"%d\n" % number for number in range(1, 20_001)) * 8 + b"\xff\x00"
    found = output(service, job, follow=True)
    assert hashlib.sha256(found).hexdigest() == hashlib.sha256(expected).hexdigest()


def test_what_does_not_exist_and_what_is_not_yours(service: Running, long: str) -> None:
    api = service.api()
    for number in (1, 64, 5000):
        for ask in (
            lambda number=number: output(service, long, number),
            lambda number=number: output(service, long, number, follow=True),
            lambda number=number: api.getChildProcess(OWNER, long, number),
        ):
            with pytest.raises(ObjectNotFound, match=f"Process {number}"):
                ask()
    with pytest.raises(InvalidRequest):
        output(service, long, -1)
    with pytest.raises(ObjectNotFound):
        output(service, "no-such-job")
    bob = service.api(storage.BOB)
    for owner in (OWNER, storage.BOB):
        with pytest.raises((AuthorizationError, ObjectNotFound)):
            list(bob.getProcessingJobOutput(owner, long, 0))
        with pytest.raises((AuthorizationError, ObjectNotFound)):
            bob.getChildProcess(owner, long, 0)


def test_processes_beyond_those_in_the_jobs_document(service: Running) -> None:
    service.workflow({"1": {"command": "echo $filePath", "parallelExec": True}}, "wide")
    files = [f"f{number}" for number in range(70)]
    job = service.finished(service.start("wide", filePath=None, filePathList=files))["id"]
    for number in (0, 63, 64, 69):
        child = service.api().getChildProcess(OWNER, job, number)
        assert output(service, job, number).decode() == child["stdOut"] and child["childProcessNumber"] == number


def test_output_goes_with_its_job(service: Running) -> None:
    job = service.finished(service.start(service.workflow({"1": {"command": LONG}}, "gone")))["id"]
    assert service.processing is not None
    kept = service.processing.engine.context.logs.directory / job
    assert kept.is_dir()
    service.api().deleteProcessingJob(OWNER, job)
    assert not kept.exists()
    with pytest.raises(ObjectNotFound):
        output(service, job)


def test_a_file_past_its_time_leaves_what_the_record_has(service: Running) -> None:
    job = service.finished(service.start(service.workflow({"1": {"command": LONG}}, "expired")))["id"]
    assert service.processing is not None
    service.processing.engine.context.logs.remove(job)
    assert b"left out" in output(service, job) and output(service, job).startswith(b"1\n2\n")


def test_waiting_ends_in_time(service: Running) -> None:
    job = service.start(service.workflow({"1": {"command": "sleep 60"}}, "silent"))["id"]
    base = f"/processingJobsByOwner/{OWNER}/{job}/childProcesses/0"
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            service.rest().get(base)
            break
        except ObjectNotFound:
            assert time.monotonic() < deadline
    assert b"".join(service.rest().stream(f"{base}/stdOut", waitTime=0.3)) == b""
    service.api().stopProcessingJob(OWNER, job)
    assert output(service, job, follow=True) == b""
    assert service.finished({"id": job})["status"] == "aborted"
