"""``dm-sync-users`` and ``dm-list-user-syncs`` on the user directory that the suite of the tests begins with."""

from __future__ import annotations

import json
import subprocess

from dm.common.errors import ProcessingError
from tests.live import PEOPLE, PROGRAMS, Suite


def test_sync_users(suite: Suite) -> None:
    file = suite.installed.layout.facility / "users.csv"

    def sync(*words: str, status: int = 0) -> tuple[dict[str, object], str]:
        """Run it as administrator and return the record and what was said beside it."""
        environment = suite.environment | {"DM_LOGIN_FILE": str(suite.installed.layout.login_file("dmadmin"))}
        done = subprocess.run(
            [str(PROGRAMS / "dm-sync-users"), *words, "--display-format", "json", "--all"],
            env=environment, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return (json.loads(done.stdout) if done.stdout else {}), done.stderr

    try:
        first, _ = sync()
        assert (first["status"], first["seen"], first["adapter"]) == ("done", 5, "sample")
        file.write_text(PEOPLE.replace("First960003", "Renamed") + "P960009,9600x9,A,B,,\n")
        planned, said = sync("--dry-run", "--adapter", "sample")
        assert planned["dryRun"] and planned["updated"] == 1
        assert "updated d960003: first_name" in said and "skipped user 'P960009'" in said and "no number" in said
        done, _ = sync()
        assert done["updated"] == 1
        file.write_text(PEOPLE.partition("\n")[0] + "\n")
        _, refused = sync(status=ProcessingError.code)
        assert "came back empty" in refused
    finally:
        file.write_text(PEOPLE)
    assert "updated=1" in str(sync()[0]).replace("'updated': ", "updated=")
    listed = suite.dm("dm-list-user-syncs", "--limit", "2", "--display-format", "json", "--all", user="dmadmin")
    runs = [json.loads(line) for line in listed.splitlines()]
    assert [run["status"] for run in runs] == ["refused", "done"] and "addedUsers" not in runs[0]
    one = suite.dm("dm-list-user-syncs", "--id", runs[1]["id"], "--display-format", "json", "--all", user="dmadmin")
    assert json.loads(one)["updatedUsers"] == [{"username": "d960003", "keys": ["first_name"]}]
    assert "may not do this" in suite.dm("dm-sync-users", status=5)
    person = json.loads(suite.dm("dm-get-user", "--username", "d960003", "--display-format", "json", "--all"))
    assert (person["isLocalUser"], person["firstName"]) == (False, "First960003")
