"""The Globus transport: the real SDK, with its own fixtures and a stand-in that moves real files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import responses
import xxhash
from globus_sdk.testing import get_last_request, load_response

from dm.common.errors import (
    CommunicationError,
    ConfigurationError,
    DmException,
    InvalidArgument,
    ServiceUnavailable,
    TransferError,
)
from dm.station.acquisition.transports.base import FileOutcome, Source, TransferBatch, TransferFile
from dm.station.acquisition.transports.choice import Choice
from dm.station.acquisition.transports.globus import Globus
from dm.station.acquisition.transports.globus_record import Record, Records
from dm.station.acquisition.transports.globus_session import GlobusSettings
from dm.station.acquisition.transports.local import Local, LocalSettings
from tests.service.globus_stand_in import CLIENT, DESTINATION, SOURCE, GlobusStandIn, error, event, inside

SUBMIT = r"POST /v0\.10/transfer"
NAMES = [
    b"plain.h5", b" lead", b"trail ", b"%41", b"#", b"?", b"'q\"", b"$(id)", b";", b"-rf", b"*", b"[x]", b"back\\slash",
    b"a:b", "é".encode(), "e\u0301".encode(), "日本😀".encode(), b"n" * 255,
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("data", "staging", "secrets"):
        (tmp_path / name).mkdir()
    (tmp_path / "secrets" / "client").write_text("secret\n")
    (tmp_path / "secrets" / "client").chmod(0o600)
    return tmp_path


@pytest.fixture
def service(root: Path) -> Iterator[GlobusStandIn]:
    stand_in = GlobusStandIn({SOURCE: root, DESTINATION: root})
    with inside(stand_in):
        yield stand_in


@pytest.fixture
def make(root: Path) -> Iterator[Callable[..., Globus]]:
    made: list[Globus] = []

    def build(**more: Any) -> Globus:
        made.append(Globus(GlobusSettings.model_validate(values(root, **more))))
        return made[-1]

    yield build
    for transport in made:
        transport.close()


def values(root: Path, **more: Any) -> dict[str, Any]:
    return {
        "client_id": CLIENT,
        "client_secret_file": root / "secrets" / "client",
        "source_collection": SOURCE,
        "source_paths": {str(root / "data"): "/data"},
        "destination_collection": DESTINATION,
        "destination_paths": {str(root): "/"},
        "poll_seconds": 0.05,
        "state_directory": root / "state",
        **more,
    }


def batch(root: Path, *paths: bytes, **more: Any) -> TransferBatch:
    files = [TransferFile(path, 0, 0, f"f{number:06d}") for number, path in enumerate(paths)]
    source = Source(str(root / "data"), os.fsencode(root / "data"))
    return TransferBatch("b1", source, files, os.fsencode(root / "staging"), "storage.test", **more)


def write(root: Path, *paths: bytes) -> None:
    for path in paths:
        target = os.path.join(os.fsencode(root / "data"), path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as stream:
            stream.write(b"content of " + path)


def assert_moved(root: Path, outcomes: list[FileOutcome], paths: list[bytes]) -> None:
    assert len(outcomes) == len(paths)
    for outcome in outcomes:
        content = b"content of " + paths[int(outcome.staged_name[1:])]
        assert outcome.ok, outcome.error
        assert (root / "staging" / outcome.staged_name).read_bytes() == content
        assert outcome.digests == {"xxh3_128": xxhash.xxh3_128_hexdigest(content)}
        assert outcome.md5 == hashlib.md5(content).hexdigest()


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run something beside the test; returns what waits for its result."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(function())
        except DmException as problem:
            found.append(problem)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(60)
        assert not thread.is_alive()
        return found[0]

    return result


def cut_short(service: GlobusStandIn, transport: Globus, stopped: TransferBatch) -> None:
    """Stop a batch as soon as Globus has a task for it, as the service does when it ends."""
    result = in_thread(lambda: transport.move(stopped))
    until(lambda: service.tasks)
    stopped.stop.set()
    result()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_moves_every_name_under_opaque_names(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    paths = NAMES + [b"deep/er/" + name for name in NAMES]
    write(root, *paths)
    os.chmod(root / "data" / "plain.h5", 0o640)
    outcomes = make().move(batch(root, *paths))
    assert_moved(root, outcomes, paths)
    assert outcomes[0].mode == 0o640
    document = service.only_task().document
    assert document["DATA"][0]["destination_path"] == "/staging/f000000"
    assert (document["verify_checksum"], document["skip_source_errors"]) == (True, True)
    assert document["label"] == "DM b1"
    assert "deadline" not in document
    # a success needs no listing of its files
    assert service.count(r"GET .*(successful_transfers|skipped_errors|event_list)") == 0


def test_settings_reach_the_task(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"a")
    make(label="25-ID-C", verify_checksum=False, encrypt_data=True, deadline_hours=2).move(batch(root, b"a"))
    document = service.only_task().document
    assert (document["label"], document["verify_checksum"], document["encrypt_data"]) == ("25-ID-C b1", False, True)
    assert document["deadline"].endswith("+00:00")


def test_with_the_fixtures_of_the_sdk(make: Callable[..., Globus], root: Path) -> None:
    """The answers as the library's authors record them: tokens, submission id, accepted; refused; canceled."""
    write(root, b"a")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        load_response("auth.oauth2_client_credentials_tokens", requests_mock=mock)
        submission = load_response("transfer.get_submission_id", requests_mock=mock).metadata["submission_id"]
        task_id = load_response("transfer.submit_transfer", requests_mock=mock).metadata["task_id"]
        done = {"DATA_TYPE": "task", "task_id": task_id, "status": "SUCCEEDED", "files_transferred": 1}
        mock.add("GET", f"https://transfer.api.globus.org/v0.10/task/{task_id}", json=done)
        transport = make()
        assert transport.move(batch(root, b"a"))[0].ok
        posted = next(call.request for call in mock.calls if str(call.request.url).endswith("/v0.10/transfer"))
        assert json.loads(posted.body or "")["submission_id"] == submission
        assert posted.headers["Authorization"] == "Bearer DUMMY_TRANSFER_TOKEN_FROM_THE_INTERTUBES"
        last = get_last_request(requests_mock=mock)
        assert last is not None and str(last.url).endswith(task_id)
        transport.forget("b1")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        load_response("auth.oauth2_client_credentials_tokens", requests_mock=mock)
        load_response("transfer.get_submission_id", requests_mock=mock)
        load_response("transfer.submit_transfer", case="failure", requests_mock=mock)
        with pytest.raises(TransferError, match="A transfer requires at least one item"):
            make().move(batch(root, b"a"))
    assert not list((root / "state").iterdir())


