"""The sample file, the reference page, the schema and dm-config, generated from the services' own models."""

import json
import tomllib

import pytest
from click.testing import CliRunner

from dm.common import settings, settings_docs
from dm.deploy import config


@pytest.fixture(scope="module")
def models():
    return config.models()


def run(*arguments):
    return CliRunner().invoke(config.main, arguments)


def test_the_table_has_every_section():
    assert tuple(section for section, _, _ in config.TABLE) == settings.SECTIONS


def test_every_key_is_described(models):
    for section, model in models.items():
        assert model.__doc__, section
        for name, info in model.model_fields.items():
            assert info.description, f"{section}.{name} has no description"
            assert info.description[0].isupper(), f"{section}.{name}: {info.description}"


def test_the_sample_loads_as_it_stands(models, tmp_path):
    path = tmp_path / "dm.toml"
    path.write_text(settings_docs.sample(models))
    for section, model in models.items():
        settings.load(model, section, path)


def test_the_sample_s_comments_are_valid_keys_too(models):
    text = settings_docs.sample(models)
    assert text.isascii()
    assert max(map(len, text.splitlines())) < 200
    parsed = tomllib.loads(
        "\n".join(
            line.removeprefix("#") if line[1:2].isalpha() or line[1:2] == "[" else line for line in text.splitlines()
        )
    )
    for section, model in models.items():
        assert set(parsed[section]) == set(model.model_fields)


def test_the_reference_page_has_every_key_and_variable(models):
    page = settings_docs.reference(models)
    for section, model in models.items():
        assert f"## [{section}]" in page
        for name in model.model_fields:
            assert f"`{name}`" in page or f"### [{section}.{name}]" in page
    assert "`DM_STORAGE__PORT`" in page
    assert all(line.count(" | ") == 4 for line in page.splitlines() if line.startswith("| `"))


def test_units_are_told():
    from dm.site.storage.settings import StorageSettings

    fields = StorageSettings.model_fields
    assert settings_docs.unit("lease_seconds", fields["lease_seconds"]) == "seconds"
    assert settings_docs.unit("port", fields["port"]) == ""


def test_schema_command():
    done = run("schema", "--section", "storage")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["additionalProperties"] is False
    assert document["properties"]["storage"]["$ref"].removeprefix("#/$defs/") in document["$defs"]


def test_check_finds_what_would_stop_a_service(models, tmp_path):
    path = tmp_path / "dm.toml"
    path.write_text(settings_docs.sample({"storage": models["storage"], "acquisition": models["acquisition"]}))
    done = run("check", "--config", str(path))
    assert done.exit_code == 4
    assert "storage.certificate: file" in done.stderr
    assert "does not exist" in done.stderr
    assert "station.name is missing" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_check_finds_a_port_used_twice(models, tmp_path):
    path = tmp_path / "dm.toml"
    text = settings_docs.sample(models).replace("#port = 33336", "port = 22236")
    path.write_text(text)
    assert "is the port of [storage] too" in run("check", "--config", str(path)).stderr


def test_check_is_content_with_a_good_file(tmp_path, certificates):
    path = tmp_path / "dm.toml"
    path.write_text(
        f'[storage]\ncertificate = "{certificates}/server.pem"\nkey = "{certificates}/server.key"\n'
        'database_url = "postgresql+psycopg2://localhost/dm"\n'
    )
    done = run("check", "--config", str(path))
    assert (done.exit_code, done.stderr) == (0, "")
    assert "is in order" in done.stdout


def test_check_looks_into_sub_tables(tmp_path):
    path = tmp_path / "dm.toml"
    path.write_text(
        '[storage]\ncertificate = "c"\nkey = "k"\ndatabase_url = "postgresql+psycopg2://localhost/dm"\n'
        '[storage.ldap]\nservers = ["ldaps://localhost"]\nbind_dn = "cn=dm,dc=example"\n'
        'bind_password_file = "ldap.password"\n'
        'people_base = "ou=people,dc=example"\ngroup_base = "ou=groups,dc=example"\n'
    )
    assert "storage.ldap.bind_password_file: file" in run("check", "--config", str(path)).stderr


def test_show_hides_secrets(tmp_path, monkeypatch):
    path = tmp_path / "dm.toml"
    path.write_text(
        '[storage]\ncertificate = "c"\nkey = "k"\ndatabase_url = "postgresql+psycopg2://dm:hush@localhost/dm"\n'
    )
    monkeypatch.setenv("DM_STORAGE__PORT", "4711")
    done = run("show", "--config", str(path))
    assert done.exit_code == 0
    assert "port = 4711" in done.stdout
    assert f'certificate = "{tmp_path}/c"' in done.stdout
    assert "hush" not in done.output


def test_an_unknown_section_is_named():
    done = run("sample", "--section", "storge")
    assert done.exit_code == 4
    assert "'storge'" in done.stderr
