"""Which Unix account a stage runs under. Never root: a service that runs as root gives its stages another account."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Collection
from dataclasses import dataclass

from dm.common.errors import ProcessingError


@dataclass(frozen=True)
class Account:
    """A Unix account and how to get there.

    :param name: :param home: as in the account database.
    :param prefix: argument list that runs a program as this account; empty for the service's own account.
    """

    name: str
    home: str
    prefix: tuple[str, ...] = ()


def _entry(name: str) -> pwd.struct_passwd:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise ProcessingError(f"Unix account {name!r}, which stages should run under, does not exist.") from None
    if entry.pw_uid == 0:
        raise ProcessingError(f"Unix account {name!r} is root; stages never run as root.")
    return entry


def _switched(name: str) -> Account:
    entry = _entry(name)
    if os.geteuid() != 0:
        return Account(name, entry.pw_dir, ("sudo", "-n", "-u", name, "--"))
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ProcessingError("The program setpriv (util-linux), which gives up root's rights for stages, is missing.")
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
    )


def default(stage_account: str | None) -> Account:
    """Return the account that stages run under by default.

    :param stage_account: the setting of that name.
    :raises ProcessingError: the service is root and no other account is set, or the account cannot be used.
    """
    if os.geteuid() == 0:
        if not stage_account:
            raise ProcessingError(
                "Stages never run as root: run the service under another account, or set processing.stage_account."
            )
        return _switched(stage_account)
    entry = pwd.getpwuid(os.geteuid())
    if stage_account and stage_account != entry.pw_name:
        return _switched(stage_account)
    return Account(entry.pw_name, entry.pw_dir)


def resolve(user_account: str, owner: str, stage_account: str | None, allowed: Collection[str]) -> Account:
    """Return the account for a workflow's ``userAccount``.

    The owner's name stands for the default account: station accounts need not be Unix accounts. Any other account
    must be listed in the settings.

    :raises ProcessingError: an account that is not listed, or that cannot be used.
    """
    if user_account in allowed:
        return _switched(user_account)
    standard = default(stage_account)
    if user_account in ("", owner, standard.name):
        return standard
    raise ProcessingError(
        f"User account {user_account!r} is not listed in processing.user_accounts; stages of {owner!r} run under "
        f"{standard.name!r}."
    )
