r"""Reading a stage command as a shell would, to find the ``$name`` places and how each is quoted.

Only positions are found here; values never enter. A place in single quotes is found as well, because the published
meaning is textual replacement, which does not care for quotes. ``\$name``, ``$$``, ``$1`` and names that are not
variables of the job are left alone. Reading a place wrongly (shell grammar has dark corners) can show the wrong text,
never run a value: values only ever travel in shell variables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container
from dataclasses import dataclass

_NAME = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?=[}:#%+=?,^/-]))")
_HERE_DOCUMENT = re.compile(r"<<(-?)[ \t]*(?:'([^'\n]*)'|\"([^\"\n]*)\"|(\\?[^\s;&|<>()'\"]+))")
_BREAKS = " \t\n;|&()<>"

COMMAND, DOUBLE, SINGLE, DOCUMENT, RAW_DOCUMENT = "command", "double", "single", "document", "raw document"


@dataclass(frozen=True)
class Place:
    """One ``$name`` or ``${name...}`` in a command.

    :param start: offset of the ``$``. :param end: offset after the name (before a closing brace or operator).
    :param braced: written with braces. :param context: how the place is quoted.
    :param word: offset where its shell word starts.
    """

    start: int
    end: int
    name: str
    braced: bool
    context: str
    word: int


class _Scanner:
    def __init__(self, text: str, known: Container[str]) -> None:
        self.text = text
        self.known = known
        self.at = 0
        self.word = 0
        self.places: list[Place] = []
        self.documents: list[tuple[str, bool, bool]] = []
        # (kind, parenthesis depth, word start of the outer level); kinds: "command", "backtick", "double"
        self.stack: list[tuple[str, int, int]] = [("command", 0, 0)]

    def place(self, context: str) -> bool:
        """Record the variable at the current position, if it is one; move behind it."""
        found = _NAME.match(self.text, self.at)
        name = found and (found[1] or found[2])
        if not found or name not in self.known:
            return False
        self.places.append(Place(self.at, found.end(), str(name), bool(found[2]), context, self.word))
        self.at = found.end()
        return True

    def scan(self) -> list[Place]:
        while self.at < len(self.text):
            if self.stack[-1][0] == "double":
                self.double()
            else:
                self.command()
        return self.places

    def push(self, kind: str) -> None:
        self.stack.append((kind, 0, self.word))

    def pop(self) -> None:
        if len(self.stack) > 1:
            self.word = self.stack.pop()[2]

    def dollar(self, context: str) -> None:
        if self.place(context):
            return
        if self.text.startswith("$(", self.at):
            self.push("command")
            self.at += 2
            self.word = self.at
        else:  # "$$" is the shell's own
            self.at += 2 if self.text.startswith("$$", self.at) else 1

    def backtick(self) -> None:
        self.at += 1
        if any(kind == "backtick" for kind, _, _ in self.stack):
            while self.stack[-1][0] != "backtick":
                self.pop()
            self.pop()
        else:
            self.push("backtick")
            self.word = self.at

    def double(self) -> None:
        character = self.text[self.at]
        if character == "\\":
            self.at += 2
        elif character == "$":
            self.dollar(DOUBLE)
        elif character == "`":
            self.backtick()
        else:
            self.at += 1
            if character == '"':
                self.pop()

    def command(self) -> None:
        text, character = self.text, self.text[self.at]
        if character == "\\":
            self.at += 2
        elif character == "'":
            self.single()
        elif character == '"':
            self.push("double")
            self.at += 1
        elif character == "`":
            self.backtick()
        elif character == "$":
            self.dollar(COMMAND)
        elif character == "#" and (self.at == 0 or text[self.at - 1] in _BREAKS):
            end = text.find("\n", self.at)
            self.at = len(text) if end < 0 else end
        elif character == "<" and text.startswith("<<", self.at) and not text.startswith("<<<", self.at):
            self.redirect()
        elif character in "()":
            self.parenthesis(character)
        else:
            self.at += 3 if text.startswith("<<<", self.at) else 1
            if character in _BREAKS:
                self.word = self.at
            if character == "\n":
                self.here_documents()

    def single(self) -> None:
        end = self.text.find("'", self.at + 1)
        end = len(self.text) if end < 0 else end
        self.at += 1
        while self.at < end:
            if self.text[self.at] != "$" or not self.place(SINGLE):
                self.at += 1
        self.at = end + 1

    def parenthesis(self, character: str) -> None:
        kind, depth, outer = self.stack[-1]
        self.at += 1
        self.word = self.at
        if character == "(":
            self.stack[-1] = (kind, depth + 1, outer)
        elif depth:
            self.stack[-1] = (kind, depth - 1, outer)
        elif kind == "command":
            self.pop()

    def redirect(self) -> None:
        found = _HERE_DOCUMENT.match(self.text, self.at)
        if not found:
            self.at += 2
            return
        dash, single, double, plain = found.groups()
        raw = single is not None or double is not None or plain.startswith("\\")
        delimiter = single if single is not None else double if double is not None else plain.lstrip("\\")
        self.documents.append((delimiter, bool(dash), raw))
        self.at = found.end()

    def here_documents(self) -> None:
        pending, self.documents = self.documents, []
        for delimiter, dash, raw in pending:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                end = len(self.text) if end < 0 else end
                line = self.text[self.at : end]
                if (line.lstrip("\t") if dash else line) == delimiter:
                    self.at = min(end + 1, len(self.text))
                    break
                self.word = self.at
                while self.at < end:
                    if not raw and self.text[self.at] == "\\":
                        self.at += 2
                    elif self.text[self.at] != "$" or not self.place(RAW_DOCUMENT if raw else DOCUMENT):
                        self.at += 1
                self.at = end + 1
        self.word = self.at


@functools.lru_cache(maxsize=512)
def places(command: str, known: frozenset[str]) -> tuple[Place, ...]:
    """Return the places of the known names in a command, in order."""
    return tuple(_Scanner(command, known).scan())


def names(text: str) -> set[str]:
    """Return the names of the ``$name`` and ``${name}`` places of a text, however they are quoted."""
    return {str(plain or braced) for plain, braced in _NAME.findall(text)}
