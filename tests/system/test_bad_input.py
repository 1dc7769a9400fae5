"""Bad input gives one sentence that names the value, the right exit status, and changes nothing."""

import contextlib
import json
import ssl
import subprocess

import httpx
import pytest

from dm.common.client import RestClient
from dm.common.errors import AuthenticationError, InvalidSession
from tests.live import PROGRAMS

EXPERIMENT = "bad-input"


@pytest.fixture(scope="module")
def here(suite, run_directory):
    suite.dm("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST")
    directory = run_directory / "bad-input"
    directory.mkdir()
    directory.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def known(suite):
    """Return a function that tells what the services know."""
    lists = {"DS": ["/users", "/experimentsByStation/25IDC"], "DAQ": ["/daqs", "/uploads"], "PROC": ["/processingJobs"]}
    lists["PROC"].append(f"/workflowsByOwner/{suite.manager[0]}")
    with contextlib.ExitStack() as stack:
        clients = {}
        for service in lists:
            url, authority = suite.environment[f"DM_{service}_WEB_SERVICE_URL"], suite.environment["DM_CA_FILE"]
            clients[service] = stack.enter_context(
                contextlib.closing(RestClient(url, *suite.manager, ca_file=authority))
            )

        def ask():
            answers = [clients[service].get(path) for service, paths in lists.items() for path in paths]
            # Others' tasks may still be running: what matters is which records there are.
            return [sorted(str(record.get("id")) for record in records) for records in answers]

        yield ask


@pytest.fixture
def unchanged(known):
    """Compare what the services know before and after."""
    before = known()
    yield
    assert known() == before


