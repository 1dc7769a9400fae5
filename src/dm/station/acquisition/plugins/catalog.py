"""Plugin ``catalog``: one bulk write into the metadata catalog for every batch of stored files."""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from dm.common.client import segment
from dm.common.errors import DmException, ObjectNotFound
from dm.common.paths import decode, encode
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginContext, PluginFile
from dm.station.catalog.api import CatalogServiceApi

_log = logging.getLogger(__name__)
_WARM_SECONDS = 5.0


class CatalogSettings(BaseModel):
    """Settings ``[acquisition.plugins.catalog]``.

    :param url: of the catalog service; empty: ``DM_CAT_WEB_SERVICE_URL``. :param timeout: seconds per request.
    """

    model_config = ConfigDict(extra="forbid")

    url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    timeout: float = Field(default=120, gt=0)


class Catalog(Plugin):
    """Files become catalog records with digests, replicas, the user's own keys and the metadata found in them."""

    name = "catalog"
    summary = "Records each stored file in the metadata catalog."
    order = Order.CATALOG
    settings_model = CatalogSettings

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, CatalogSettings)
        self._api = context.client(CatalogServiceApi, settings.url, settings.timeout)

    def applies(self, daq: dict[str, Any]) -> bool:
        """Whether the DAQ does not say ``skipCatalog``."""
        return not daq.get("skipCatalog")

    def check(self, daq: dict[str, Any]) -> None:
        """Log in at the catalog, so that the first files need not wait for it. One that is down refuses nothing."""
        try:
            self._api.client.get("/session", timeout=_WARM_SECONDS)
        except DmException as error:
            _log.warning("The catalog does not answer now: %s", error)

    def process(self, batch: PluginBatch) -> None:
        """Write all records of the batch; repeating it changes nothing. A catalog that is down repeats the batch."""
        found = self._api.upsertFiles([_record(batch, file) for file in batch.files])
        for problem in found["errors"]:
            batch.files[int(problem["index"])].fail(str(problem["errorMessage"]))

    def look_up(self, experiment: dict[str, Any], root: str, path: bytes) -> dict[str, Any] | None:
        """Return the catalog's record of a file."""
        route = f"/experimentFilesByPath/{segment(str(experiment['name']))}/{segment(path)}"
        try:
            return dict(self._api.client.get(route, root=root))
        except ObjectNotFound:
            return {}

    def close(self) -> None:
        """Close the connections."""
        self._api.close()


def _record(batch: PluginBatch, file: PluginFile) -> dict[str, Any]:
    """Return a file as the catalog's bulk route takes it; of one that was not moved, where it lies.

    Nobody else counts the versions of such a file, so the catalog does, by its time and contents.
    """
    place = {"localFilePath": decode(file.storage_path), "version": None} if file.in_place else {}
    return {**record(batch, file, _replicas(batch, file)), **place, "metadata": file.metadata}


def record(batch: PluginBatch, file: PluginFile, replicas: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a file is, as the catalog's bulk route takes it: without metadata, which others may have added.

    :param replicas: where its bytes are; they join those the catalog knows.
    """
    return {
        "experimentId": batch.experiment["id"],
        "experimentName": batch.experiment["name"],
        "root": batch.root,
        "path": decode(file.path),
        "fileSize": file.size,
        "fileModificationTime": file.mtime_ns / 1e9,
        "md5Sum": file.md5 or None,
        "digests": file.digests,
        "version": file.version,
        "replicas": replicas,
    }


def _replicas(batch: PluginBatch, file: PluginFile) -> list[dict[str, Any]]:
    """Return where the bytes are: in storage, and at the source unless that is storage or is to be removed."""
    experiment, daq = batch.experiment, batch.daq
    key = "analysisDirectory" if batch.root == "analysis" else "dataDirectory"
    there = os.path.join(encode(str(experiment.get(key) or "")), file.path)
    if daq.get("skipTransfer") and (file.source_host or file.source_path != there):  # it never came to storage
        return [{"type": "source", "url": file.source_url, "host": file.source_host or ""}]
    base = str(experiment.get("storageUrl") or f"file://{experiment.get('storageHost') or ''}")
    url = f"{base.rstrip('/')}/{batch.root}/{quote(file.path)}"
    replicas = [{"type": "storage", "url": url, "host": experiment.get("storageHost") or ""}]
    if not (daq.get("skipTransfer") or daq.get("removeSourceFiles")) and file.source_path != file.storage_path:
        replicas.append({"type": "source", "url": file.source_url, "host": file.source_host or ""})
    return replicas
