"""Which files of a data directory a DAQ or upload takes, by name alone."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from dm.common.errors import InvalidArgument
from dm.common.paths import decode


def words(text: str) -> tuple[str, ...]:
    """Split a comma list; blanks around the words are dropped, empty words too."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _patterns(text: str) -> tuple[tuple[re.Pattern[str], bool], ...]:
    """Compile a comma list of shell wildcards into (pattern, whether it speaks of the whole path)."""
    found = []
    for word in words(text):
        wildcard = word[2:] if word.startswith("./") else word
        if "\0" in wildcard:
            raise InvalidArgument(f"File pattern {word!r} contains a NUL byte.")
        found.append((re.compile(fnmatch.translate(wildcard), re.DOTALL), "/" in wildcard))
    return tuple(found)


def _extensions(text: str) -> tuple[str, ...]:
    return tuple("." + word.lstrip("*").lstrip(".").lower() for word in words(text))


@dataclass(frozen=True)
class Selection:
    """The name filters of 6.1.

    Wildcards are the shell's and match the path relative to the data directory (``*`` also matches ``/``); a wildcard
    without ``/`` matches the file name alone as well. Extensions are compared without regard to case.

    :param hidden: take files below a name that starts with a dot.
    :param only: this one file (``experimentFilePath``), as canonical relative bytes; other filters still count.
    """

    include: tuple[tuple[re.Pattern[str], bool], ...] = ()
    exclude: tuple[tuple[re.Pattern[str], bool], ...] = ()
    include_extensions: tuple[str, ...] = ()
    exclude_extensions: tuple[str, ...] = ()
    hidden: bool = False
    only: bytes | None = None

    @classmethod
    def parse(
        cls,
        *,
        file_path_pattern: str = "",
        skip_file_path_pattern: str = "",
        include_file_extensions: str = "",
        exclude_file_extensions: str = "",
        process_hidden_files: bool = False,
        only: bytes | None = None,
    ) -> Selection:
        """Build a selection from the texts users give.

        :raises InvalidArgument: a pattern that cannot be.
        """
        return cls(
            _patterns(file_path_pattern),
            _patterns(skip_file_path_pattern),
            _extensions(include_file_extensions),
            _extensions(exclude_file_extensions),
            process_hidden_files or bool(only and _is_hidden(only)),
            only,
        )

    def takes(self, path: bytes) -> bool:
        """Whether the file at this relative path is wanted."""
        if self.only is not None and path != self.only:
            return False
        if not self.hidden and _is_hidden(path):
            return False
        text = decode(path)
        name = text.rpartition("/")[2]
        lower = name.lower()
        if self.exclude_extensions and lower.endswith(self.exclude_extensions):
            return False
        if self.include_extensions and not lower.endswith(self.include_extensions):
            return False
        if _any(self.exclude, text, name):
            return False
        return not self.include or _any(self.include, text, name)

    def enters(self, directory: bytes) -> bool:
        """Whether files below this relative directory can be wanted at all."""
        if self.only is not None:
            return self.only.startswith(directory + b"/")
        return self.hidden or not _is_hidden(directory)


def _is_hidden(path: bytes) -> bool:
    return path.startswith(b".") or b"/." in path


def _any(patterns: tuple[tuple[re.Pattern[str], bool], ...], text: str, name: str) -> bool:
    return any(pattern.match(text) or (not whole and pattern.match(name)) for pattern, whole in patterns)