def test_a_crash_between_submitting_and_noting_transfers_once(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    """The reply to the submission is lost; a second life submits under the same id and gets the same task."""
    write(root, b"a")
    service.lost = [SUBMIT]
    with pytest.raises(CommunicationError, match="reset by peer"):
        make().move(batch(root, b"a"))
    service.lost = []
    assert len(service.tasks) == 1
    assert make().holds("b1") and not make().holds("b2")
    record = Records(root / "state").load("b1")
    assert record is not None and record.task == "" and record.submission in service.submissions
    assert stat.S_IMODE((root / "state" / "b1.json").stat().st_mode) == 0o600
    assert_moved(root, make().move(batch(root, b"a")), [b"a"])
    assert len(service.tasks) == 1
    assert service.copied == ["/data/a"]


def test_a_restart_in_mid_task_follows_the_same_task(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    paths = [b"a", b"b", b"c"]
    write(root, *paths)
    first = batch(root, *paths)
    result = in_thread(lambda: make().move(first))
    until(lambda: service.count(r"GET /v0\.10/task/[^/]+") >= 2)
    first.stop.set()
    stopped = result()
    assert isinstance(stopped, ServiceUnavailable) and "taken up again" in str(stopped)
    assert service.count(r"POST .*/cancel") == 0
    service.finish(service.only_task())
    assert_moved(root, make().move(batch(root, *paths)), paths)
    assert service.count(SUBMIT) == 1
    assert len(service.copied) == 3


def test_a_finished_task_is_not_repeated_before_storage_has_the_files(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    write(root, b"a", b"b")
    transport = make()
    assert_moved(root, transport.move(batch(root, b"a", b"b")), [b"a", b"b"])
    (root / "data" / "b").write_bytes(b"changed")
    kept, changed = make().move(batch(root, b"a", b"b"))
    assert kept.ok and not changed.ok and "changed" in changed.error
    assert service.count(SUBMIT) == 1
    asked = len(service.asked)
    transport.forget("b1")
    transport.forget("b1")
    assert len(service.asked) == asked
    assert not list((root / "state").iterdir())


def test_one_bad_file_does_not_stop_the_others(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"good", b"secret", b"hidden", b"bad\nname", b"bad\xff", b"last")
    os.symlink("/etc/passwd", root / "data" / "link")
    service.refused = {"/data/secret": "PERMISSION_DENIED", "/data/hidden": "FILE_NOT_FOUND"}
    paths = [b"good", b"secret", b"hidden", b"bad\nname", b"bad\xff", b"link", b"gone", b"last"]
    outcomes = make().move(batch(root, *paths))
    good, secret, hidden, newline, undecodable, link, gone, last = outcomes
    assert good.ok and last.ok
    assert "PERMISSION_DENIED" in secret.error and "may" not in secret.error and not secret.transient
    assert "FILE_NOT_FOUND" in hidden.error and "source_paths" in hidden.error and not hidden.vanished
    for outcome in (newline, undecodable):
        assert "Globus cannot carry" in outcome.error and not outcome.transient
    assert "link" in link.error and not link.transient
    assert gone.vanished
    assert sorted(os.listdir(root / "staging")) == ["f000000", "f000007"]


def test_a_file_that_vanishes_during_the_task(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    service.hold = True
    write(root, b"a", b"b")
    result = in_thread(lambda: make().move(batch(root, b"a", b"b")))
    until(lambda: service.count(r"GET /v0\.10/task/[^/]+") >= 2)
    os.unlink(root / "data" / "b")
    service.finish(service.only_task())
    kept, vanished = result()
    assert kept.ok
    assert vanished.vanished


def test_a_file_that_changes_during_the_task(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    service.hold = True
    write(root, b"a")
    result = in_thread(lambda: make().move(batch(root, b"a")))
    until(lambda: service.count(r"GET /v0\.10/task/[^/]+") >= 2)
    (root / "data" / "a").write_bytes(b"content of b")
    service.finish(service.only_task())
    (outcome,) = result()
    assert not outcome.ok and outcome.transient and "changed" in outcome.error


@pytest.mark.parametrize(
    ("code", "transient"),
    [("EXPIRED", True), ("NO_SPACE_LEFT", True), ("CANCELED", False), ("PERMISSION_DENIED", False)],
)
def test_a_failed_task_keeps_what_arrived(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path, code: str, transient: bool
) -> None:
    service.hold = True
    write(root, b"a", b"b", b"c")
    result = in_thread(lambda: make().move(batch(root, b"a", b"b", b"c")))
    until(lambda: service.tasks)
    task = service.only_task()
    task.events.append(event("TIMEOUT", "timed out", "Error (transfer)\nFile: /staging/f000002\nno answer"))
    service.fail(task, code, "the reason", arrived=1)
    arrived, first, second = result()
    assert arrived.ok, arrived.error
    assert f"{code}: the reason" in first.error and first.transient is transient
    assert "TIMEOUT: Error (transfer) File: /staging/f000002 no answer" in second.error and second.transient


def test_a_task_that_an_administrator_canceled(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    service.hold = True
    write(root, b"a")
    result = in_thread(lambda: make().move(batch(root, b"a")))
    until(lambda: service.tasks)
    service.only_task().state = {
        "status": "FAILED", "canceled_by_admin": "SOURCE", "canceled_by_admin_message": "disk is full of it",
    }  # fmt: skip
    (outcome,) = result()
    assert "CANCELED: disk is full of it" in outcome.error and not outcome.transient


def test_a_success_that_does_not_list_a_file_is_none(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a", b"b")
    result = in_thread(lambda: make().move(batch(root, b"a", b"b")))
    until(lambda: service.tasks)
    task = service.only_task()
    service.finish(task)
    task.arrived = [{"source_path": "/data/a", "destination_path": None}]  # the destination may be hidden from us
    task.state = {**task.state, "files_transferred": 1}
    kept, missing = result()
    assert kept.ok
    assert "does not list it" in missing.error and missing.transient


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"status": "INACTIVE"}, "credentials have expired; log in"),
        ({"status": "ACTIVE", "is_paused": True}, "is paused: maintenance until noon"),
        (
            {"status": "ACTIVE", "nice_status": "NO_SPACE_LEFT", "nice_status_short_description": "no space left"},
            r"goes on trying: no space left \(NO_SPACE_LEFT\): Command: STOR /staging/f000000",
        ),
    ],
)
def test_what_a_task_waits_for_is_told_and_it_goes_on(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path, state: dict[str, Any], text: str
) -> None:
    service.hold = True
    write(root, b"a")
    transport = make()
    result = in_thread(lambda: transport.move(batch(root, b"a")))
    until(lambda: service.tasks)
    task = service.only_task()
    task.events.append(event("NO_SPACE_LEFT", "no space left", "Command: STOR /staging/f000000"))
    task.state = state
    with pytest.raises(ServiceUnavailable, match=text):
        raise result()
    with pytest.raises(ServiceUnavailable, match=text):
        transport.move(batch(root, b"a"))
    service.finish(task)
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])
    assert service.count(SUBMIT) == 1


def test_progress_and_no_checksums_where_they_are_not_wanted(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a")
    told: list[int] = []
    result = in_thread(lambda: make().move(batch(root, b"a", checksum=False, moved=told.append)))
    until(lambda: service.tasks)
    task = service.only_task()
    for count in (4, 4, 10):
        task.state = {"status": "ACTIVE", "bytes_transferred": count}
        seen = len(service.asked)
        until(lambda seen=seen: len(service.asked) > seen + 1)
    service.finish(task)
    (outcome,) = result()
    assert outcome.ok and outcome.md5 == "" and outcome.digests
    assert sum(told) == 10 and min(told) == 0


def test_queued_is_no_trouble(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    service.hold = True
    write(root, b"a")
    result = in_thread(lambda: make().move(batch(root, b"a")))
    until(lambda: service.tasks)
    service.only_task().state = {"status": "ACTIVE", "nice_status": "Queued"}
    seen = len(service.asked)
    until(lambda: len(service.asked) > seen + 3)
    service.finish(service.only_task())
    assert_moved(root, result(), [b"a"])


def test_an_expired_token_is_renewed(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"a")
    transport = make()
    transport.move(batch(root, b"a"))
    transport.forget("b1")
    service.token = "token 2"
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])
    assert service.count(r"POST /v2/oauth2/token") == 2


def test_refused_credentials_are_told_and_read_again(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    write(root, b"a")
    (root / "secrets" / "refresh").write_text("old refresh token\n")
    transport = make(client_secret_file=None, refresh_token_file=root / "secrets" / "refresh")
    refused = (400, {}, {"error": "invalid_grant"})
    service.replies.append((r"POST /v2/oauth2/token", refused))
    with pytest.raises(ConfigurationError, match=f"refuses the credentials of client {CLIENT}") as caught:
        transport.move(batch(root, b"a"))
    assert "refresh token" not in str(caught.value).replace("refresh token file", "")
    (root / "secrets" / "refresh").write_text("new refresh token\n")
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])


