"""The argument models of the routes about the life of experiments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dm.common.web.routes import Arguments
from dm.site.storage.arguments import ById, ByName, FilePath


class RestoreDeleted(ById):
    """A deleted experiment to restore."""

    new_name: str | None = Field(default=None, description="Another name, if its own is used by another one by now.")


class DeleteMetadata(ByName):
    """One key of an experiment's own metadata."""

    key: str = Field(description="The key to remove.")


class UpdateStation(Arguments):
    """Changes to a station."""

    name: str = Field(description="The station's name.")
    description: str | None = None
    path_template: str | None = Field(
        default=None, description="Directories of new experiments, like {station}/{year}-{month}/{name}; empty: none."
    )
    storage_name: str | None = Field(default=None, description="Storage of new experiments; empty: no particular one.")


class UpdateStorage(Arguments):
    """Changes to a storage."""

    name: str = Field(description="The storage's name.")
    description: str | None = None
    storage_host: str | None = Field(default=None, description="Host on which stations reach it.")
    retired: bool | None = Field(default=None, description="Whether it takes no new experiments.")


class UpdateExperimentType(Arguments):
    """Changes to an experiment type."""

    name: str = Field(description="The type's name.")
    new_name: str | None = Field(default=None, description="Another name.")
    description: str | None = None


class OneName(Arguments):
    """A station, storage or experiment type."""

    name: str = Field(description="Its name.")


class CompressFile(FilePath):
    """A published file to compress or decompress."""

    compression: str = Field(default="", description="gz (default), bz2 or xz.")


class DeleteFiles(ByName):
    """Files to delete."""

    paths: list[str] = Field(description="Paths below the root, at most 1,000.")
    root: Literal["data", "analysis"] = Field(default="data", description="Root the paths are below.")


class PinExperiment(ByName):
    """An experiment to keep."""

    n_days: float = Field(ge=0, le=36_500, description="Keep it from being deleted for so many days; 0: no longer.")


class MoveExperiment(ByName):
    """An experiment to move."""

    storage_name: str = Field(description="Storage to move it to.")
