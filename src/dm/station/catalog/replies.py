"""What the catalog answers: chosen keys, replies of bounded size, and what became of many records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dm.common.errors import DmException, ServiceLimit
from dm.station.catalog import items

Record = dict[str, Any]
REPLY_BYTES = 64 << 20


def choose(record: Record, key_list: str | Sequence[str] | None) -> Record:
    """Return the chosen keys of a record.

    :param key_list: ``"ALL"``, ``"DEFAULT"`` (also ``None``), a comma list, or names.
    """
    if isinstance(key_list, str):
        text = key_list.strip()
        if text.upper() == "ALL":
            return record
        key_list = None if text.upper() == "DEFAULT" or not text else [key.strip() for key in text.split(",")]
    return {key: record[key] for key in key_list or items.DEFAULT_KEYS if key in record}


class Budget:
    """Keeps a reply from outgrowing the service's memory.

    :param what: said in the error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.spent = 0

    def spend(self, document: Mapping[str, Any], record: Record, chosen: Record) -> None:
        """Count a record that goes into the reply.

        :raises ServiceLimit: the reply would be too large.
        """
        whole = int(document.get("bytes", 0))
        self.spent += whole if len(chosen) == len(record) else min(whole, 100 * len(chosen))
        if self.spent > REPLY_BYTES:
            raise ServiceLimit(f"{self._what} are more than {REPLY_BYTES >> 20} MiB; name the keys, or ask for fewer.")


class Outcome:
    """What became of many records: counts, and an error per record that could not be taken."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.states: dict[int, str] = {}
        self.errors: dict[int, tuple[str, DmException]] = {}

    def fail(self, index: int, path: Any, error: DmException) -> None:
        """Note that record ``index`` was refused."""
        self.errors[index] = (path if isinstance(path, str) else "", error)

    def include(self, part: Outcome, indices: Sequence[int]) -> None:
        """Take over the outcome of some of the records.

        :param indices: which records of this the records of ``part`` are.
        """
        self.states.update((indices[index], state) for index, state in part.states.items())
        self.errors.update((indices[index], error) for index, error in part.errors.items())

    def as_record(self) -> Record:
        """Return ``{countFiles, nAdded, nUpdated, nUnchanged, nErrors, errors}``.

        ``errors`` lists ``{index, experimentFilePath, errorClass, errorMessage}``; the other records are stored.
        """
        states = list(self.states.values())
        added, updated = states.count("added"), states.count("updated")
        return {
            "countFiles": self.total,
            "nAdded": added,
            "nUpdated": updated,
            "nUnchanged": self.total - added - updated - len(self.errors),
            "nErrors": len(self.errors),
            "errors": [
                {
                    "index": index,
                    "experimentFilePath": path,
                    "errorClass": type(error).__name__,
                    "errorMessage": error.message,
                }
                for index, (path, error) in sorted(self.errors.items())
            ],
        }
