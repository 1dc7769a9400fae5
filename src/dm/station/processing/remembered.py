"""What was read from the database and is asked for again and again, until this service changes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cachetools import TTLCache

_MOST = 1_024
_SECONDS = 30.0  # somebody else may have changed it


class Remembered:
    """Texts by key. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: TTLCache[str, str] = TTLCache(_MOST, _SECONDS)
        self._changes = 0

    def get(self, key: str, read: Callable[[], str | None]) -> str | None:
        """Return the text of a key, read where it is not known."""
        with self._lock:
            known, changes = self._texts.get(key), self._changes
        if known is not None:
            return known
        found = read()
        with self._lock:
            if found is not None and self._changes == changes:  # else it may be of before a change
                self._texts[key] = found
        return found

    @contextmanager
    def changed(self, *keys: str) -> Iterator[None]:
        """Forget keys, before and after they are changed, however that ends."""
        self._forget(keys)
        try:
            yield
        finally:
            self._forget(keys)

    def _forget(self, keys: tuple[str, ...]) -> None:
        with self._lock:
            self._changes += 1
            for key in keys:
                self._texts.pop(key, None)
