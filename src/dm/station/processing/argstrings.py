r"""Values that are argument strings: several words, some of them in quotes, printed by one program for another.

Workflows in use capture such a string (``-s sqmap -dq \"1, 2, 5-7\"``) and use it unquoted, or within a command for a
remote shell. Replaced as text, its quotes would be the shell's. Where a value consists of nothing but plain characters
and quoted plain characters, what the shell would make of them can be told beforehand, so that it can stay data.
"""

from __future__ import annotations

import re
import shlex

MAX_LENGTH = 16 << 10
"""Characters of a value that is looked at; longer ones are no argument strings."""
_PLAIN = r"[\w@%+=:,./ ~^-]"
_ESCAPED = re.compile(rf'(?:{_PLAIN}|\\"{_PLAIN}*\\")*')
_WORDS = re.compile(rf"""(?:{_PLAIN}|\\["']|"{_PLAIN}*"|'{_PLAIN}*')*""")


def for_remote(value: str) -> str | None:
    r"""Return a value as a second shell is to read it when it stands in double quotes for the first.

    :returns: with ``\"`` as ``"``, each opened and closed around plain characters; ``None`` for any other value.
    """
    if len(value) > MAX_LENGTH or '\\"' not in value or not _ESCAPED.fullmatch(value):
        return None
    return value.replace('\\"', '"')


def words(value: str) -> list[str] | None:
    """Return the words that a shell reads in a value that stands unquoted.

    :returns: ``None`` for a value without quotes, which the shell splits itself, and for one with other characters
        that mean something to a shell, which stays as it is.
    """
    if len(value) > MAX_LENGTH or not any(mark in value for mark in "\"'") or not _WORDS.fullmatch(value):
        return None
    try:
        return shlex.split(value)
    except ValueError:
        return None
