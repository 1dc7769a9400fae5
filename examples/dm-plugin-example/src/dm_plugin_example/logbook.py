"""Plugin ``logbook``: one line per stored file, in a file of the experiment."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from pydantic import BaseModel

from dm.common.errors import InvalidArgument
from dm.common.paths import decode
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginContext
from dm_plugin_example.settings import LogbookSettings


class Logbook(Plugin):
    """Writes the logbook. Seen again after a restart, a file gets no second line."""

    name = "logbook"
    summary = "Writes a line per stored file into the experiment's logbook."
    order = Order.METADATA
    prepares = True
    settings_model = LogbookSettings

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, LogbookSettings)
        self.directory = settings.directory
        self.refused = tuple(settings.refuse)
        self.lock = threading.Lock()

    def check(self, daq: dict[str, object]) -> None:
        """Refuse a DAQ or upload whose key ``logbookPage`` is no number."""
        page = daq.get("logbookPage", "1")
        if not str(page).isdecimal():
            raise InvalidArgument(f"logbookPage = {page!r} is not a number.")

    def process(self, batch: PluginBatch) -> None:
        """Write what is not written yet; all of a batch with one flush."""
        book = self.directory / f"{batch.experiment['name']}.jsonl"
        with self.lock, book.open("a+") as file:
            known = self._lines(book)
            for stored in batch.files:
                path = decode(stored.path)
                if path.endswith(self.refused):
                    stored.fail(f"File {path!r} must not be here; correct the detector's settings.")
                    continue
                if stored.key not in known:
                    known[stored.key] = len(known) + 1
                    line = {"key": stored.key, "station": self.context.station_name, "path": path, "size": stored.size}
                    file.write(json.dumps(line) + "\n")
                stored.metadata["logbookLine"] = known[stored.key]

    @staticmethod
    def _lines(book: Path) -> dict[str, int]:
        """Return key -> line number of what is written."""
        with book.open() as file:
            return {json.loads(line)["key"]: number for number, line in enumerate(file, 1)}
