"""Running programs under another Unix account, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
from dataclasses import dataclass

from dm.common.errors import ProcessingError


@dataclass(frozen=True)
class Account:
    """A Unix account and how to get there.

    :param name: :param home: as in the account database.
    :param prefix: argument list that runs a program as this account; empty for the service's own account.
    :param user: uid, gid and further groups for who is root and changes to the account without a program; ``None``
        where that is not possible or not needed.
    """

    name: str
    home: str
    prefix: tuple[str, ...] = ()
    user: tuple[int, int, tuple[int, ...]] | None = None


def own(what: str, setting: str) -> Account:
    """Return the account this process runs under.

    :param what: said in errors: what is to run, e.g. ``stages``. :param setting: the one that names another account.
    :raises ProcessingError: it is root.
    """
    if os.geteuid() == 0:
        raise ProcessingError(
            f"{what.capitalize()} never run as root: run the service under another account, or set {setting}."
        )
    entry = pwd.getpwuid(os.geteuid())
    return Account(entry.pw_name, entry.pw_dir)


def unprivileged(name: str, what: str) -> pwd.struct_passwd:
    """Return the entry of an account. :raises ProcessingError: it does not exist, or is root's."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ProcessingError(f"Unix account {name!r}, which {what} should run under, does not exist.") from None
    if entry.pw_uid == 0:
        raise ProcessingError(f"Unix account {name!r} is root; {what} never run as root.")
    return entry


def switched(name: str, what: str) -> Account:
    """Return an account by name, with the way there: ``setpriv`` from root, else ``sudo``.

    :param what: as for :func:`own`. :raises ProcessingError: it does not exist, is root, or setpriv is missing.
    """
    entry = unprivileged(name, what)
    if os.geteuid() != 0:
        return Account(name, entry.pw_dir, ("sudo", "-n", "-u", name, "--"))
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ProcessingError(f"The program setpriv (util-linux), which gives up root's rights for {what}, is missing.")
    return Account(
        name,
        entry.pw_dir,
        (
            setpriv,
            f"--reuid={entry.pw_uid}",
            f"--regid={entry.pw_gid}",
            "--init-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
            "--",
        ),
        (entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(name, entry.pw_gid))),
    )


def chosen(name: str | None, what: str, setting: str) -> Account:
    """Return the account of a setting, or this process's own where it names none or that one.

    :raises ProcessingError: the account cannot be used, or it would be root.
    """
    if name and (os.geteuid() == 0 or name != pwd.getpwuid(os.geteuid()).pw_name):
        return switched(name, what)
    return own(what, setting)
