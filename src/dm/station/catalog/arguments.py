"""What the catalog's routes take."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dm.common.web.routes import Arguments
from dm.station.catalog.files import MAX_PAGE

BULK_LIMIT = 32 << 20
DOCUMENT_LIMIT = 17 << 20

Json = dict[str, Any]
Root = Literal["data", "analysis"]


class Experiment(Arguments):
    """An experiment."""

    experiment_name: str = Field(description="Experiment name.")


class Listing(Arguments):
    """Which records of a list."""

    query_dict: Json | None = Field(default=None, description="Query: keys and values, or MongoDB-like operators.")
    skip: int = Field(default=0, ge=0, description="Matching records to leave out first.")
    key_list: str | list[str] | None = Field(default="ALL", description='Keys wanted: "ALL", "DEFAULT", or names.')


class FileList(Experiment, Listing):
    """Which files."""

    limit: int | None = Field(
        default=None,
        ge=0,
        description=f"Most records wanted, at most {MAX_PAGE}; without it all, if they are not more than that.",
    )


class FilePage(Experiment, Listing):
    """Which page of files."""

    limit: int = Field(default=1000, ge=1, le=MAX_PAGE, description="Most records on the page.")
    after: str | None = Field(default=None, description="Cursor of the page before.")


class FilePath(Experiment):
    """A file by path."""

    experiment_file_path: str = Field(description="Path below the root directory.")
    root: Root | None = Field(
        default=None, description="Directory the path is below; unless said data, and analysis when it is not there."
    )


class FileId(Experiment):
    """A file by id."""

    id: str = Field(description="Id of the file's record.")


class FileInfo(Experiment):
    """A new file record."""

    file_info: Json = Field(description="The record.")


class FilePathInfo(FilePath):
    """A change of a file's record by path."""

    file_info: Json = Field(description="Keys to set.")


class FileIdInfo(FileId):
    """A change of a file's record by id."""

    file_info: Json = Field(description="Keys to set.")


class FileInfos(Experiment):
    """Changes of many file records of an experiment."""

    files: list[Json] = Field(description="Records; experimentFilePath says which file, other keys are set.")


class Bulk(Arguments):
    """File records of any experiments of the station."""

    files: list[Json] = Field(
        description="Records with experimentId, experimentName, path, root, and what is known of the file."
    )


class Rename(Experiment):
    """A collection's new experiment."""

    new_experiment_name: str = Field(description="Name of the experiment that shall have the records.")


class UpdateId(Arguments):
    """A background update."""

    update_id: str = Field(description="Id of the update.")


class DocumentList(Experiment, Listing):
    """Which datasets or runs of an experiment."""

    limit: int = Field(default=MAX_PAGE, ge=0, le=MAX_PAGE, description="Most records wanted.")


class AllDatasets(Listing):
    """Which datasets of all experiments."""

    limit: int = Field(default=MAX_PAGE, ge=0, le=MAX_PAGE, description="Most records wanted.")


class DatasetName(Experiment):
    """A dataset."""

    dataset_name: str = Field(description="Dataset name.")


class DatasetFiles(DatasetName):
    """Which files of a dataset."""

    skip: int = Field(default=0, ge=0, description="Files to leave out first.")
    limit: int = Field(default=MAX_PAGE, ge=0, le=MAX_PAGE, description="Most files wanted.")


class NewDataset(Experiment):
    """A new dataset."""

    dataset_info: Json = Field(description="datasetName, and anything else.")


class DatasetChange(DatasetName):
    """A change of a dataset."""

    dataset_info: Json = Field(description="Keys to set.")


class DatasetId(Arguments):
    """A dataset by id."""

    id: str = Field(description="Id of the dataset.")


class DatasetIdChange(DatasetId):
    """A change of a dataset by id."""

    dataset_info: Json = Field(description="Keys to set.")


class RunName(Experiment):
    """A run."""

    run_id: str = Field(description="Run id.")


class NewRun(Experiment):
    """A new run."""

    run_info: Json = Field(description="runId, and anything else.")


class RunChange(RunName):
    """A change of a run."""

    run_info: Json = Field(description="Keys to set.")
