"""``dm-list-experiment-files`` (also ``dm-get-experiment-files``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from dm.common.command import command, option
from dm.station.catalog.api import FileCatApi, FileMetadata
from dm.station.catalog.commands.words import as_query


@command("dm-list-experiment-files", api="dm.station.catalog.api:FileCatApi", keyvalue_arguments=True)
@option("--experiment", required=True, help="Experiment name.")
@option("--query", help='Further conditions as JSON, e.g. \'{"fileSize": {"$gt": 1000}}\'.', metavar="JSON")
@option("--skip", type=int, default=0, help="Files to leave out first.")
@option("--limit", type=int, default=None, help="Most files to list (default: all).")
def main(
    api: FileCatApi, *, experiment: str, query: str | None, skip: int, limit: int | None, words: dict[str, str]
) -> Iterator[FileMetadata]:
    """List the files of an experiment that are in the catalog.

    KEY:VALUE words are filters on any key of the records, metadata included.
    """
    found = api.iterateExperimentFiles(experiment, as_query(words, query))
    return itertools.islice(found, max(0, skip), None if limit is None else max(0, skip) + max(0, limit))
