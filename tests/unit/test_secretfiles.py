"""Files of secrets that others can read are told at the start of a service."""

from __future__ import annotations

import logging
from pathlib import Path

from dm.common import secretfiles
from dm.common.settings import ServiceSettings


class Ldap(ServiceSettings):
    bind_password_file: Path
    ca_file: Path


class Section(ServiceSettings):
    key: Path
    certificate: Path
    ldap: Ldap
    adapters: dict[str, Ldap]


def test_open_files_are_told(tmp_path, caplog):
    for name, mode in (("key", 0o600), ("certificate", 0o644), ("one", 0o640), ("ca", 0o644), ("two", 0o604)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    section = Section(
        key=tmp_path / "key",
        certificate=tmp_path / "certificate",
        ldap=Ldap(bind_password_file=tmp_path / "one", ca_file=tmp_path / "ca"),
        adapters={"csv": Ldap(bind_password_file=tmp_path / "two", ca_file=tmp_path / "ca"),
                  "gone": Ldap(bind_password_file=tmp_path / "missing", ca_file=tmp_path / "ca")},
    )  # fmt: skip
    assert [name for name, _ in secretfiles.named(section, "s")] == [
        "s.key", "s.ldap.bind_password_file", "s.adapters.csv.bind_password_file", "s.adapters.gone.bind_password_file",
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert secretfiles.warn(section, "s") == 1
    assert "s.adapters.csv.bind_password_file" in caplog.text and f"chmod 600 {tmp_path / 'two'}" in caplog.text
