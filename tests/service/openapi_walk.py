"""Every operation of a service's OpenAPI document, tried with what the document allows and with what it does not.

schemathesis makes the requests and judges the replies; examples are the same in every run.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import Failure, FailureGroup

from dm.common.client import RestClient

load_all_checks()
ANSWERS = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
REFUSES = CHECKS.get_one("negative_data_rejection")


@dataclass
class Walk:
    """A walk over one service.

    :param client: of somebody who may do most. :param examples: requests of each kind for each operation.
    :param sparse: every other operation is only tried with what its document allows, the rest with what it does not.
    :param leave_out: operations (``POST /dm/logout``) that would end the walk.
    """

    client: RestClient
    ca_file: Path
    examples: int
    leave_out: Iterable[str] = ()
    sparse: bool = False
    found: list[str] = field(default_factory=list)
    asked: int = 0
    seen: dict[int, int] = field(default_factory=dict)

    def run(self) -> list[str]:
        """Try every operation and return what was wrong, in words."""
        self.client.login()
        document = self.client.get("/openapi")
        secured = {
            (method, path)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if operation.pop("security")  # strangers are tried here, not by leaving a cookie out that we send
        }
        schema = schemathesis.openapi.from_dict(document)
        schema.validate()
        base = self.client.url.removesuffix("/dm")
        with requests.Session() as session:
            session.trust_env = False
            for number, result in enumerate(schema.get_all_operations()):
                operation = result.ok()
                name = f"{operation.method.upper()} {operation.path}"
                if name in self.leave_out:
                    continue
                needs = (operation.method.lower(), operation.path) in secured
                described = document["paths"][operation.path][operation.method.lower()]
                modes = MODES if _can_be_wrong(described) else MODES[:1]
                for mode in (modes[number % len(modes)],) if self.sparse else modes:
                    if problem := self._try(operation, mode, base, session, needs):
                        self.found.append(f"{name} ({mode.value}): {problem}")
        return self.found

    def _try(self, operation: Any, mode: GenerationMode, base: str, session: requests.Session, needs: bool) -> str:
        positive = mode is GenerationMode.POSITIVE
        known = {"Cookie": f"SESSIONID={self.client.cookie}"}
        tried: list[Any] = []

        @seed(5)
        @settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            if positive and not tried:
                tried.append(case)
                self._undeclared(case, base, session, known)
                if needs:
                    self._strangers(case, base, session)
            response = self._call(case, base, session, known)
            assert not (needs and response.status_code == 401), f"the session has ended: {response.text[:200]}"
            case.validate_response(response, checks=ANSWERS if positive else [*ANSWERS, REFUSES], headers=known)

        try:
            run()
        except FailureGroup as group:
            return "; ".join(_said(one) for one in group.exceptions)
        except (Failure, AssertionError) as error:
            return _said(error)
        except Unsatisfiable:
            return ""  # an operation without arguments: there is nothing that could be wrong
        return ""

    def _call(self, case: Any, base: str, session: requests.Session, headers: dict[str, str], **more: Any) -> Any:
        response = case.call(
            base_url=base, session=session, headers=dict(headers), timeout=30, verify=str(self.ca_file), **more
        )
        self.asked += 1
        self.seen[response.status_code] = self.seen.get(response.status_code, 0) + 1
        return response

    def _strangers(self, case: Any, base: str, session: requests.Session) -> None:
        token = f"dmt_{uuid.uuid4().hex}_{'A' * 43}"  # one that was wrong before is not looked at any more
        for headers in ({}, {"Cookie": f"SESSIONID={'A' * 43}"}, {"Authorization": f"Bearer {token}"}):
            status = self._call(case, base, session, headers).status_code
            assert status == 401, f"a stranger with {sorted(headers)} is answered {status}"

    def _undeclared(self, case: Any, base: str, session: requests.Session, known: dict[str, str]) -> None:
        response = self._call(case, base, session, known, params={"undeclaredArgument": "1"})
        assert 400 <= response.status_code < 500, f"an undeclared argument is accepted: {response.status_code}"
        if case.method.upper() == "GET":
            word = self.client.address(case.formatted_path.removeprefix("/dm"))
            headers = known | {"Content-Type": "application/json"}
            answer = session.request("GET", word, data=b'{"undeclaredArgument": 1}', headers=headers, timeout=30,
                                     verify=str(self.ca_file))  # fmt: skip
            assert 400 <= answer.status_code < 500, f"an undeclared body is accepted: {answer.status_code}"


def _can_be_wrong(operation: dict[str, Any]) -> bool:
    """Whether there is anything to violate: any text is right in a path, and looking for a wrong one takes a second."""
    free = [one for one in operation["parameters"] if one["in"] == "path" and one["schema"].get("type") == "string"]
    return "requestBody" in operation or len(free) < len(operation["parameters"])


def _said(failure: BaseException) -> str:
    return re.sub(r"\s+", " ", str(failure))[:600]