def test_a_missing_consent_is_told(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"a")
    body = {"code": "ConsentRequired", "message": "Missing required data_access consent", "required_scopes": ["x"]}
    service.replies.append((SUBMIT, (403, {}, body)))
    transport = make(data_access=[SOURCE])
    with pytest.raises(ConfigurationError, match="needs a consent: ConsentRequired"):
        transport.move(batch(root, b"a"))
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])


@pytest.mark.parametrize(
    ("where", "answer", "kind", "text"),
    [
        (
            r"GET /v0\.10/submission_id",
            error(429, "Limit", "many", {"Retry-After": "1"}),
            ServiceUnavailable,
            "429",
        ),
        (SUBMIT, error(429, "RateLimit", "too many"), ServiceUnavailable, "slow down"),
        (SUBMIT, error(503, "ServiceUnavailable", "maintenance"), ServiceUnavailable, "out of order"),
        (SUBMIT, error(400, "BadRequest", "path is wrong"), TransferError, "path is wrong"),
        (SUBMIT, error(403, "PermissionDenied", "not yours"), ConfigurationError, "not yours"),
        (SUBMIT, error(404, "EndpointNotFound", "no such collection"), TransferError, "no such collection"),
        (r"GET /v0\.10/task/[^/]+", error(502, "Bad", "gateway"), ServiceUnavailable, "502"),
    ],
)
def test_refusals_and_limits(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path, where: str, answer: Any, kind: type, text: str
) -> None:
    """One refusal may be repaired at once; two in a row are told, and the same batch succeeds afterwards, once."""
    write(root, b"a")
    service.replies += [(where, answer), (where, answer)]
    transport = make()
    with pytest.raises(kind, match=text):
        transport.move(batch(root, b"a"))
    service.replies.clear()
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])
    assert len(service.tasks) == 1