def one_sentence(text, *values):
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("Error: ")
    for value in values:
        assert str(value) in lines[0]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("words", "status", "values"),
    [
        (("dm-get-experiment", "--experiment", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-start-daq", "--experiment", "nosuch", "--data-directory", "/tmp"), 14, ("nosuch", "does not exist")),
        (("dm-upload", "--experiment", "nosuch", "--data-directory", "/tmp"), 14, ("nosuch", "does not exist")),
        (("dm-list-experiment-files", "--experiment", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-add-experiment", "--experiment", EXPERIMENT, "--type", "TEST"), 15, (EXPERIMENT,)),
        (("dm-add-experiment", "--experiment", "a/b", "--type", "TEST"), 8, ("a/b",)),
        (("dm-add-experiment", "--experiment", "fine", "--type", "NOTYPE"), 14, ("NOTYPE", "does not exist")),
        (("dm-start-daq", "--experiment", EXPERIMENT, "--data-directory", "/no/such/place"), 8, ("/no/such/place",)),
        (("dm-upload", "--experiment", EXPERIMENT, "--data-directory", "/etc/hostname"), 8, ("/etc/hostname",)),
        (("dm-stop-daq", "--experiment", EXPERIMENT, "--data-directory", "/tmp"), 14, ("/tmp",)),
        (("dm-stat-file", "--experiment", EXPERIMENT, "--file", "../../etc/passwd"), 8, ("../../etc/passwd",)),
        (("dm-stat-file", "--experiment", EXPERIMENT, "--file", "/etc/passwd"), 8, ("/etc/passwd",)),
        (("dm-start-processing-job", "--workflow-name", "nosuch", "filePath:/dev/null"), 14, ("nosuch",)),
        (("dm-get-processing-job", "--id", "00000000-0000-4000-8000-000000000000"), 14, ("00000000-0000-4000",)),
        (("dm-list-daq-files", "--id", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-retry-daq-files", "--id", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-skip-daq-files", "--id", "nosuch", "--path", "a"), 14, ("nosuch", "does not exist")),
        (("dm-reprocess-daq-files", "--id", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-export-daq-files", "--id", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-get-daq-file", "--id", "nosuch", "--path", "a"), 14, ("nosuch", "does not exist")),
        (("dm-wait-daq", "--id", "nosuch"), 14, ("nosuch", "does not exist")),
        (("dm-wait-file", "--id", "nosuch", "--path", "a"), 14, ("nosuch", "does not exist")),
        (("dm-wait-file", "--source", "/no/such/file", "--timeout", "1s"), 22, ("'unknown'",)),
        (("dm-explain-file", "--path", "a"), 8, ("Say which file",)),
        (("dm-explain-file", "--id", "nosuch", "--path", "a"), 14, ("nosuch", "does not exist")),
        (("dm-explain-file", "--experiment", "nosuch", "--path", "a"), 14, ("nosuch", "does not exist")),
        (("dm-explain-file", "--experiment", EXPERIMENT, "--path", "../a"), 8, ("../a",)),
        (("dm-explain-file", "--source", "relative/path"), 8, ("relative/path",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) and value[0].startswith("dm-") else "",
)
def test_command(suite, here, words, status, values):
    one_sentence(suite.dm(*words, status=status), *values)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"name": "w", "owner": "user25idc", "stages": {}}, ("stages",)),
        ({"name": "w", "owner": "user25idc"}, ("stages",)),
        ({"name": "w", "owner": "user25idc", "stages": {"1": {}}}, ("command",)),
        (
            {
                "name": "w",
                "owner": "user25idc",
                "stages": {"1": {"command": "true", "outputVariableRegexList": ["(?P<x>["]}},
            },
            ("(?P<x>[",),
        ),
    ],
)
def test_workflow(suite, here, spec, values):
    file = here / "workflow.json"
    file.write_text(json.dumps(spec))
    one_sentence(suite.dm("dm-add-workflow", f"--json-spec={file}", status=8), *values)


def test_duplicate_workflow(suite, here):
    file = here / "twice.json"
    file.write_text(json.dumps({"name": "twice", "owner": "user25idc", "stages": {"1": {"command": "true"}}}))
    suite.dm("dm-add-workflow", f"--json-spec={file}")
    one_sentence(suite.dm("dm-add-workflow", f"--json-spec={file}", status=15), "twice")


def test_a_workflow_file_is_parsed_not_executed(suite, here):
    file = here / "spec.py"
    file.write_text(f"open({str(here / 'pwned')!r}, 'w').close()\n{{'name': 'w'}}\n")
    one_sentence(suite.dm("dm-add-workflow", f"--py-spec={file}", status=8), "spec.py")
    assert not (here / "pwned").exists()


def test_a_daq_started_again_is_the_running_one(suite, here):
    source = here / "watched"
    source.mkdir()
    words = ("dm-start-daq", "--experiment", EXPERIMENT, "--data-directory", source)
    first, second = suite.dm(*words), suite.dm(*words)
    assert first.split()[0] == second.split()[0]
    suite.dm("dm-stop-daq", "--experiment", EXPERIMENT, "--data-directory", source)


def test_a_wrong_password(suite, here):
    login = here / "wrong.login"
    login.write_text("user25idc|wrong\n")
    login.chmod(0o600)
    done = subprocess.run(
        [PROGRAMS / "dm-list-daqs"],
        env=suite.environment | {"DM_LOGIN_FILE": str(login), "DM_HOME": str(here / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == AuthenticationError.code
    one_sentence(done.stderr, "ncorrect username or password")


def test_an_unknown_settings_key(suite, here):
    file = here / "dm.toml"
    file.write_text(suite.installed.layout.settings.read_text().replace("[catalog]", "[catalog]\nprot = 1"))
    done = subprocess.run(
        [PROGRAMS / "dm-catalog-service", "--config", file],
        env=suite.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    assert "catalog.prot" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def http(suite):
    context = ssl.create_default_context(cafile=suite.environment["DM_CA_FILE"])
    with httpx.Client(verify=context) as client:
        yield client


def refusal(response, status, code, *values):
    assert response.status_code == status, response.text
    body = response.json()
    assert body["errorCode"] == code == int(response.headers["Dm-Status-Code"])
    assert set(body) == {"errorCode", "errorClass", "errorMessage", "requestId"}
    assert "\n" not in body["errorMessage"]
    for value in values:
        assert value in body["errorMessage"]


def test_an_expired_session(suite, http):
    url = suite.environment["DM_CAT_WEB_SERVICE_URL"]
    response = http.get(f"{url}/dm/experimentFiles/{EXPERIMENT}", headers={"Cookie": "SESSIONID=" + "a" * 43})
    refusal(response, 401, InvalidSession.code, "log in")


@pytest.mark.parametrize(
    ("service", "method", "path", "values"),
    [
        ("DAQ", "POST", f"/experimentsByName/{EXPERIMENT}/startDaq/b'!!!'", ("dataDirectory",)),
        ("DAQ", "POST", f"/experimentsByName/{EXPERIMENT}/startDaq/b'YQ=='", ("dataDirectory",)),
        ("DAQ", "POST", f"/experimentsByName/{EXPERIMENT}/upload/x?taskInfo=%7Bnot%20json", ("taskInfo",)),
        ("DAQ", "GET", "/daqs/x/files?state=lost", ("lost",)),
        ("DAQ", "GET", "/daqs/x/files?limit=0", ("limit",)),
        ("DAQ", "GET", "/daqs/x/files?pattern=%00", ("NUL",)),
        ("DAQ", "GET", "/uploads/x/files/export?format=xml", ("xml",)),
        ("DAQ", "GET", "/daqs/x/file?path=../../etc/passwd", ("..",)),
        ("DAQ", "POST", "/daqs/x/retry?state=done", ("state",)),
        ("DAQ", "POST", "/daqs/x/skip", ("give a path",)),
        ("DAQ", "POST", "/daqs/x/skip?path=%2Fetc%2Fpasswd", ("/etc/passwd",)),
        ("DAQ", "GET", "/fileExplanation?path=a", ("Say which file",)),
        ("DAQ", "GET", "/fileExplanation?sourcePath=b'YQ=='", ("YQ==",)),
        ("DAQ", "GET", "/fileWait?id=x&path=a&until=eaten", ("until",)),
        ("PROC", "POST", "/workflows/addWorkflow?workflow=%7B%22name%22%3A", ("workflow",)),
        ("PROC", "GET", '/processingJobs?queryDict={"$where":"sleep(1)"}', ("$where",)),
        ("CAT", "GET", f'/experimentFiles/{EXPERIMENT}?queryDict={{"$where":"1"}}', ("$where",)),
        ("CAT", "GET", f"/experimentFiles/{EXPERIMENT}?nonsense=1", ("nonsense",)),
    ],
)
def test_request(suite, here, http, service, method, path, values):
    url = suite.environment[f"DM_{service}_WEB_SERVICE_URL"]
    username, password = suite.manager
    login = http.post(f"{url}/dm/login", data={"username": username, "password": password})
    assert login.status_code == 200
    response = http.request(method, f"{url}/dm{path}", headers={"Cookie": login.headers["set-cookie"]})
    assert response.status_code == 400, response.text
    refusal(response, 400, response.json()["errorCode"], *values)
    assert response.json()["errorCode"] in {7, 8}
