"""Adapter ``csv``: a directory of CSV (or JSON) files, one per kind, that somebody puts there."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from dm.common.errors import CommunicationError
from dm.site.facility.adapters.base import KINDS, FacilityAdapter, Person
from dm.site.facility.adapters.translation import PEOPLE_KEY, TranslatingSettings, Translation

_LARGEST = 512 << 20
_WIDEST = 1 << 20


class CsvSettings(TranslatingSettings):
    """Settings of adapter ``csv``."""

    directory: Path = Field(
        description="Directory of users, runs, beamlines, proposals, esafs (each .csv or .json) and, with the people "
        "of the last two, proposal_people.csv and esaf_people.csv."
    )
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="Between the cells of a row.")
    encoding: str = Field(default="utf-8-sig", description="Of the files.")


class Csv(FacilityAdapter):
    """Reads the files anew each time. It provides the kinds whose files are there when the service starts."""

    settings_model = CsvSettings

    def __init__(self, name: str, settings: CsvSettings) -> None:
        super().__init__(name, settings)
        self._directory = settings.directory
        self._translation = Translation(self, settings)
        self.provides = frozenset(kind for kind in KINDS if self._file(kind) is not None)

    def users(self) -> Iterator[Person]:
        """Yield the people of ``users.csv``."""
        return self._translation.people(self._rows("users"))

    def runs(self) -> Iterator[dict[str, Any]]:
        """Yield the runs of ``runs.csv``."""
        return self._translation.records("runs", self._rows("runs"))

    def beamlines(self) -> Iterator[dict[str, Any]]:
        """Yield the beamlines of ``beamlines.csv``."""
        return self._translation.records("beamlines", self._rows("beamlines"))

    def proposals(self, run: str | None) -> Iterator[dict[str, Any]]:
        """Yield the proposals of ``proposals.csv``, of a run where it says the run."""
        for record in self._with_people("proposals", "proposal_people"):
            if run is None or str(record.get("run") or run).strip() == run:
                yield record

    def esafs(self, year: int | None) -> Iterator[dict[str, Any]]:
        """Yield the safety forms of ``esafs.csv``; of other years only where their dates do not begin with the year."""
        for record in self._with_people("esafs", "esaf_people"):
            begun = str(record.get("experimentStartDate") or "")[:4]
            if year is None or begun == str(year) or not (begun.isascii() and begun.isdigit()):
                yield record

    def check(self) -> None:
        """Look whether the directory is there. :raises CommunicationError: it is not."""
        if not self._directory.is_dir():
            raise CommunicationError(f"Directory {self._directory} of adapter {self.name!r} does not exist.")

    def _with_people(self, kind: str, people: str) -> Iterator[dict[str, Any]]:
        if self._file(people) is None:
            return self._translation.records(kind, self._rows(kind))
        return self._translation.joined(kind, self._rows(kind), self._rows(people))

    def _file(self, kind: str) -> Path | None:
        return next((path for end in (".csv", ".json") if (path := self._directory / f"{kind}{end}").is_file()), None)

    def _rows(self, kind: str) -> Iterator[Any]:
        path = self._file(kind)
        if path is None:
            raise CommunicationError(f"File {self._directory / kind}.csv of adapter {self.name!r} does not exist.")
        try:
            if path.stat().st_size > _LARGEST:
                raise CommunicationError(f"File {path} has more than {_LARGEST >> 20} MiB.")
            if path.suffix == ".json":
                yield from self._json(path)
            else:
                yield from self._csv(path, kind)
        except OSError as error:
            raise CommunicationError(f"File {path} cannot be read: {error.strerror}.") from error
        except (UnicodeError, LookupError):
            raise CommunicationError(f"File {path} is no {self.settings.encoding} text.") from None

    def _json(self, path: Path) -> Iterator[Any]:
        try:
            found = json.loads(path.read_text(self.settings.encoding))
        except (ValueError, RecursionError) as error:
            raise CommunicationError(f"File {path} is no JSON: {error}.") from None
        if not isinstance(found, list):
            raise CommunicationError(f"File {path} is no JSON list.")
        yield from found

    def _csv(self, path: Path, kind: str) -> Iterator[dict[str, Any]]:
        csv.field_size_limit(_WIDEST)
        with path.open(encoding=self.settings.encoding, newline="") as stream:
            # strict: a quote that is never closed would swallow all rows behind it
            reader = csv.DictReader(stream, delimiter=self.settings.delimiter, strict=True, skipinitialspace=True)
            if not reader.fieldnames:
                raise CommunicationError(f"File {path} has no line of column names.")
            if len(set(reader.fieldnames)) != len(reader.fieldnames):
                raise CommunicationError(f"File {path} has a column twice: {', '.join(reader.fieldnames)[:200]}.")
            while True:
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    self.rejected(kind, f"line {reader.reader.line_num}", str(error))
                    continue
                if None in row or None in row.values():
                    self.rejected(kind, f"line {reader.reader.line_num}", f"it has not {len(reader.fieldnames)} cells")
                    continue
                yield {key: _listed(key, value) for key, value in row.items()}


def _listed(key: str, value: str) -> Any:
    """Return a cell; people and activities are written as JSON lists."""
    if key in (*PEOPLE_KEY.values(), "activities") and value.startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
