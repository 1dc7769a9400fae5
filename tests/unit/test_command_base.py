"""The command base, in process: arguments, output and exit statuses."""

import json

import click
import pytest
from click.testing import CliRunner

from dm.common import command as base
from dm.common.command import command, confirm, key_values, option, progress
from dm.common.errors import InvalidRequest, ObjectNotFound
from dm.common.records import DmObject


class Job(DmObject):
    DEFAULT_KEY_LIST = ("id", "owner", "status", "runTime")


JOBS = [
    Job({"id": 1, "status": "done", "runTime": 1.5, "note": "a\nb"}),
    Job({"id": 2, "owner": "d123456", "startTime": 3.25}),
]


@command("dm-list-things", keyvalue_arguments=True)
@option("--owner", help="Owner of the things.")
@option("--limit", type=int, default=10, help="Most things to list (count).")
def list_things(owner, limit, words):
    """List the things."""
    if owner == "nobody":
        raise ObjectNotFound("User nobody\ndoes not exist.")
    if owner == "words":
        return words
    if owner == "defect":
        raise ZeroDivisionError("division by zero")
    if owner == "disk":
        raise FileNotFoundError(2, "No such file or directory", "/x")
    if owner == "code":
        raise InvalidRequest("odd", code=77)
    return JOBS[:limit]


def run(*arguments, program=list_things, **options):
    return CliRunner().invoke(program, arguments, **options)


def test_one_record_per_line_with_a_trailing_blank():
    done = run()
    assert done.exit_code == 0
    assert done.stdout == "id=1 status=done runTime=1.50 \nid=2 owner=d123456 \n"
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--limit=1"], ["--limit", "1"]])
def test_both_spellings_of_options(arguments):
    assert run(*arguments).stdout.count("\n") == 1


def test_keys():
    assert run("--display-keys", "id,note").stdout == "id=1 note=a\\nb \nid=2 \n"
    assert run("--display-keys=ALL").stdout == run("-a").stdout == run("--all").stdout
    assert run("-a").stdout.splitlines()[1] == "id=2 owner=d123456 startTime=3.250000 "


def test_formats():
    assert run("--display-format", "json", "--limit=1", "-a").stdout == json.dumps(dict(JOBS[0])) + "\n"
    assert run("--display-format=dict", "-a", "--limit=1").stdout == f"{dict(JOBS[0])}\n"
    assert run("-pp", "-a", "--limit=1").stdout == run("--display-format", "PPRINT", "-a", "--limit=1").stdout
    assert "'status': 'done'" in run("-pp").stdout
    assert run("--display-format", "xml").exit_code == 2


def test_words():
    done = run("--owner=words", "filePath:/tmp/a:b", "n:1", "empty:", "-a")
    assert done.stdout == "filePath=/tmp/a:b n=1 empty= \n"
    assert key_values(["a:1", "a:1"]) == {"a": "1"}
    for wrong in ("word", ":value", "a:1 a:2"):
        done = run("--owner=words", *wrong.split())
        assert done.exit_code == 2
        assert "rror: " in done.stderr


