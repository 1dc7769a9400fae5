"""Construction rules of the published API classes, the login file and the kept session."""

import os
import stat

import pytest

from dm.common import environment
from dm.common.client import ApiClient, RestClient
from dm.common.errors import AuthenticationError, CommunicationError, ConfigurationError
from dm.common.sessionfile import SessionFile

URL = "https://localhost:1"


class Api(ApiClient):
    URL_VARIABLE = "DM_TEST_WEB_SERVICE_URL"


@pytest.fixture
def login_file(tmp_path, monkeypatch):
    path = tmp_path / "login"
    environment.write_login_file(path, "s25idcuser", "pass word")
    monkeypatch.setenv("DM_LOGIN_FILE", str(path))
    return path


def test_nothing_is_needed_to_construct(monkeypatch):
    monkeypatch.delenv("DM_LOGIN_FILE", raising=False)
    api = Api()
    assert api.username == ""
    assert api.url == ""
    with pytest.raises(ConfigurationError, match="DM_TEST_WEB_SERVICE_URL"):
        _ = api.client


@pytest.mark.parametrize("state", ["missing", "broken"])
def test_a_useless_login_file_does_not_stop_an_import(tmp_path, monkeypatch, state):
    path = tmp_path / "login"
    if state == "broken":
        path.write_text("no separator")
    monkeypatch.setenv("DM_LOGIN_FILE", str(path))
    assert Api(url=URL).username == ""


def test_environment_and_login_file_are_the_defaults(login_file, monkeypatch):
    api = Api()
    monkeypatch.setenv("DM_TEST_WEB_SERVICE_URL", URL)  # may be set later than the object is made
    assert api.username == "s25idcuser"
    assert api.client.url == f"{URL}/dm"
    assert api._login_file() == ("s25idcuser", "pass word")


def test_the_url_may_come_first(login_file):
    assert Api(URL).url == URL
    assert Api(URL).username == "s25idcuser"
    api = Api(URL, "d123456", "secret")
    assert (api.url, api.username) == (URL, "d123456")


def test_given_arguments_win(login_file):
    api = Api("d123456", "secret", URL)
    assert (api.username, api.url) == ("d123456", URL)


def test_the_login_file_of_another_user_is_not_used(login_file):
    with pytest.raises(AuthenticationError, match="No password for user d123456"):
        Api("d123456", url=URL)._login_file()


def test_no_server_is_a_communication_error_with_the_reason():
    with Api(URL).client as client, pytest.raises(CommunicationError, match="connection refused") as caught:
        client.get("/x", password="in the query")
    assert URL in str(caught.value)
    assert "in the query" not in str(caught.value)


def test_a_bad_authority_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        RestClient(URL, ca_file=tmp_path / "missing.pem").get("/x")


def test_passwords_are_not_sent_in_the_clear():
    client = RestClient("http://dm.example.org", "d123456", "secret")
    with pytest.raises(CommunicationError, match="not https"):
        client.login()


# --- login file ----------------------------------------------------------------------------------------------


def test_login_files_are_private(login_file):
    assert login_file.read_text() == "s25idcuser|pass word\n"
    assert stat.S_IMODE(login_file.stat().st_mode) == 0o600
    assert environment.ConfigurationManager.getInstance().parseLoginFile() == ("s25idcuser", "pass word")


@pytest.mark.parametrize("password", ["", "a|b", "a\nb", " a", "a "])
def test_passwords_the_format_cannot_carry_are_refused_unsaid(tmp_path, password):
    with pytest.raises(ConfigurationError) as caught:
        environment.write_login_file(tmp_path / "login", "user", password)
    assert "password" in str(caught.value)
    assert "line break." in str(caught.value), "the sentence is the same for all values"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "user", "a|b|c", "|x"])
def test_malformed_login_files_are_refused_unsaid(tmp_path, text):
    path = tmp_path / "login"
    path.write_text(f"{text}\n")
    with pytest.raises(ConfigurationError, match=r"username\|password"):
        environment.read_login_file(path)


def test_only_the_first_line_counts(tmp_path):
    path = tmp_path / "login"
    path.write_text("  user|secret \nmore\n")
    assert environment.read_login_file(path) == ("user", "secret")


def test_a_login_file_open_to_all_is_warned_of(tmp_path, caplog):
    path = tmp_path / "login"
    path.write_text("user|secret\n")
    path.chmod(0o644)
    environment.read_login_file(path)
    assert "chmod 600" in caplog.text
    assert "secret" not in caplog.text


# --- sessions between commands -------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_sessions_are_kept_per_service_and_user(home):
    SessionFile(URL, "d123456").save("one")
    SessionFile(URL, "d654321").save("two")
    assert SessionFile(URL, "d123456").load() == "one"
    assert SessionFile(f"{URL}1", "d123456").load() is None
    assert stat.S_IMODE((home / "sessions").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home / "sessions").iterdir()} == {0o600}
    SessionFile(URL, "d123456").save(None)
    assert SessionFile(URL, "d123456").load() is None


def test_links_and_open_files_are_not_trusted(home, tmp_path):
    kept = SessionFile(URL, "d123456")
    kept.save("good")
    kept.path.chmod(0o644)
    assert kept.load() is None
    kept.path.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("stolen")
    elsewhere.chmod(0o600)
    kept.path.symlink_to(elsewhere)
    assert kept.load() is None
    kept.save("mine")
    assert elsewhere.read_text() == "stolen"
    assert kept.load() == "mine"


def test_a_session_that_cannot_be_kept_is_no_error(home):
    home.write_text("a file where the directory should be")
    kept = SessionFile(URL, "d123456")
    kept.save("lost")
    assert kept.load() is None


def test_a_fifo_in_its_place_does_not_hang(home):
    kept = SessionFile(URL, "d123456")
    kept.save("x")
    kept.path.unlink()
    os.mkfifo(kept.path, 0o600)
    assert kept.load() is None
