"""Which Unix account a stage runs under. Never root: a service that runs as root gives its stages another account."""

from __future__ import annotations

from collections.abc import Collection

from cachetools.func import ttl_cache

from dm.common.accounts import Account, chosen, switched
from dm.common.errors import ProcessingError

__all__ = ["Account", "default", "resolve"]


_SECONDS = 5.0  # for which the account database is taken at its word


@ttl_cache(maxsize=16, ttl=_SECONDS)
def default(stage_account: str | None) -> Account:
    """Return the account that stages run under by default.

    :param stage_account: the setting of that name.
    :raises ProcessingError: the service is root and no other account is set, or the account cannot be used.
    """
    return chosen(stage_account, "stages", "processing.stage_account")


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


@ttl_cache(maxsize=64, ttl=_SECONDS)
def _switched(name: str) -> Account:
    return switched(name, "stages")
