"""``dm.setup.sh``: the file users source, which other programs read as text, so that its format is an interface.

Rules: each variable on a line of its own that begins with ``export ``, with exactly one ``=``, a literal value without
blanks, quotes or ``$``, and nothing after it; ``PATH`` on lines that do not begin so; ``DM_STATION_NAME`` present.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dm.common import environment
from dm.common.errors import ConfigurationError

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_VALUE = re.compile(r"[\w@%+:,./-]+")


def setup_text(
    variables: Mapping[str, object], path: Iterable[str | os.PathLike[str]] = (), completion: str | None = None
) -> str:
    """Return the text of a ``dm.setup.sh``.

    :param variables: name -> value; ``None`` is left out. ``DM_STATION_NAME`` must be there.
    :param path: directories to put in front of ``PATH``, the first one first.
    :param completion: path of the completion file to source in bash (:func:`completion_script`).
    :raises ConfigurationError: a name or value the format cannot carry.
    """
    given = {name: str(value) for name, value in variables.items() if value is not None}
    if environment.STATION_NAME not in given:
        raise ConfigurationError(f"The setup file needs {environment.STATION_NAME}; name the station.")
    for name, value in given.items():
        if not _NAME.fullmatch(name) or name == "PATH":
            raise ConfigurationError(
                f"Variable {name!r} cannot stand in a setup file; use upper-case letters, digits, _."
            )
        _check(name, value)
    directories = [str(directory) for directory in path]
    for directory in directories:
        _check("PATH", directory)
    lines = ["# DM environment. Source this file in sh, bash, ksh or zsh. Other programs read it as text: keep each"]
    lines.append("# variable on one line, with a literal value without blanks or quotes and nothing after it.")
    lines += [f"export {name}={value}" for name, value in given.items()]
    for directory in reversed(directories):  # not exported by name: programs that read this file would take it over
        lines.append(f'case ":$PATH:" in *":{directory}:"*) ;; *) PATH="{directory}:$PATH" ;; esac')
    if completion is not None:
        _check("completion file", completion)
        lines.append(f'[ -z "${{BASH_VERSION:-}}" ] || [ ! -r {completion} ] || . {completion}')
    return "\n".join(lines) + "\n"


def write_setup(
    file: str | os.PathLike[str],
    variables: Mapping[str, object],
    path: Iterable[str | os.PathLike[str]] = (),
    commands: Iterable[str] = (),
) -> None:
    """Write ``dm.setup.sh`` in one step, and beside it ``dm.completion.bash`` when commands are given.

    :raises ConfigurationError: see :func:`setup_text`.
    """
    target = Path(file).absolute()
    completion = target.with_name("dm.completion.bash")
    names = sorted(commands)
    text = setup_text(variables, path, str(completion) if names else None)
    if names:
        _write(completion, completion_script(names))
    _write(target, text)


def read_setup(file: str | os.PathLike[str]) -> dict[str, str]:
    """Return the variables of a setup file, as the programs see them that read it as text.

    :raises ConfigurationError: unreadable.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Setup file {os.fspath(file)} cannot be read: {error}.") from error
    exports = [line.removeprefix("export ").partition("=") for line in lines if line.startswith("export ")]
    return {name.strip(): value for name, equals, value in exports if equals}


def completion_script(commands: Iterable[str]) -> str:
    """Return a bash file that completes options of all the named commands; it starts none of them when sourced."""
    names = sorted(commands)
    for name in names:
        if not re.fullmatch(r"dm-[a-z0-9-]+", name):
            raise ConfigurationError(f"{name!r} is not the name of a dm- command.")
    return _COMPLETION + "complete -o nosort -F _dm_complete " + " ".join(names) + "\n"


_COMPLETION = """\
# Completion of the dm-* commands in bash. A command is asked only when Tab is pressed.
_dm_complete() {
    local name type value variable
    name=${1##*/}
    variable=_${name//-/_}_COMPLETE
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" "${variable^^}=bash_complete" "$1" 2>/dev/null)
}
"""


def _check(name: str, value: str) -> None:
    if not _VALUE.fullmatch(value):
        raise ConfigurationError(
            f"{name} = {value!r} cannot stand in a setup file; letters, digits and @%+:,./-_ are allowed, no blanks, "
            "quotes or '='."
        )


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o644)
    temporary.replace(target)