def test_errors_are_one_line_and_their_code_the_status():
    done = run("--owner", "nobody")
    assert (done.exit_code, done.stdout) == (14, "")
    assert done.stderr == "Error: User nobody\\ndoes not exist.\n"
    assert run("--owner=code").exit_code == 77
    done = run("--owner=disk")
    assert (done.exit_code, done.stderr) == (1, "Error: /x: No such file or directory.\n")
    done = run("--owner=defect")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: ZeroDivisionError: division by zero (a defect; set DM_DEBUG=1")
    assert "Traceback" in run("--owner=defect", env={"DM_DEBUG": "1"}).stderr


def test_wrong_arguments():
    done = run("--ownr=x")
    assert done.exit_code == 2
    assert "--owner" in done.stderr, "the nearest option is named"
    assert run("--limit=many").exit_code == 2


def test_help_and_version():
    done = run("--help")
    assert done.exit_code == 0
    for text in ("dm-list-things", "List the things.", "--owner", "(count)", "KEY:VALUE", "--display-keys"):
        assert text in done.stdout
    assert run("-h").stdout == done.stdout
    assert run("--version").stdout.startswith("dm-list-things 0.")


def test_an_api_that_cannot_be_imported_is_an_error_not_a_traceback():
    @command("dm-broken", api="dm.no.such:Api")
    def broken(api):
        """Fail."""

    done = run(program=broken)
    assert done.exit_code == 4
    assert "dm.no.such" in done.stderr
    assert run("--help", program=broken).exit_code == 0


def test_api_objects_come_first_and_keep_their_session(monkeypatch, tmp_path):
    login = tmp_path / "login"
    login.write_text("d123456|secret\n")
    login.chmod(0o600)
    monkeypatch.setenv("DM_LOGIN_FILE", str(login))
    monkeypatch.setenv("DM_APS_DB_WEB_SERVICE_URL", "https://localhost:1")
    seen = []

    @command("dm-two", api=["dm.site.facility.api:BssApsDbApi", "dm.site.facility.api:EsafApsDbApi"])
    def two(bss, esaf):
        """Use two."""
        seen.extend([bss, esaf])
        bss.getCurrentRun()

    done = run(program=two)
    assert done.exit_code == 3
    assert "connection refused" in done.stderr
    assert [api.username for api in seen] == ["d123456", "d123456"]
    assert all(api._keep_session for api in seen)


def test_results_that_are_no_records():
    def printed(result):
        @command("dm-x")
        def program():
            """Return."""
            return result

        return run(program=program).stdout

    assert printed(None) == ""
    assert printed("text") == "text\n"
    assert printed([]) == ""
    assert printed(3) == "3\n"
    assert printed(item for item in ({"a": 1}, {"a": 2})) == "a=1 \na=2 \n"
    assert printed(["x", "y"]) == "x\ny\n"


@pytest.mark.parametrize(
    ("typed", "answer"), [("yes\n", "True"), ("Y\n", "True"), ("\n", "False"), ("no\n", "False"), ("", "False")]
)
def test_confirmation_defaults_to_no(typed, answer):
    @command("dm-ask")
    def ask():
        """Ask."""
        return str(confirm("Delete 3 files?"))

    done = run(program=ask, input=typed)
    assert done.exit_code == 0
    assert done.stdout == f"{answer}\n"
    assert "Delete 3 files? [yes/no]" in done.stderr


def test_no_progress_without_a_terminal(capsys):
    with progress("Downloading", 100, size=True) as update:
        update(50)
        update(100, 100)
    assert capsys.readouterr() == ("", "")


def test_groups_have_the_same_manners():
    group = base.DmGroup("dm-admin", "Administer.")

    @group.command("fail")
    def fail():
        """Fail."""
        raise ObjectNotFound("Nothing.")

    assert run("fail", program=group).exit_code == 14
    assert run("fail", program=group).stderr == "Error: Nothing.\n"
    assert run("--version", program=group).exit_code == 0
    assert run("fial", program=group).exit_code == 2


def test_click_exit_statuses_pass():
    @command("dm-exit")
    @click.pass_context
    def leave(context):
        """Leave."""
        context.exit(7)

    assert run(program=leave).exit_code == 7


def test_f46_names_cannot_steer_a_terminal():
    name = "a\x1b]0;title\x07b\x9b31mc\u202egnp.exe\u2066d\u2028e\r\nf\tg"
    shown = base._one_line(name)
    assert shown == r"a\x1b]0;title\x07b\x9b31mc\u202egnp.exe\u2066d\u2028e\r\nf" + "\tg"
    assert base._one_line(name, controls=False).count("\n") == 0, "into a pipe a record stays one line, byte for byte"
    assert (
        base._one_line("<script>alert(1)</script> =cmd|' /C calc'!A0") == "<script>alert(1)</script> =cmd|' /C calc'!A0"
    )


def test_what_is_said_beside_results_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from dm.site.facility.api import UserSync
    from dm.site.facility.commands import sync_users

    left = {"key": "7\x1b]0;mine\x07", "username": None, "reason": "twice\r\nadded dmadmin \u202e"}
    sync_users.tell(UserSync({"skippedPersons": [left]}))
    error = capsys.readouterr().err
    assert error == "skipped 7\\x1b]0;mine\\x07 (no user name): twice\\r\\nadded dmadmin \\u202e\n"
