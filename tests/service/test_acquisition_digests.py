"""Which digests verify a transfer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from dm.common.errors import InvalidArgument
from dm.station.acquisition.ledger import Ledger
from dm.station.acquisition.transports.base import FileOutcome, TransferBatch
from dm.station.acquisition.transports.local import Local, LocalSettings
from tests.service.acquisition_fixtures import PRINCIPAL, Site, finish, running_office


class Damaging(Local):
    """Brings other bytes than were read, and says so in the usual digest only."""

    def move(self, batch: TransferBatch) -> list[FileOutcome]:
        outcomes = super().move(batch)
        for outcome in outcomes:
            staged = Path(batch.staging_directory.decode(), outcome.staged_name)
            staged.write_bytes(b"x" * outcome.size)
            outcome.digests["xxh3_128"] = xxhash.xxh3_128_hexdigest(b"x" * outcome.size)
        return outcomes


@pytest.mark.parametrize("transport", ["local", "in-place"])
def test_sha256_is_kept_beside_the_usual_digest_and_md5(
    site: Site, new_mongo_database: Callable[[], str], tmp_path: Path, transport: str
) -> None:
    content = b"frame" * 1000
    (tmp_path / "f").write_bytes(content)
    site.experiment(f"sha-{transport}")
    info = {"skipTransfer": True} if transport == "in-place" else {}
    with running_office(site, new_mongo_database(), verification_digest="sha256") as office:
        task = office.start("upload", PRINCIPAL, f"sha-{transport}", str(tmp_path), info)["id"]
        assert finish(office, "upload", task)["status"] == "done"
        row = Ledger(office.store, task).find(b"f")
    assert row is not None
    assert row["digests"] == {
        "xxh3_128": xxhash.xxh3_128_hexdigest(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert row["md5Sum"] == hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_storage_compares_it(site: Site, new_mongo_database: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"frame")
    site.experiment("forged")
    damaging = [Damaging(LocalSettings())]
    with running_office(
        site, new_mongo_database(), transports=damaging, verification_digest="sha256", retry_first_seconds=0.1
    ) as office:
        task = office.start("upload", PRINCIPAL, "forged", str(tmp_path), {})["id"]
        record = finish(office, "upload", task)
    assert record["status"] == "failed"
    assert "sha256 is" in record["errorMessage"]
    assert hashlib.sha256(b"frame").hexdigest() in record["errorMessage"]


def test_an_unknown_digest_is_refused() -> None:
    from dm.common import digests

    with pytest.raises(InvalidArgument, match="Unknown digest 'crc9'"):
        digests.maker("crc9")
