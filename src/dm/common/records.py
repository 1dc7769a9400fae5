"""Records: dictionaries with a published key order, as every DM API method returns them."""

from __future__ import annotations

import json
import pprint
from collections.abc import Iterator, MutableMapping
from typing import Any, ClassVar, TypeVar

R = TypeVar("R", bound="DmObject")


class DmObject(MutableMapping[str, Any]):
    """A dict-like record.

    Works wherever scripts use a dict (``o["k"]``, ``get``, ``in``, iteration, ``items``, ``len``, ``dict(o)``) and
    prints as one. ``data`` is the plain dict itself.

    :param data: the keys and values; kept, not copied. ``None`` means empty.
    """

    DEFAULT_KEY_LIST: ClassVar[list[str]] = []
    PPRINT_INDENT: ClassVar[int] = 2

    def __init__(self, data: MutableMapping[str, Any] | None = None, **extra: Any) -> None:
        self.data: dict[str, Any] = data if isinstance(data, dict) else dict(data or {})
        self.data.update(extra)

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return repr(self.data)

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return self.data == (other.data if isinstance(other, DmObject) else other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def key_list(cls, keys: str | list[str] | None, data: MutableMapping[str, Any]) -> list[str]:
        """Resolve a key list as callers give it.

        :param keys: ``None`` or ``"DEFAULT"`` for :attr:`DEFAULT_KEY_LIST` (all keys where a class has none),
            ``"ALL"`` for every key, a comma list, or a list of names.
        :returns: the names in order, whether or not ``data`` has them.
        """
        if isinstance(keys, str):
            text = keys.strip()
            if text.upper() == "ALL":
                return list(data)
            keys = None if text.upper() == "DEFAULT" or not text else [key.strip() for key in text.split(",")]
        return list(keys) if keys else (list(cls.DEFAULT_KEY_LIST) or list(data))

    def getDictRep(self, keyList: str | list[str] | None = "ALL") -> dict[str, Any]:
        """Return a plain dict of the chosen keys (see :meth:`key_list`); keys the record lacks are left out."""
        return {key: self.data[key] for key in self.key_list(keyList, self.data) if key in self.data}

    def getJsonRep(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(self.data)

    def getDisplayString(self, displayKeyList: str | list[str] | None = None, displayFormat: str = "text") -> str:
        """Return the line that commands print.

        :param displayKeyList: see :meth:`key_list`.
        :param displayFormat: ``text`` gives ``key=value `` pairs, each followed by a blank (scripts cut the line by
            column and drop its last character); ``dict`` and ``pprint`` give Python dict text; ``json`` gives JSON.
        """
        chosen = self.getDictRep(displayKeyList)
        if displayFormat == "dict":
            return repr(chosen)
        if displayFormat == "pprint":
            return pprint.pformat(chosen, indent=self.PPRINT_INDENT, sort_dicts=False)
        if displayFormat == "json":
            return json.dumps(chosen)
        return "".join(f"{key}={self.display_value(key, value)} " for key, value in chosen.items())

    @staticmethod
    def display_value(key: str, value: Any) -> str:
        """Return one value as text: run times with 2 decimals, other times of day with 6."""
        if isinstance(value, float) and key == "runTime":
            return f"{value:.2f}"
        if isinstance(value, float) and key.endswith("Time"):
            return f"{value:.6f}"
        return str(value)
