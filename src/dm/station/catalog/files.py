"""Files of experiments: look up, list, add, update, delete.

Every function takes the experiment the caller may see; nothing here ever reads or writes beyond it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dm.common import paths, timestamps
from dm.common.errors import (
    DmException,
    InvalidArgument,
    ObjectAlreadyExists,
    ObjectNotFound,
    ServiceUnavailable,
)
from dm.station.catalog import items, queries
from dm.station.catalog.items import FileItem
from dm.station.catalog.queries import Query
from dm.station.catalog.replies import Budget, Outcome, Record, choose
from dm.station.catalog.store import Document, ExperimentRef, Store, Update, sequence_of

MAX_PAGE = 10_000
"""Largest number of records in one reply; clients page."""

FILES_PER_PAGE = 100_000
"""How many files one page looks at before it hands back a cursor, found or not."""

PAGE_BYTES = 16 << 20

_ATTEMPTS = 20
_LOCKS = 64
_STORED_AS_IS = ("root", "fileSize", "md5Sum", "version", "compression", "fileName", "fileModificationTime")
_SYSTEM = {*items.SYSTEM_KEYS, items.SHADOWED}


def parse_query(query: Mapping[str, Any] | None) -> Query:
    """Check a query on file records (see :class:`dm.station.catalog.queries.Query`)."""
    return Query(query, _stored)


def _stored(key: str) -> tuple[str, bool] | None:
    if key in _SYSTEM:
        return (key, True) if key in _STORED_AS_IS else None
    return queries.metadata_field(key, items.FOLDER)


def pause(attempt: int) -> None:
    """Let the writer that was quicker finish, before trying again."""
    time.sleep(random.uniform(0, min(0.5, 0.005 * 2**attempt)))  # noqa: S311 - spreads load, keeps no secret


class FileCatalog:
    """The files of all experiments of a station."""

    def __init__(self, store: Store) -> None:
        self._shelf = store.files
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    @contextmanager
    def writing(self, experiment: ExperimentRef) -> Iterator[None]:
        """Serialize this process's writers of an experiment.

        Revisions keep documents right without it; with it, writers do not redo each other's work, and files appear
        in the order of their sequence numbers, which is what cursors rely on.
        """
        with self._locks[experiment.id % _LOCKS]:
            yield

    def get(self, experiment: ExperimentRef, path: str, root: str | None = None) -> Record:
        """Return a file's record.

        :param root: ``data`` or ``analysis``; unless said, ``data``, and ``analysis`` when it is not there.
        :raises ObjectNotFound: no such file.
        """
        return items.as_record(self._document(experiment, path, root), experiment)

    def get_many(self, experiment: ExperimentRef, wanted: Sequence[str]) -> list[Record]:
        """Return the records of these paths (below ``data``, else ``analysis``), without those not in the catalog."""
        raw = list(dict.fromkeys(paths.relative(path) for path in wanted))
        places = [[items.file_id(experiment.id, root, path) for root in items.ROOTS] for path in raw]
        known = self._shelf.get([file_id for place in places for file_id in place])
        found = [next((known[file_id] for file_id in place if file_id in known), None) for place in places]
        return [items.as_record(document, experiment) for document in found if document is not None]

    def get_by_id(self, experiment: ExperimentRef, file_id: str) -> Record:
        """Return a file's record by its id.

        :raises ObjectNotFound: not a file of this experiment.
        """
        return items.as_record(self._document_by_id(experiment, file_id), experiment)

    def find(
        self,
        experiment: ExperimentRef,
        query: Query,
        skip: int = 0,
        limit: int = MAX_PAGE,
        key_list: str | Sequence[str] | None = "ALL",
    ) -> list[Record]:
        """Return matching records in the order in which their files were first seen."""
        found: list[Record] = []
        if limit <= 0:
            return found
        after = 0
        if query.is_empty and skip:
            after, skip = self._skip(experiment, skip)
        budget = Budget(f"The files of experiment {experiment.name!r}")
        for _, matches in self._matching(experiment, query, after, skip + limit):
            for document, record in matches[skip : skip + limit - len(found)]:
                budget.spend(document, record, chosen := choose(record, key_list))
                found.append(chosen)
            skip = max(0, skip - len(matches))
            if len(found) >= limit:
                break
        return found

    def page(  # noqa: PLR0917 - mirrors find
        self,
        experiment: ExperimentRef,
        query: Query,
        after: str | None = None,
        limit: int = 1000,
        key_list: str | Sequence[str] | None = "ALL",
        skip: int = 0,
    ) -> Record:
        """Return one page, however large the experiment.

        :param after: the cursor of the page before; ``None`` starts.
        :param skip: matching records to leave out first.
        :returns: ``{"files": [...], "after": cursor, "skip": how many are still to be left out on the next page}``;
            the cursor is ``None`` on the last page. A page may hold fewer records than ``limit``, even none, and still
            have a successor.
        :raises InvalidArgument: not a cursor.
        """
        if after and not (after.isascii() and after.isdigit() and len(after) <= 16):
            raise InvalidArgument(f"Cursor {after[:40]!a} is not one the catalog gave; start without 'after'.")
        files: list[Record] = []
        if limit <= 0:
            return {"files": files, "after": after or None, "skip": skip}
        start = int(after or 0)
        if query.is_empty and skip:
            start, skip = self._skip(experiment, skip, start)
        size = 0
        for seen, matches in self._matching(experiment, query, start, skip + limit):
            for document, record in matches:
                if skip > 0:
                    skip -= 1
                    continue
                files.append(choose(record, key_list))
                size += int(document.get("bytes", 0))
                if len(files) >= limit or size >= PAGE_BYTES:
                    return {"files": files, "after": str(sequence_of(document)), "skip": 0}
            if seen - start >= FILES_PER_PAGE:
                return {"files": files, "after": str(seen), "skip": skip}
        return {"files": files, "after": None, "skip": skip}

    def add(self, experiment: ExperimentRef, record: Mapping[str, Any]) -> Record:
        """Store a new file's record and return it.

        :raises ObjectAlreadyExists: the file is there. :raises InvalidArgument: see :func:`items.parse`.
        """
        item = items.parse(record, experiment)
        with self.writing(experiment):
            sequence = self._shelf.allocate(experiment, 1)[0]
            document = items.new_document(item, sequence, timestamps.now())
            if not self._shelf.insert(document):
                raise ObjectAlreadyExists(
                    f"File {paths.display(item.path)!r} is already in the catalog of experiment {experiment.name!r}; "
                    "update it."
                )
        return items.as_record(document, experiment)

    def upsert(self, experiment: ExperimentRef, records: Sequence[Mapping[str, Any]]) -> Outcome:
        """Store what the records bring (see :mod:`dm.station.catalog.items`); repeatable.

        :returns: the outcome; bad records are reported in it, the others are stored.
        """
        outcome = Outcome(len(records))
        wanted: dict[int, FileItem] = {}
        for index, record in enumerate(records):
            try:
                wanted[index] = items.parse(record, experiment)
            except DmException as error:
                outcome.fail(index, record.get("experimentFilePath", record.get("path")), error)
        with self.writing(experiment):
            self._write(experiment, wanted, outcome, create=True)
        return outcome

    def update_many(self, experiment: ExperimentRef, records: Sequence[Mapping[str, Any]]) -> Outcome:
        """Change existing records: given system values and metadata are set, everything else stays.

        :returns: the outcome; unknown files are reported in it.
        """
        outcome = Outcome(len(records))
        with self.writing(experiment):
            located = self._located(experiment, records, outcome)
            wanted: dict[int, FileItem] = {}
            for index, (root, path) in located.items():
                try:
                    changed = {**records[index], "root": root, "experimentFilePath": paths.decode(path)}
                    wanted[index] = items.parse(changed, experiment)
                except DmException as error:
                    outcome.fail(index, paths.decode(path), error)
            self._write(experiment, wanted, outcome, create=False)
        return outcome

    def update(self, experiment: ExperimentRef, record: Mapping[str, Any]) -> Record:
        """Change one existing record and return it (see :meth:`update_many`).

        :raises ObjectNotFound: no such file. :raises InvalidArgument: a bad value.
        """
        outcome = self.update_many(experiment, [record])
        for _, error in outcome.errors.values():
            raise error
        root = record.get("root")
        return self.get(experiment, record.get("experimentFilePath", record.get("path")) or "", root)

    def update_by_id(self, experiment: ExperimentRef, file_id: str, record: Mapping[str, Any]) -> Record:
        """Change the record of an id and return it; a path in ``record`` is ignored."""
        document = self._document_by_id(experiment, file_id)
        path = paths.decode(bytes(document["pathBytes"]))
        return self.update(experiment, {**record, "root": document["root"], "experimentFilePath": path})

    def delete(self, experiment: ExperimentRef, path: str, root: str | None = None) -> Record:
        """Remove a file's record (never the file) and return it.

        :raises ObjectNotFound: no such file.
        """
        return self._delete(self._document(experiment, path, root), experiment)

    def delete_by_id(self, experiment: ExperimentRef, file_id: str) -> Record:
        """Remove the record of an id and return it."""
        return self._delete(self._document_by_id(experiment, file_id), experiment)

    def _delete(self, document: Document, experiment: ExperimentRef) -> Record:
        if not self._shelf.delete(document["_id"]):
            raise ObjectNotFound(f"File {document['experimentFilePath']!r} does not exist any more.")
        return items.as_record(document, experiment)

    def _document(self, experiment: ExperimentRef, path: str, root: str | None) -> Document:
        raw = paths.relative(path)
        roots = [items.checked_root(root)] if root else list(items.ROOTS)
        ids = [items.file_id(experiment.id, each, raw) for each in roots]
        found = self._shelf.get(ids)
        for file_id in ids:
            if file_id in found:
                return found[file_id]
        raise ObjectNotFound(
            f"File {paths.display(raw)!r} does not exist in the catalog of experiment {experiment.name!r}."
        )

    def _document_by_id(self, experiment: ExperimentRef, file_id: str) -> Document:
        found = self._shelf.get([file_id]) if file_id.startswith(f"{experiment.id}:") else {}
        if file_id not in found:
            raise ObjectNotFound(f"File with id {file_id[:120]!a} does not exist in experiment {experiment.name!r}.")
        return found[file_id]

    def _located(
        self, experiment: ExperimentRef, records: Sequence[Mapping[str, Any]], outcome: Outcome
    ) -> dict[int, tuple[str, bytes]]:
        """Return index -> root and path of records whose file is in the catalog."""
        candidates: dict[int, list[tuple[str, bytes]]] = {}
        for index, record in enumerate(records):
            try:
                root, path = items.location(record)
            except DmException as error:
                outcome.fail(index, record.get("experimentFilePath"), error)
                continue
            candidates[index] = [(each, path) for each in ([root] if record.get("root") else items.ROOTS)]
        ids = {items.file_id(experiment.id, *place) for places in candidates.values() for place in places}
        known = self._shelf.get(sorted(ids))
        result = {}
        for index, places in candidates.items():
            found = [place for place in places if items.file_id(experiment.id, *place) in known]
            if found:
                result[index] = found[0]
                continue
            path = places[0][1]
            sentence = f"File {paths.display(path)!r} does not exist in the catalog of experiment {experiment.name!r}."
            outcome.fail(index, paths.decode(path), ObjectNotFound(sentence))
        return result

    def _write(
        self, experiment: ExperimentRef, wanted: Mapping[int, FileItem], outcome: Outcome, *, create: bool
    ) -> None:
        for attempt in range(_ATTEMPTS):
            inserts, updates = self._plan(experiment, wanted, outcome, create)
            if not inserts and not updates:
                return
            if self._shelf.write(inserts, updates):
                return
            pause(attempt)
        raise ServiceUnavailable(
            f"The catalog of experiment {experiment.name!r} is being changed by others all the time; try again."
        )

    def _plan(
        self, experiment: ExperimentRef, wanted: Mapping[int, FileItem], outcome: Outcome, create: bool
    ) -> tuple[list[Document], list[Update]]:
        """Work out what is to be written, from what is there now."""
        now = timestamps.now()
        known = self._shelf.get(sorted({item.id for item in wanted.values()}))
        missing = {item.id for item in wanted.values()} - known.keys()
        sequences = iter(self._shelf.allocate(experiment, len(missing)) if missing and create else ())
        added: dict[str, Document] = {}
        changed: dict[str, Document] = {}
        for index, item in wanted.items():
            if index in outcome.errors:
                continue
            document = added.get(item.id) or known.get(item.id)
            try:
                if document is None:
                    if create:
                        added[item.id] = items.new_document(item, next(sequences), now)
                        outcome.states[index] = "added"
                    continue
                fields = items.changes({**document, **changed.get(item.id, {})}, item, now, ordered=create)
            except DmException as error:
                outcome.fail(index, paths.decode(item.path), error)
                continue
            if not fields:
                continue
            outcome.states.setdefault(index, "updated")
            if item.id in added:
                added[item.id].update(fields)
            else:
                changed.setdefault(item.id, {}).update(fields)
        updates = [Update(file_id, known[file_id]["rev"], fields) for file_id, fields in changed.items()]
        return list(added.values()), updates

    def _skip(self, experiment: ExperimentRef, skip: int, after: int = 0) -> tuple[int, int]:
        """Walk over whole windows by their counts; return where to start and how many are still to be skipped."""
        for values in self._shelf.group(experiment.id, {"n": {"$sum": 1}}, after):
            if values["n"] > skip:
                break
            skip -= int(values["n"])
            after = values["upTo"]
        return after, skip

    def _matching(
        self, experiment: ExperimentRef, query: Query, after: int, hint: int
    ) -> Iterator[tuple[int, list[tuple[Document, Record]]]]:
        """Yield the sequence number seen so far, and matching documents with their records."""
        for seen, documents in self._candidates(experiment, query, after, hint):
            pairs = ((document, items.as_record(document, experiment)) for document in documents)
            yield seen, [(document, record) for document, record in pairs if query.matches(record)]

    def _candidates(
        self, experiment: ExperimentRef, query: Query, after: int, hint: int
    ) -> Iterator[tuple[int, list[Document]]]:
        ids: list[str] | None = None
        if (wanted := query.required("id")) is not None:
            ids = [wanted] if wanted.startswith(f"{experiment.id}:") else []
        elif (path := query.required("experimentFilePath")) is not None:
            try:
                ids = [items.file_id(experiment.id, root, paths.relative(path)) for root in items.ROOTS]
            except InvalidArgument:
                ids = []
        if ids is None:
            yield from self._shelf.scan(experiment.id, after, query.prefilter, hint)
            return
        found = sorted(self._shelf.get(ids).values(), key=sequence_of)
        rest = [document for document in found if sequence_of(document) > after]
        if rest:
            yield sequence_of(rest[-1]), rest
