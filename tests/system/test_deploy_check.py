"""``dm-check``, by ``sbin/dm-site check`` and ``sbin/dm-station check``, on a running installation."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dm.common import tls
from dm.deploy import tomlwriter
from dm.deploy.check import check
from dm.deploy.checks import site as site_checks
from dm.deploy.checks.findings import Finding, Level, worst
from dm.site.storage.settings import StorageSettings
from tests.live import PROGRAMS, Suite

SBIN = Path(__file__).parents[2] / "sbin"
Values = dict[str, dict[str, object]]


@pytest.fixture
def changed(suite: Suite, tmp_path: Path) -> Iterator[Callable[..., dict[str, Finding]]]:
    """Check the installation with other settings: section, key, value; a value of ``None`` leaves the key out."""
    original: Values = tomllib.loads(suite.installed.layout.settings.read_text())

    def run(section: str, key: str, value: object, side: str = "site") -> dict[str, Finding]:
        values = {name: dict(table) for name, table in original.items()}
        values[section][key] = value
        file = tmp_path / "dm.toml"
        file.write_text(tomlwriter.dumps(values))
        return {finding.name: finding for finding in check(file, (side,))}

    yield run


def test_a_new_installation_is_in_order(suite: Suite) -> None:
    for side in ("site", "station"):
        words = [str(SBIN / f"dm-{side}"), "check", "--config", str(suite.installed.layout.settings)]
        done = subprocess.run(words, capture_output=True, text=True, env=suite.environment, check=False, timeout=60)
        lines = done.stdout.splitlines()
        assert lines and not done.stderr, done
        assert all(re.fullmatch(r"(ok|warning|error) +[\w.]+: .+", line) for line in lines), lines
        assert not [line for line in lines if line.startswith("error")], done.stdout
        assert done.returncode == (1 if any(line.startswith("warning") for line in lines) else 0)
        for word in (suite.administrator[1], suite.manager[1]):
            assert word not in done.stdout
    status = int(worst(list(check(suite.installed.layout.settings, ("site",)))))
    words = [str(PROGRAMS / "dm-check"), "site", "--quiet"]
    quiet = subprocess.run(words, capture_output=True, text=True, env=suite.environment, check=False, timeout=60)
    assert quiet.returncode == status
    assert not [line for line in quiet.stdout.splitlines() if line.startswith("ok ")]


def test_the_site_names_what_it_looked_at(suite: Suite) -> None:
    names = {finding.name for finding in check(suite.installed.layout.settings, ("site", "station"))}
    assert names >= {
        "settings", "settings.mode", "storage.key", "storage.certificate", "storage.certificate.names",
        "storage.certificate.chain", "storage.database", "storage.database.fsync", "storage.database.schema",
        "storage.database.synchronous_commit", "storage.LOCAL", "storage.LOCAL.acl", "storage.LOCAL.space",
        "storage.administrators", "storage.ldap", "clock", "storage.running", "catalog.database",
        "catalog.database.accounts", "station.service_password_file", "station.storage_service_url", "catalog.running",
    }  # fmt: skip


def test_what_is_wrong_is_named_with_what_to_do(
    suite: Suite, changed: Callable[..., dict[str, Finding]], tmp_path: Path
) -> None:
    found = changed("storage", "database_url", "postgresql+psycopg2://dm:dm@127.0.0.1:1/dm")
    assert (found["storage.database"].level, found["settings.mode"].level) == (Level.ERROR, Level.ERROR)
    assert "holds a password" in found["settings.mode"].message
    assert "does not answer" in found["storage.database"].message

    key = tmp_path / "server.key"
    shutil.copy(suite.installed.layout.certificates / "server.key", key)
    key.chmod(0o644)
    found = changed("storage", "key", str(key))
    assert "chmod 600" in found["storage.key"].message and found["storage.key"].level is Level.ERROR

    found = changed("storage", "file_owner", "nobody-of-this-name")
    assert found["storage.file_owner"].level is Level.ERROR
    found = changed("storage", "no_such_key", 1)
    assert "unknown key" in found["settings"].message
    found = changed("station", "storage_service_url", "https://localhost:1", side="station")
    assert found["station.storage_service_url"].level is Level.ERROR

    wrong = tmp_path / "service.login"
    wrong.write_text("dmadmin|dmadmin\n")
    wrong.chmod(0o604)
    found = changed("station", "service_password_file", str(wrong), side="station")
    assert found["station.service_password_file"].level is Level.ERROR


def test_certificates(
    suite: Suite, changed: Callable[..., dict[str, Finding]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "CERTIFICATE_DAYS", 10)
    other = tmp_path / "other"
    tls.make_authority(other, "another authority")
    certificate, key = tls.issue(other, ["elsewhere.example.org"])
    found = changed("storage", "certificate", str(certificate))
    assert found["storage.certificate"].level is Level.ERROR, "it does not fit the key"
    original = suite.installed.layout.settings
    values = tomllib.loads(original.read_text())
    values["storage"] |= {"certificate": str(certificate), "key": str(key)}
    file = tmp_path / "dm.toml"
    file.write_text(tomlwriter.dumps(values))
    found = {finding.name: finding for finding in check(file, ("site",))}
    assert found["storage.certificate"].level is Level.WARNING
    assert "elsewhere" not in found["storage.certificate.names"].message
    assert found["storage.certificate.names"].level is Level.ERROR
    assert "lacks the certificate of CN=another authority" in found["storage.certificate.chain"].message


def test_directories_of_storages(suite: Suite, tmp_path: Path) -> None:
    settings = StorageSettings(
        certificate="x", key="x", database_url="postgresql://localhost/dm", minimum_free_gigabytes=1e9
    )
    tmp_path.chmod(0o777)
    found = {one.name: one for one in site_checks.storage_directory("S", tmp_path, settings)}
    assert found["storage.S"].level is Level.ERROR and "chmod 711" in found["storage.S"].message
    assert found["storage.S.space"].level is Level.WARNING
    tmp_path.chmod(0o700)
    assert next(iter(site_checks.storage_directory("S", tmp_path, settings))).level is Level.WARNING
    tmp_path.chmod(0o711)
    assert next(iter(site_checks.storage_directory("S", tmp_path, settings))).level is Level.OK
    [missing] = site_checks.storage_directory("S", tmp_path / "missing", settings)
    assert "mounted" in missing.message


def test_nothing_to_check(suite: Suite, tmp_path: Path) -> None:
    file = tmp_path / "dm.toml"
    file.write_text("")
    assert "no section of site" in suite.dm("dm-check", "site", "--config", file, status=3)
