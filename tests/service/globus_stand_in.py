"""Globus for tests: its Transfer and Auth services as far as DM asks them, moving real files between directories.

The shapes of the answers are those of the SDK's own testing fixtures. It is reached through ``responses`` inside a test
process, or over HTTP from a service process (the SDK reads ``GLOBUS_SDK_SERVICE_URL_TRANSFER`` and ``..._AUTH``).
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import responses
from globus_sdk.testing import get_response_set
from requests import ConnectionError, PreparedRequest

from tests.service.globus_groups_stand_in import GroupsStandIn

SOURCE = str(uuid.UUID(int=1))
DESTINATION = str(uuid.UUID(int=2))
CLIENT = str(uuid.UUID(int=3))
_TASK = get_response_set("transfer.task_list").lookup("default").json["DATA"][0]
_SUBMITTED = get_response_set("transfer.submit_transfer").lookup("default").json
_CANCELED = get_response_set("transfer.cancel_task").lookup("default").json
_TOKENS = get_response_set("auth.oauth2_client_credentials_tokens").lookup("default").json

Answer = tuple[int, dict[str, str], Any]


@dataclass
class Task:
    """A task as the stand-in keeps it.

    :param document: what was submitted. :param state: fields of the task document that a test sets.
    """

    id: str
    document: dict[str, Any]
    state: dict[str, Any] = field(default_factory=lambda: {"status": "ACTIVE", "nice_status": "OK"})
    arrived: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


class GlobusStandIn:
    """See the module.

    :param collections: id -> the directory of this machine that it shows.
    """

    def __init__(self, collections: dict[str, Path]) -> None:
        self.collections = collections
        self.tasks: dict[str, Task] = {}
        self.submissions: dict[str, str] = {}
        self.asked: list[str] = []  # "METHOD path" of every request
        self.copied: list[str] = []  # source path of every file that was moved
        self.token = "token 1"
        self.hold = False  # leave new tasks active until finish() is called
        self.refused: dict[str, str] = {}  # source path -> code, for the next tasks
        self.replies: list[tuple[str, Answer]] = []  # (regular expression on "METHOD path", answer), each used once
        self.groups = GroupsStandIn(CLIENT)
        self.lost: list[str] = []  # regular expressions like those: done, but the reply never arrives
        self._lock = threading.RLock()

    # --- what tests do ------------------------------------------------------------------------------------------
    def only_task(self) -> Task:
        (task,) = self.tasks.values()
        return task

    def count(self, pattern: str) -> int:
        return sum(bool(re.fullmatch(pattern, line)) for line in self.asked)

    def finish(self, task: Task) -> None:
        """Move the files of a task, and end it."""
        with self._lock:
            for item in task.document["DATA"]:
                code = self.refused.get(item["source_path"])
                source = self._place(task.document["source_endpoint"], item["source_path"])
                if code is None and not source.is_file():
                    code = "FILE_NOT_FOUND"
                pair = {"source_path": item["source_path"], "destination_path": item["destination_path"]}
                if code is not None:
                    task.skipped.append(
                        {**pair, "DATA_TYPE": "skipped_error", "error_code": code, "error_details": code}
                    )
                    continue
                target = self._place(task.document["destination_endpoint"], item["destination_path"])
                shutil.copyfile(source, target)
                self.copied.append(item["source_path"])
                task.arrived.append({**pair, "DATA_TYPE": "successful_transfer"})
            task.state = {
                "status": "SUCCEEDED",
                "files_transferred": len(task.arrived),
                "subtasks_skipped_errors": len(task.skipped),
            }

    def fail(self, task: Task, code: str, description: str, *, arrived: int = 0, details: str = "") -> None:
        """End a task as failed, after some of its files were moved."""
        with self._lock:
            document = task.document
            task.document = {**document, "DATA": document["DATA"][:arrived]}
            self.finish(task)
            task.document = document
            task.events.insert(0, event(code, description, details))
            task.state = {"status": "FAILED", "fatal_error": {"code": code, "description": description}}

    def _place(self, collection: str, path: str) -> Path:
        return self.collections[collection] / path.lstrip("/")

    # --- answers ------------------------------------------------------------------------------------------------
    def answer(self, method: str, url: str, authorization: str, body: bytes | str | None) -> Answer:
        parts = urlsplit(url)
        line = f"{method} {parts.path}"
        with self._lock:
            self.asked.append(line)
            for number, (pattern, reply) in enumerate(self.replies):
                if re.fullmatch(pattern, line):
                    del self.replies[number]
                    return reply
            if parts.path == "/v2/oauth2/token":
                return 200, {}, {**_TOKENS, "access_token": self.token}
            if authorization != f"Bearer {self.token}":
                return error(401, "AuthenticationFailed", "Token is not valid")
            text = body.decode() if isinstance(body, bytes) else body
            query, document = parse_qs(parts.query), json.loads(text) if text else {}
            answered = self.groups.answer(line, query, document)
            return answered if answered is not None else self._transfer(line, query, document)

    def _transfer(self, line: str, query: dict[str, list[str]], body: dict[str, Any]) -> Answer:
        if line == "GET /v0.10/submission_id":
            return 200, {}, {"value": str(uuid.uuid4())}
        if line == "POST /v0.10/transfer":
            return self._submit(body)
        match = re.fullmatch(r"(?:GET|POST) /v0\.10/task/([0-9a-f-]+)(?:/(\w+))?", line)
        task = self.tasks.get(match[1]) if match else None
        if match is None or task is None:
            return error(404, "TaskNotFound", "No such task")
        listing = {"marker": 0, "next_marker": None}
        match match[2]:
            case None:
                return (
                    200,
                    {},
                    {**_TASK, "DATA_TYPE": "task", "task_id": task.id, "subtasks_skipped_errors": 0, **task.state},
                )
            case "cancel":
                task.state = {"status": "FAILED", "fatal_error": {"code": "CANCELED", "description": "canceled"}}
                return 200, {}, _CANCELED
            case "event_list":
                found = [item for item in task.events if item["is_error"] or "filter" not in query]
                limit = int(query.get("limit", ["10"])[0])
                return 200, {}, {"DATA": found[:limit], "total": len(found), "limit": limit, "offset": 0}
            case "successful_transfers":
                return 200, {}, {"DATA": task.arrived, **listing}
            case "skipped_errors":
                return 200, {}, {"DATA": task.skipped, **listing}
            case "pause_info":
                rules = [{"DATA_TYPE": "pause_rule_limited", "message": "maintenance until noon"}]
                return 200, {}, {"pause_rules": rules, "source_pause_message": None, "destination_pause_message": None}
        return error(404, "NotFound", line)

    def _submit(self, body: dict[str, Any]) -> Answer:
        submission = body["submission_id"]
        if {body["source_endpoint"], body["destination_endpoint"]} - set(self.collections):
            return error(404, "EndpointNotFound", "No such collection")
        if submission in self.submissions:
            code, task_id = "Duplicate", self.submissions[submission]
        else:
            code, task_id = "Accepted", str(uuid.uuid4())
            self.submissions[submission] = task_id
            self.tasks[task_id] = Task(task_id, body)
            if not self.hold:
                self.finish(self.tasks[task_id])
        return 202, {}, {**_SUBMITTED, "code": code, "submission_id": submission, "task_id": task_id}


def event(code: str, description: str, details: str = "") -> dict[str, Any]:
    return {"DATA_TYPE": "event", "code": code, "is_error": True, "description": description, "details": details}


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    return status, headers or {}, {"code": code, "message": message, "request_id": "r", "resource": "/"}


@contextmanager
def inside(stand_in: GlobusStandIn) -> Iterator[responses.RequestsMock]:
    """Answer the requests of this process."""

    def callback(request: PreparedRequest) -> tuple[int, dict[str, str], str]:
        authorization = str(request.headers.get("Authorization") or "")
        status, headers, body = stand_in.answer(str(request.method), str(request.url), authorization, request.body)
        line = f"{request.method} {urlsplit(str(request.url)).path}"
        if any(re.fullmatch(pattern, line) for pattern in stand_in.lost):
            raise ConnectionError("reset by peer")
        return status, headers, json.dumps(body)

    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        for service in ("transfer.api.globus.org", "auth.globus.org", "groups.api.globus.org"):
            for method in ("GET", "POST", "DELETE"):
                where = re.compile(rf"https://{re.escape(service)}/.*")
                mock.add_callback(method, where, callback, content_type="application/json")
        yield mock


@contextmanager
def over_http(stand_in: GlobusStandIn) -> Iterator[dict[str, str]]:
    """Answer over HTTP; yields the environment variables that lead the SDK here."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            authorization = str(self.headers.get("Authorization") or "")
            status, headers, found = stand_in.answer(str(self.command), self.path, authorization, body)
            data = json.dumps(found).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_DELETE = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        yield {
            "GLOBUS_SDK_SERVICE_URL_TRANSFER": url,
            "GLOBUS_SDK_SERVICE_URL_AUTH": url,
            "GLOBUS_SDK_SERVICE_URL_GROUPS": url,
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