def test_no_network(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"a")
    transport = make()
    # the inner one knows no address at all
    with responses.RequestsMock(), pytest.raises(CommunicationError, match="Globus cannot be reached"):
        transport.move(batch(root, b"a"))
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])


def test_another_transport_stands_in_only_for_what_was_not_submitted(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a")
    globus, local = make(), Local(LocalSettings())
    choice = Choice([globus, local])
    try:
        with responses.RequestsMock():  # Globus cannot be reached
            (outcome,) = choice.move(batch(root, b"a"))
        assert outcome.ok and outcome.transport == "local"
        # it rests now, but a batch of which a task may be moving files is its own
        cut_short(service, globus, batch(root, b"a"))
        with responses.RequestsMock(), pytest.raises(CommunicationError, match="Globus cannot be reached"):
            choice.move(batch(root, b"a"))
        service.finish(service.only_task())
        (outcome,) = choice.move(batch(root, b"a"))
        assert outcome.ok and outcome.transport == "globus"
        choice.forget("b1")
        assert not globus.holds("b1")
    finally:
        local.close()


def test_a_task_globus_forgot_is_submitted_anew(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a")
    transport = make()
    cut_short(service, transport, batch(root, b"a"))
    service.tasks.clear()
    service.submissions.clear()
    with pytest.raises(TransferError, match="submitted anew"):
        transport.move(batch(root, b"a"))
    service.hold = False
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])


