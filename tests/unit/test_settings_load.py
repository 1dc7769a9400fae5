"""Settings: what is loaded from where, and errors that name field, value and file."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr

from dm.common import settings
from dm.common.errors import ConfigurationError


class Limits(settings.ServiceSettings):
    files: int = Field(default=10, ge=1)
    token: SecretStr = SecretStr("")


class Example(settings.ServiceSettings):
    port: int = Field(default=1, ge=0, le=65535)
    certificate: Path = Path("server.pem")
    database_url: str = "postgresql://localhost/dm"
    roots: list[Path] = Field(default=[])
    names: list[str] = Field(default=[])
    mode: Literal["auto", "events"] = "auto"
    limits: Limits = Limits()
    plugins: dict[str, dict[str, str]] = Field(default={})
    admin_password: SecretStr = SecretStr("")
    on: bool = False


@pytest.fixture
def load(tmp_path):
    def run(text, section="storage", model=Example):
        path = tmp_path / "dm.toml"
        path.write_text(text)
        return settings.load(model, section, path)

    return run


def test_file_values_and_defaults(load, tmp_path):
    found = load('[storage]\nport = 22236\nroots = ["data", "/abs", "~/x"]\n[storage.limits]\nfiles = 3\n')
    assert (found.port, found.limits.files, found.mode) == (22236, 3, "auto")
    assert found.certificate == tmp_path / "server.pem", "relative to the settings file"
    assert found.roots == [tmp_path / "data", Path("/abs"), Path.home() / "x"]


def test_a_missing_section_has_its_defaults(load):
    assert load("[catalog]\n").port == 1


def test_the_environment_wins(load, monkeypatch):
    for name, value in {
        "PORT": "7",
        "ON": "true",
        "NAMES": "a, b",
        "ROOTS": '["/x", "/y"]',
        "LIMITS__FILES": "4",
        "PLUGINS__METADATA": '{command = "x"}',
        "DATABASE_URL": "postgresql://other/dm",
    }.items():
        monkeypatch.setenv(f"DM_STORAGE__{name}", value)
    found = load('[storage]\nport = 5\n[storage.limits]\ntoken = "kept"\n')
    assert (found.port, found.on, found.names, found.roots) == (7, True, ["a", "b"], [Path("/x"), Path("/y")])
    assert (found.limits.files, found.limits.token.get_secret_value()) == (4, "kept")
    assert found.plugins == {"metadata": {"command": "x"}}
    assert found.database_url == "postgresql://other/dm"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[storage]\nprot = 1", ["storage.prot", "did you mean port?", "dm.toml"]),
        ("[storage.limits]\nfile = 1", ["storage.limits.file", "did you mean files?"]),
        ("[storage]\nport = 70000", ["storage.port = 70000", "less than or equal to 65535"]),
        ('[storage]\nport = "x"', ["storage.port = 'x'", "valid integer"]),
        ('[storage]\nmode = "fast"', ["storage.mode = 'fast'", "'auto' or 'events'"]),
        ("[storge]\n", ["[storge]", "did you mean storage?"]),
        ("storage = 1", ["must be a section"]),
        ("[storage", ["not valid TOML", "table declaration"]),
        ("[storage]\nport = 1\nport = 2", ["not valid TOML"]),
    ],
)
def test_errors_name_field_value_and_file(load, text, words):
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    for word in [*words, "dm.toml"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_named(load):
    with pytest.raises(ConfigurationError, match=r"station\.name is missing; set it\. station\.storage_service_url"):
        load("[station]\n", "station", settings.StationSettings)


def test_secrets_are_never_shown(load):
    with pytest.raises(ConfigurationError) as caught:
        load("[storage]\nadmin_password = 12345\n[storage.limits]\ntoken = [67890]\n")
    assert "storage.admin_password" in str(caught.value)
    assert "12345" not in str(caught.value)
    assert "67890" not in str(caught.value)
    found = load(
        '[storage]\nadmin_password = "hush"\ndatabase_url = "postgresql://dm:hush@h/dm"\n'
        '[storage.limits]\ntoken = "hush"\n[storage.plugins.x]\npassword = "hush"\n'
    )
    shown = str(settings.shown(found))
    assert "hush" not in shown
    assert "postgresql://dm:***@h/dm" in shown
    assert "hush" not in repr(found.admin_password)


def test_unknown_variables_are_refused(load, monkeypatch):
    monkeypatch.setenv("DM_STORAGE__PROT", "1")
    with pytest.raises(ConfigurationError, match=r"DM_STORAGE__PROT .* did you mean port\?"):
        load("")


def test_a_bad_variable_is_an_error_like_a_bad_file_value(load, monkeypatch):
    monkeypatch.setenv("DM_STORAGE__PORT", "x")
    with pytest.raises(ConfigurationError, match=r"storage\.port = 'x'"):
        load("")


def test_the_file_is_found_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DM_CONFIG_FILE", raising=False)
    monkeypatch.delenv("DM_ETC_DIR", raising=False)
    with pytest.raises(ConfigurationError, match="DM_CONFIG_FILE"):
        settings.default_path()
    monkeypatch.setenv("DM_ETC_DIR", str(tmp_path))
    assert settings.default_path() == tmp_path / "dm.toml"
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        settings.load(Example, "storage")
    monkeypatch.setenv("DM_CONFIG_FILE", str(tmp_path / "other.toml"))
    assert settings.default_path() == tmp_path / "other.toml"


def test_settings_do_not_change_after_loading(load):
    with pytest.raises(ValueError, match="frozen"):
        load("").port = 2
