"""All files of an experiment at once: statistics, renaming, deleting.

A collection belongs to the experiment's id, so it follows an experiment that is renamed at the site by itself.
"""

from __future__ import annotations

import math
from typing import Any

from bson import Binary

from dm.common.errors import ObjectAlreadyExists, ObjectNotFound
from dm.station.catalog import items
from dm.station.catalog.files import FileCatalog
from dm.station.catalog.store import Document, ExperimentRef, Store, list_key

_MOVING_FROM = "movingFrom"


class FileCollections:
    """The file collections of a station's experiments.

    :param files: the same catalog the routes use, so that its writers and these wait for each other.
    """

    def __init__(self, store: Store, files: FileCatalog) -> None:
        self._shelf = store.files
        self._files = files

    def stats(self, experiment: ExperimentRef) -> dict[str, Any]:
        """Return ``{experimentName, countFiles, collectionSize, averageFileSize, minFileSize, maxFileSize,
        stdDevFileSize}``, sizes in bytes; all zero for an experiment without files.

        The standard deviation is that of the whole population.
        """
        first = self._shelf.any(experiment.id)
        shift = float(first["fileSize"] or 0) if first else 0.0
        distance = {"$subtract": ["$fileSize", shift]}  # squares of distances, not of sizes: exact where it matters
        accumulators = {
            "count": {"$sum": 1},
            "size": {"$sum": "$fileSize"},
            "least": {"$min": "$fileSize"},
            "most": {"$max": "$fileSize"},
            "squares": {"$sum": {"$multiply": [distance, distance]}},
        }
        count = size = 0
        squares = 0.0
        least: int | None = None
        most = 0
        for window in self._shelf.group(experiment.id, accumulators):
            count += int(window["count"])
            size += int(window["size"])
            squares += float(window["squares"])
            least = int(window["least"]) if least is None else min(least, int(window["least"]))
            most = max(most, int(window["most"]))
        mean_distance = (size - count * shift) / count if count else 0.0
        variance = squares / count - mean_distance**2 if count else 0.0
        return {
            "experimentName": experiment.name,
            "countFiles": count,
            "collectionSize": size,
            "averageFileSize": size / count if count else 0.0,
            "minFileSize": least or 0,
            "maxFileSize": most,
            "stdDevFileSize": math.sqrt(max(0.0, variance)),
        }

    def delete(self, experiment: ExperimentRef) -> dict[str, Any]:
        """Remove all file records of an experiment (never the files); return how many.

        :raises ObjectNotFound: there are none.
        """
        with self._files.writing(experiment):
            deleted = self._shelf.delete_all(experiment.id)
        if not deleted:
            raise _none(experiment.name)
        return {"experimentName": experiment.name, "countFiles": deleted}

    def orphans(self, name: str) -> list[ExperimentRef]:
        """Return experiments that had this name when the catalog last wrote to them and still have files.

        Their site record may be gone or renamed; only the site knows.
        """
        return [known for known in self._shelf.experiments() if known.name == name and self._shelf.any(known.id)]

    def note_name(self, experiment: ExperimentRef) -> dict[str, Any]:
        """Take over the new name of an experiment that was renamed at the site.

        :raises ObjectNotFound: it has no files.
        """
        if not self._shelf.any(experiment.id):
            raise _none(experiment.name)
        self._shelf.set_counter(experiment.id, experimentName=experiment.name)
        return self.stats(experiment)

    def move(self, source: ExperimentRef, target: ExperimentRef) -> dict[str, Any]:
        """Make one experiment's records those of another that has none. Repeatable after an interruption.

        :raises ObjectNotFound: the source has none. :raises ObjectAlreadyExists: the target has some.
        """
        resuming = self._shelf.counter(target.id).get(_MOVING_FROM) == source.id
        if not resuming and not self._shelf.any(source.id):
            raise _none(source.name)
        if not resuming and self._shelf.any(target.id):
            raise ObjectAlreadyExists(
                f"Experiment {target.name!r} already has files in the catalog; delete them first."
            )
        self._shelf.set_counter(target.id, **{_MOVING_FROM: source.id})
        for _, documents in self._shelf.scan(source.id):
            self._move(documents, target)
        self._shelf.delete_all(source.id)
        self._shelf.set_counter(target.id, **{_MOVING_FROM: None})
        return self.stats(target)

    def _move(self, documents: list[Document], target: ExperimentRef) -> None:
        known = self._shelf.get([_id_in(target, document) for document in documents])
        missing = [document for document in documents if _id_in(target, document) not in known]
        if not missing:
            return
        sequences = self._shelf.allocate(target, len(missing))
        moved = []
        for document, sequence in zip(missing, sequences, strict=True):
            place = {
                "_id": _id_in(target, document),
                "experimentId": target.id,
                "experimentName": target.name,
                "listKey": list_key(target.id, sequence),
                "pathBytes": Binary(bytes(document["pathBytes"])),
            }
            moved.append({**document, **place})
        self._shelf.write(moved, [])


def _id_in(target: ExperimentRef, document: Document) -> str:
    return items.file_id(target.id, document["root"], bytes(document["pathBytes"]))


def _none(name: str) -> ObjectNotFound:
    return ObjectNotFound(f"A file collection of experiment {name!r} does not exist.")