def test_what_nobody_wants_any_more_is_canceled(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a")
    transport = make()
    unwanted = threading.Event()
    result = in_thread(lambda: transport.move(batch(root, b"a", aborted=unwanted.is_set)))
    until(lambda: service.tasks)
    unwanted.set()
    assert "canceled" in str(result())
    assert service.count(r"POST .*/cancel") == 1
    assert not list((root / "state").iterdir())


def test_forgetting_cancels_even_a_task_whose_id_was_never_noted(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a")
    transport = make()
    cut_short(service, transport, batch(root, b"a"))
    records = Records(root / "state")
    record = records.load("b1")
    assert isinstance(record, Record)
    record.task = ""
    records.save(record)
    make().forget("b1")
    assert service.only_task().state["status"] == "FAILED"
    assert len(service.tasks) == 1
    assert not list((root / "state").iterdir())


def test_what_could_not_be_canceled_is_canceled_later(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    service.hold = True
    write(root, b"a")
    transport = make()
    cut_short(service, transport, batch(root, b"a"))
    unwanted = service.only_task()
    with responses.RequestsMock(), pytest.raises(CommunicationError):
        transport.forget("b1")
    assert unwanted.state["status"] == "ACTIVE"
    service.hold = False
    other = dataclasses.replace(batch(root, b"a"), batch_id="b2")
    assert_moved(root, make().move(other), [b"a"])  # another life of the service
    assert unwanted.state["status"] == "FAILED"
    assert os.listdir(root / "state") == ["b2.json"]


def test_giving_up_what_is_over_already(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    service.hold = True
    write(root, b"a")
    transport = make()
    cut_short(service, transport, batch(root, b"a"))
    service.replies.append((r"POST .*/cancel", error(409, "TaskComplete", "The task is complete")))
    transport.forget("b1")
    assert not list((root / "state").iterdir())


def test_access_that_is_lost_after_a_lost_reply_makes_no_second_task(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    write(root, b"a")
    service.lost = [SUBMIT]
    transport = make()
    with pytest.raises(CommunicationError):
        transport.move(batch(root, b"a"))
    service.lost = []
    service.replies += [(SUBMIT, error(401, "AuthenticationFailed", "expired"))] * 2
    with pytest.raises(ConfigurationError):
        transport.move(batch(root, b"a"))
    assert_moved(root, transport.move(batch(root, b"a")), [b"a"])
    assert len(service.tasks) == 1


def test_no_more_tasks_at_once_than_set(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    service.hold = True
    write(root, b"a")
    transport = make(tasks=1)
    first = in_thread(lambda: transport.move(batch(root, b"a")))
    until(lambda: service.tasks)
    waiting = batch(root, b"a")
    second = in_thread(lambda: transport.move(waiting))
    waiting.stop.set()
    assert isinstance(second(), ServiceUnavailable)
    service.finish(service.only_task())
    assert_moved(root, first(), [b"a"])


def test_directories_the_collections_do_not_show(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    (root / "elsewhere").mkdir()
    transport = make()
    transport.check(batch(root).source)
    with pytest.raises(InvalidArgument, match="source_paths"):
        transport.check(Source("x", os.fsencode(root / "elsewhere")))
    assert transport.serves(batch(root).source, "storage.test")
    for place in (root / "elsewhere", root / "data\nx"):
        assert not transport.serves(Source("x", os.fsencode(place)), "storage.test")
    write(root, b"a")
    with pytest.raises(ConfigurationError, match="destination_paths"):
        make(destination_paths={"/none": "/"}).move(batch(root, b"a"))
    (outcome,) = make(source_paths={str(root / "data" / "deep"): "/d"}).move(batch(root, b"a"))
    assert "not shown" in outcome.error
    with pytest.raises(InvalidArgument, match="this machine"):
        transport.move(
            TransferBatch("b1", Source("@h:/d", b"/d", "h", "ssh"), [], os.fsencode(root / "staging"), "storage.test")
        )


def test_the_longest_directory_that_fits_counts(
    service: GlobusStandIn, make: Callable[..., Globus], root: Path
) -> None:
    write(root, b"a", b"deep/b")
    shown = {str(root / "data"): "/data", str(root / "data" / "deep"): "/data/deep/../deep", "/": "/nowhere"}
    assert_moved(root, make(source_paths=shown).move(batch(root, b"a", b"deep/b")), [b"a", b"deep/b"])
    assert service.copied == ["/data/a", "/data/deep/../deep/b"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"client_secret_file": None},
        {"source_paths": {}},
        {"source_paths": {"data": "/data"}},
        {"destination_paths": {"/d": "x\n"}},
        {"source_collection": "not an id"},
        {"label": " x"},
    ],
)
def test_settings_that_cannot_be(root: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        GlobusSettings.model_validate(values(root, **wrong))


def test_a_credential_file_that_cannot_be_read(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"a")
    with pytest.raises(ConfigurationError, match=r"secrets/none cannot be read: No such file"):
        make(client_secret_file=root / "secrets" / "none").move(batch(root, b"a"))
    (root / "secrets" / "client").write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        make().move(batch(root, b"a"))


def test_a_spoiled_record_is_no_record(service: GlobusStandIn, make: Callable[..., Globus], root: Path) -> None:
    write(root, b"a")
    (root / "state").mkdir()
    (root / "state" / "b1.json").write_text("{")
    assert_moved(root, make().move(batch(root, b"a")), [b"a"])
    os.utime(root / "state" / "b1.json", (0, 0))
    Records(root / "state").save(Record("b2", "/", "s", {}))
    assert os.listdir(root / "state") == ["b2.json"]
