"""Globus tasks over kills of the service that submitted them; a stand-in for Globus moves the files over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import Bench, fill
from tests.faults.invariant import Task, check
from tests.service.acquisition_fixtures import until
from tests.service.globus_stand_in import CLIENT, DESTINATION, SOURCE, GlobusStandIn, over_http

SUBMIT = r"POST /v0\.10/transfer"


@pytest.fixture
def globus(bench: Bench, tmp_path: Path) -> Iterator[tuple[GlobusStandIn, dict[str, str]]]:
    """The bench's acquisition service with Globus as its only transport."""
    secret = bench.directory / "globus.secret"
    secret.write_text("secret\n")
    secret.chmod(0o600)
    stand_in = GlobusStandIn({SOURCE: Path("/"), DESTINATION: Path("/")})
    stand_in.hold = True
    table: dict[str, Any] = {
        "client_id": CLIENT, "client_secret_file": secret, "source_collection": SOURCE,
        "destination_collection": DESTINATION, "poll_seconds": 0.1, "state_directory": tmp_path / "state",
    }  # fmt: skip
    with over_http(stand_in) as variables:
        bench.acquisition.stop()
        bench.configure(transports={"globus": table})
        bench.acquisition.start(environment=variables)
        yield stand_in, variables
        bench.reconfigure()


def test_a_service_killed_in_mid_task_takes_up_the_same_task(
    bench: Bench, globus: tuple[GlobusStandIn, dict[str, str]], source: Path, tmp_path: Path
) -> None:
    """F-01: kill -9 while Globus moves; afterwards what the task waits for is told, and it ends well."""
    stand_in, variables = globus
    fill(source, 30)
    experiment = bench.experiment()
    upload = str(bench.begin("upload", experiment, source)["id"])
    until(lambda: stand_in.count(r"GET /v0\.10/task/[^/]+") >= 2)
    seen = stand_in.count(r"GET /v0\.10/task/[^/]+")
    bench.acquisition.kill()
    bench.acquisition.start(environment=variables)
    until(lambda: stand_in.count(r"GET /v0\.10/task/[^/]+") > seen)
    task = stand_in.only_task()
    task.state = {"status": "ACTIVE", "is_paused": True}
    until(lambda: "is paused: maintenance until noon" in bench.info("upload", upload)["errorMessage"])
    stand_in.finish(task)
    record = bench.finish("upload", upload)
    assert (record["status"], record["nCompletedFiles"]) == ("done", 30)
    check(bench, experiment, source, task=Task("upload", upload))
    assert stand_in.count(SUBMIT) == 1
    assert len(stand_in.copied) == 30
    assert not list((tmp_path / "state").glob("*.json"))


def test_an_aborted_upload_cancels_its_task(
    bench: Bench, globus: tuple[GlobusStandIn, dict[str, str]], source: Path, tmp_path: Path
) -> None:
    stand_in, _variables = globus
    experiment = bench.experiment()
    fill(source, 3)
    upload = str(bench.begin("upload", experiment, source)["id"])
    until(lambda: stand_in.tasks)
    bench.rest().post(f"/uploads/{upload}/stop")
    assert bench.finish("upload", upload)["status"] == "aborted"
    assert {task.state["status"] for task in stand_in.tasks.values()} == {"FAILED"}
    assert stand_in.count(r"POST .*/cancel") == len(stand_in.tasks)
    assert not list((tmp_path / "state").glob("*.json"))
    assert not stand_in.copied
