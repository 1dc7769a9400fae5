"""The ``metadata`` plugin: what a file says about itself goes into its catalog record."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dm.common.errors import ProcessingError
from dm.station.acquisition.plugins import metadata_command
from dm.station.acquisition.plugins.base import Order, Plugin, PluginBatch, PluginContext, PluginFile
from dm.station.acquisition.plugins.metadata_reader import Reader


class MetadataSettings(BaseModel):
    """Settings of the plugin."""

    model_config = ConfigDict(extra="forbid")

    seconds_per_file: float = Field(default=10.0, gt=0, le=3600, description="time limit for reading one file")
    executable: str | None = Field(
        default=None,
        description="absolute path of a program that gets a file's path and prints key=value lines or JSON",
    )
    executable_seconds: float = Field(default=10.0, gt=0, le=3600, description="time limit for that program")

    @field_validator("executable")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("give an absolute path")
        return value


class Metadata(Plugin):
    """Reads HDF5/NeXus and SPEC files, and asks the station's own program where one is set.

    A file that cannot be understood is no failure: it is stored and cataloged all the same, with a
    ``metadataError`` note.
    """

    name = "metadata"
    summary: ClassVar[str] = "metadata from inside HDF5/NeXus and SPEC files, or from a program of the station"
    order: ClassVar[Order] = Order.METADATA
    settings_model: ClassVar[type[BaseModel]] = MetadataSettings
    required = False
    prepares: ClassVar[bool] = True

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        self.options = settings if isinstance(settings, MetadataSettings) else MetadataSettings()
        self._reader = Reader(self.options.seconds_per_file)

    def process(self, batch: PluginBatch) -> None:
        """Add what is found to each file's metadata; words the user gave with the DAQ or upload stay as they are."""
        for file in batch.files:
            if self.context.stop.is_set():
                file.fail("The service is stopping.", transient=True)
                continue
            found = self._extract(file)
            given = {key for key, value in file.metadata.items() if key in batch.daq and batch.daq[key] == value}
            # A note about an earlier version of the file must not outlive it.
            file.metadata.pop("metadataError", None)
            file.metadata.update({key: value for key, value in found.items() if key not in given})

    def _extract(self, file: PluginFile) -> dict[str, Any]:
        path = file.readable()
        if path is None:
            return {"metadataError": "The file is not readable from this host."}
        found = self._reader.extract(path)
        if self.options.executable:
            try:
                found |= metadata_command.run(self.options.executable, path, self.options.executable_seconds)
            except ProcessingError as error:
                found["metadataError"] = str(error)
        return found

    def close(self) -> None:
        """End the reading process."""
        self._reader.close()
