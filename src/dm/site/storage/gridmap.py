"""The grid-mapfile of GridFTP servers, made of the site's users: which certificate is which Unix account.

Nobody is let in by accident: a name that two users would share, one that does not fit a line, and an account of the
system itself are left out and told.
"""

from __future__ import annotations

import csv
import os
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dm.common.errors import ConfigurationError, InvalidArgument, InvalidObjectState

FIELDS = ("username", "badge", "firstName", "middleName", "lastName", "email")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_.-]{0,63}")
_SUBJECT = re.compile(r"(/[^/=]+=[^=]*)+")
_HEAD = "# Made by dm-make-gridmap of the site's active users; changes by hand are lost.\n"
_FEW = 10  # entries: so few may vanish at once


@dataclass(frozen=True)
class Rules:
    """How users become lines.

    :param template: subject of a user's certificate, with fields in braces; empty: only those of :attr:`subjects` have
        one. :param subjects: user name -> subjects of their own certificates, instead of the template's.
    :param account: template of the Unix account. :param least_uid: local accounts with lower numbers get no line.
    """

    template: str = ""
    subjects: Mapping[str, list[str]] = field(default_factory=dict)
    account: str = "{username}"
    least_uid: int = 1000

    def __post_init__(self) -> None:
        for template in (self.template, self.account):
            for _text, name, form, conversion in string.Formatter().parse(template):
                if name is not None and (name not in FIELDS or form or conversion):
                    raise InvalidArgument(f"Template {template!r}: {{{name}}} is unknown; use {', '.join(FIELDS)}.")
        if self.template and not _SUBJECT.fullmatch(self.template):
            raise InvalidArgument(f"Template {self.template!r} is no subject; write it like /DC=org/CN={{username}}.")


@dataclass
class Map:
    """Subjects and their accounts. :param skipped: sentences about users without a line."""

    accounts: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the file."""
        return _HEAD + "".join(f'"{subject}" {account}\n' for subject, account in sorted(self.accounts.items()))


def made(users: Iterable[Mapping[str, Any]], rules: Rules, system: frozenset[str]) -> Map:
    """Return the map of the active ones among some users.

    :param system: accounts that nobody may become; see :func:`system_accounts`.
    """
    result, owners = Map(), dict[str, set[str]]()
    found: list[tuple[str, str, str]] = []
    for user in users:
        username = str(user["username"])
        if user.get("active") is False:
            continue
        try:
            account = _filled(rules.account, user)
            if not _ACCOUNT.fullmatch(account) or account in system:
                raise ValueError(f"account {account!r} is not one for users")
            given = rules.subjects.get(username)
            subjects = given if given is not None else [_filled(rules.template, user)] if rules.template else []
            for subject in subjects:
                _check(subject)
        except ValueError as error:
            result.skipped.append(f"User {username!a} has no line: {error}.")
            continue
        for subject in subjects:
            found.append((username, subject, account))
            owners.setdefault(subject, set()).add(username)
    for username, subject, account in found:
        if len(owners[subject]) > 1:
            others = ", ".join(sorted(owners[subject] - {username})[:3])
            result.skipped.append(f"User {username!a} has no line: {subject!r} would be {others}, too.")
        else:
            result.accounts[subject] = account
    return result


def _filled(template: str, user: Mapping[str, Any]) -> str:
    values = {}
    for _text, name, _form, _conversion in string.Formatter().parse(template):
        if name is not None:
            value = user.get(name)
            if value in (None, "") or re.search(r"[/=\\\"]", str(value)):
                raise ValueError(f"{name} is empty, or has a character that a subject cannot have")
            values[name] = str(value)
    return template.format_map(values)


def _check(subject: str) -> None:
    if not _SUBJECT.fullmatch(subject):
        raise ValueError(f"{subject!a} is no subject like /DC=org/CN=name")
    if not subject.isascii() or not subject.isprintable() or '"' in subject or "\\" in subject:
        raise ValueError(f"subject {subject!a} has characters that a line cannot have")


def subjects_of(file: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read the subjects of people whose certificates follow no rule: lines ``username,/O=Somewhere/CN=Their Name``.

    :raises ConfigurationError: unreadable, or a line of another form.
    """
    found: dict[str, list[str]] = {}
    try:
        with Path(file).open(newline="", encoding="utf-8") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                if not row or row[0].lstrip().startswith("#"):
                    continue
                if len(row) != 2:
                    raise ConfigurationError(f"{os.fspath(file)}, line {number}: write it as username,subject.")
                found.setdefault(row[0].strip(), []).append(row[1].strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"File {os.fspath(file)} cannot be read: {error}.") from error
    return found


def system_accounts(least_uid: int) -> frozenset[str]:
    """Return root and the local accounts with numbers below the least one of people."""
    found = {"root"}
    for line in Path("/etc/passwd").read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split(":")
        if len(parts) > 2 and parts[2].isdecimal() and int(parts[2]) < least_uid:
            found.add(parts[0])
    return frozenset(found)


def write(file: str | os.PathLike[str], new: Map, most_gone_percent: float | None = 50) -> bool:
    """Replace the file in one step, so that a server reads the old one or the new one; an equal one stays.

    :param most_gone_percent: refuse to take more of its entries away; ``None``: take any.
    :returns: whether it changed. :raises InvalidObjectState: too many entries would go. :raises OSError: not written.
    """
    path, text = Path(file), new.text()
    try:
        old = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        old = ""
    if old == text:
        return False
    before = {line for line in old.splitlines() if line.strip() and not line.startswith("#")}
    gone = before - set(text.splitlines())
    if most_gone_percent is not None and len(gone) > max(_FEW, len(before) * most_gone_percent / 100):
        raise InvalidObjectState(
            f"{len(gone)} of {len(before)} entries of {path} would go, more than {most_gone_percent:g} %; it stays as "
            "it is. Look whether the site's users are in order, then run it once with --force."
        )
    hidden = path.with_name(f".{path.name}.{os.getpid()}.new")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(descriptor, 0o644)
            os.fsync(descriptor)
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True
