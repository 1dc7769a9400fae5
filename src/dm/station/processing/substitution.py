"""Variables in stage commands: shown as text, passed as data.

The published meaning of ``$name`` in a command is textual replacement, then the shell. Pasting would let a file name
or the output of an earlier stage become shell syntax; so the command's text stays what its author wrote, with each
``$name`` renamed to a shell variable of our own that a prologue sets. What the shell does with it is what it does
with any variable: unquoted it is split into words, in double quotes it is one word, never is it read as syntax. In
single quotes, where the shell would not look, the quotes are opened around it. ``$filePath`` is one word always. Quotes
in an unquoted value group its words as in a command line when it holds nothing else of a shell's; see
:mod:`dm.station.processing.argstrings`.

Values that a *second* interpreter would read (``ssh host "... $x"``, ``bash -c '... $x'``, an awk program) are out of
the first shell's hands. There only plain values are let through; see :func:`interpreted`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import re2

from dm.common.errors import InvalidArgument
from dm.station.processing import argstrings
from dm.station.processing.templates import COMMAND, DOUBLE, RAW_DOCUMENT, SINGLE, Place, places

PREFIX = "_dm_"
REMOTE, WORD = "_dmr_", "_dmw"  # the value for a second shell; words of a value, numbered
MAX_VALUE = 4 << 20
ONE_WORD = frozenset({"filePath", "id", "owner", "stage"})
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_SHELL = r"(?:[^\s;|&()<>'\"`]*/)?(?:ba|da|z|k|mk|c|tc)?sh[\"']?"
_INTERPRETER = r"\S*(?:python[\d.]*|perl|ruby|node|php|lua|julia|octave(?:-cli)?|gnuplot|Rscript|tclsh|expect)[\"']?"
_OPTIONS = r"(?:\s+-[\w-]+(?:=\S+)?)*"
_START = r"(?:^|[\s;|&(`\"'\\])"
_END = r"\s*(?:$|[;|&)\n])"
_PROGRAM = re2.compile(  # text that ends where a program text starts: sh -c HERE, python3 -c HERE, awk HERE
    rf"(?:{_START}(?:{_SHELL}|\$\{{?\w*(?i:sh|shell|python)\}}?|{_INTERPRETER}){_OPTIONS}\s+(?:-\w*[ceEr]|--eval)"
    rf"|(?:\S*awk|\S*sed|\S*jq)(?:\s+-[vF]\s+\S+|\s+-[\w-]+(?:=\S+)?)*|\bsu\b[^;|&\n]*\s-c"
    rf"|{_START}trap(?:\s+--)?)\s+$"
)
_REMOTE_SHELL = re2.compile(rf"{_START}(?:\S*/)?(?:eval|ssh|rsh)[\"']?\s")  # the whole command is read again
_SHELL_PROGRAM = re2.compile(rf"{_START}{_SHELL}{_OPTIONS}\s+-\w*c\s+$")
_REREAD = re2.compile(  # the same by what cannot be told to be a shell alone: an interpreter's input, for instance
    rf"{_START}(?:\S*/)?(?:pdsh|parallel)[\"']?\s|[|]\s*{_SHELL}{_OPTIONS}{_END}"
    rf"|[|]\s*{_INTERPRETER}{_OPTIONS}(?:\s+-)?{_END}"
    rf"|{_START}(?:{_SHELL}|{_INTERPRETER}){_OPTIONS}(?:\s+-)?\s*<<|{_START}{_SHELL}{_OPTIONS}\s+-s\b"
    rf"|{_START}(?:at|batch|qsub|sbatch|bsub|make)\s[^\n]*<<"
    rf"|{_START}(?:[.]|source)\s+(?:/dev/|<\()|{_START}(?:{_SHELL}|{_INTERPRETER}){_OPTIONS}\s+<\(|>\(\s*{_SHELL}"
    rf"|\bxargs\b[^;|&\n]*\s(?:-I|-i|--replace)[^;|&\n]*{_SHELL}{_OPTIONS}\s+-\w*c\b"
    rf"|\bxargs\b[^;|&\n]*{_SHELL}{_OPTIONS}\s+-\w*c{_END}"
)
_ARITHMETIC = re2.compile(  # where bash evaluates the *value* of a variable as an expression, which may run commands
    r"\(\([^)\n]*[A-Za-z_$]|\$\[|\[\[[^\n]*\s-(?:eq|ne|lt|le|gt|ge|v)\s|\w\[[^\]\n]*\$|\blet\b|(?:\btest|\[|\bprintf)\s+-v\s"
    r"|\b(?:declare|typeset|local|readonly|export)\s+-\w*i|\b(?:read|unset|mapfile|readarray)\s+(?:-\S+\s+)*[\"']?\$"
)
_INERT = re.compile(r"[^$`]*")
_PLAIN = re.compile(r"[\w@%+=:,./ ~^-]*")


def bad_value(name: str, value: str) -> str | None:
    """Return why a value cannot be a shell variable, or ``None``."""
    if "\0" in value:
        return f"The value of {name!r} contains a NUL character."
    if len(value) > MAX_VALUE:
        return f"The value of {name!r} is longer than {MAX_VALUE} characters."
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return f"The value of {name!r} is not valid text."
    return None


def shown(command: str, variables: Mapping[str, str], limit: int = 64 << 10) -> str:
    """Return the command with the values in place, for people; shortened to ``limit`` characters."""
    pieces, at, room = [], 0, limit
    for place in places(command, frozenset(variables)):
        end = place.end
        if place.braced:
            if not command.startswith("}", end):
                continue  # ${name:-default}: left as written
            end += 1
        piece = command[at : place.start] + variables[place.name][:room]
        pieces.append(piece)
        room = max(0, room - len(piece))
        at = end
    text = "".join(pieces) + command[at:]
    return text if len(text) <= limit else text[:limit] + " ... (shortened)"


def interpreted(command: str, variables: Mapping[str, str]) -> str | None:
    """Find a value that a second interpreter would read as its program.

    Looks for ``eval``, ``ssh``, shells and interpreters fed by a pipe or a here-document, and for the program texts of
    ``sh -c``, ``python -c``, ``awk``, ``sed``, ``trap`` and the like. Arguments beside a program text are data and not
    looked at: ``bash -c 'tool "$1"' tool "$filePath"`` takes any file name.

    Where ``sh`` is bash, arithmetic runs commands that a value hides in a subscript (``a[$(command)]``), so that no
    value with ``$`` or a back-tick comes into a command with arithmetic or array elements.

    It looks at what authors write, not at what they could hide from it: values can reach an interpreter by a script
    that the command writes first, or by a program that itself runs a shell. Workflow authors are trusted.

    :returns: the name of a variable whose value holds more than plain characters there, or ``None``.
    """
    text = _continued(command)
    reread = _REREAD.search(text) or _REMOTE_SHELL.search(text)
    arithmetic = _ARITHMETIC.search(text)
    for place in places(command, frozenset(variables)):
        value = variables[place.name]
        if (reread or _is_program(text, place)) and not _PLAIN.fullmatch(value) and not _remote(text, place, value):
            return place.name
        if arithmetic and not _INERT.fullmatch(value):
            return place.name
    return None


def _continued(command: str) -> str:
    """Return a command as one goes on behind a backslash at the end of a line; offsets stay as they are."""
    return command.replace("\\\n", "  ")


def _remote(text: str, place: Place, value: str) -> str | None:
    """Return an argument string as a second shell is to read it at a place, where nothing but a shell reads it."""
    if place.name in ONE_WORD or place.context not in {COMMAND, DOUBLE}:
        return None
    found = argstrings.for_remote(value)
    if found is None or _REREAD.search(text):
        return None
    if _is_program(text, place):
        return found if place.context == DOUBLE and _SHELL_PROGRAM.search(_before(text, place)) else None
    return found if _REMOTE_SHELL.search(text) else None


def _before(command: str, place: Place) -> str:
    return command[max(command.rfind("\n", 0, place.word), place.word - 2_000, 0) : place.word]


def _is_program(command: str, place: Place) -> bool:
    return bool(_PROGRAM.search(_before(command, place)))


def prologue(environment: Mapping[str, str], directories: Iterable[str], directory: str | None, input_: bool) -> str:
    """Return the beginning of a script: environment, file mode mask, standard input and working directory.

    :param environment: exported; names must be shell names. :param directories: the first that can be entered is the
        default. :param directory: the one asked for, perhaps relative to it; it is an error when it cannot be entered.
    :param input_: whether the script itself comes by standard input, which the command must not read on.
    """
    lines = [f"export {name}={quoted(value)}\n" for name, value in environment.items()]
    if input_:
        lines.append("exec </dev/null\n")
    attempts = [f"cd -- {quoted(place)} 2>/dev/null" for place in directories]
    lines += ["umask 027\n", " || ".join([*attempts, "cd /"]) + "\n"]
    if directory is not None:
        lines.append(f"cd -- {quoted(directory)} || exit 126\n")
    return "".join(lines)


def script(command: str, variables: Mapping[str, str], head: str = "") -> bytes:
    """Return the shell script of one process.

    :param command: the stage's command as its author wrote it.
    :param variables: name -> value (any text without NUL; bytes that are not UTF-8 as surrogate escapes).
    :param head: see :func:`prologue`.
    :returns: head, assignments (never exported, so no child sees them as environment), then the command.
    :raises InvalidArgument: a value that cannot be passed safely, naming it.
    """
    found = places(command, frozenset(variables))
    used = dict.fromkeys(place.name for place in found)
    for name in used:
        if reason := bad_value(name, variables[name]):
            raise InvalidArgument(reason)
    if risky := interpreted(command, variables):
        raise InvalidArgument(
            f"The value of {risky!r} holds characters that a second shell or interpreter in the command would read "
            "as its program; pass it as an argument instead."
        )
    pieces, at, grown = [], 0, 0
    assigned = {PREFIX + name: variables[name] for name in used}
    text = _continued(command)
    for place in found:
        if place.context == RAW_DOCUMENT:
            raise InvalidArgument(
                f"The command uses {place.name!r} in a here-document with a quoted delimiter; leave the quotes away."
            )
        renamed, value = PREFIX + place.name, variables[place.name]
        end = place.end
        if place.braced and command.startswith("}", end):
            end += 1
        if (remote := _remote(text, place, value)) is not None:
            renamed = REMOTE + place.name
            assigned[renamed] = remote
        reference = f"${{{renamed}}}" if not place.braced or end > place.end else f"${{{renamed}"
        if place.context == SINGLE:
            reference = f"'\"{reference}\"'" if reference.endswith("}") else command[place.start : end]
        elif place.context == COMMAND and reference.endswith("}"):
            if place.name in ONE_WORD:
                reference = f'"{reference}"'
            elif remote is None and place.word == place.start and (words := argstrings.words(value)) is not None:
                named = {f"{WORD}{number}_{place.name}": word for number, word in enumerate(words)}
                assigned |= named
                reference = " ".join(f'"${{{name}}}"' for name in named)
                grown += len(reference)
                if grown > MAX_VALUE:
                    raise InvalidArgument(f"The words of {place.name!r} make the command longer than {MAX_VALUE}.")
        pieces += [command[at : place.start], reference]
        at = end
    lines = [f"{name}={quoted(value)}\n" for name, value in assigned.items()]
    text = head + "".join(lines) + "".join(pieces) + command[at:] + "\n"
    return text.encode("utf-8", "surrogateescape")


def quoted(value: str) -> str:
    """Return a value as one single-quoted shell word."""
    return "'" + value.replace("'", "'\\''") + "'"
