"""A station whose services log in at the site with an API token instead of a password."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dm.deploy import components
from tests import live
from tests.live import STATION, Suite

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def station(run_directory: Path) -> Iterator[Suite]:
    """A suite of its own, its station services started anew with a token for their own account."""
    made = live.start(run_directory / "station-token")
    account = made.installed.plan.service_account
    file = made.installed.layout.login_file(account)
    new = Path(f"{file}.new")
    made.dm(
        "dm-add-token", "--name=services", "--scopes=storage,catalog,acquisition,processing", "--station", STATION,
        "--username", account, "--login-file", new,
    )  # fmt: skip
    os.chown(new, file.stat().st_uid, file.stat().st_gid)
    new.replace(file)
    services = components.chosen("station", made.installed.layout.settings)
    components.stop(services)
    components.start(services)
    yield made
    live.stop(made)


def test_files_are_stored_cataloged_and_processed(station: Suite, run_directory: Path) -> None:
    station.dm("dm-add-experiment", "--experiment=e", "--type=TEST")
    source = run_directory / "station-token-source"
    source.mkdir()
    (source / "a.dat").write_bytes(b"1" * 1000)
    spec = run_directory / "station-token.json"
    spec.write_text('{"name": "w", "stages": {"1": {"command": "echo $filePath"}}}')
    station.dm("dm-upsert-workflow", "--json-spec", spec)
    words = ["workflowName:w", f"workflowOwner:{station.manager[0]}"]
    done = station.dm("dm-upload", "--experiment=e", f"--data-directory={source}", "--wait", "-a", *words)
    assert " status=done " in done and " nCompletedFiles=1 " in done
    assert "experimentFilePath=a.dat" in station.dm("dm-list-experiment-files", "--experiment=e")
    job = station.dm("dm-list-processing-jobs").split()[0].removeprefix("id=")
    assert " status=done " in station.dm("dm-wait-processing-job", "--id", job)
    events = station.dm("dm-list-audit-events", "--event=grant.added")
    assert f" actor={station.manager[0]} " in events
