"""Argon2id password hashes, checked in the same time whether or not the user exists."""

from __future__ import annotations

import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

# OWASP's floor is 19 MiB, t=2, p=1; this takes about 50 ms.
_HASHER = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1, type=Type.ID)
# However many people log in at once, hashing takes this much memory and these many cores at most.
_AT_ONCE = threading.BoundedSemaphore(4)
_LONGEST = 1000
_unknown_user: list[str] = []


def hashed(password: str) -> str:
    """Return the Argon2id hash text of a password."""
    with _AT_ONCE:
        return _HASHER.hash(password)


def matches(password: str, stored: str | None) -> bool:
    """Whether the password is the one hashed in ``stored``; ``None`` costs the same time and never matches.

    Empty passwords and those longer than any we accept never match.
    """
    usable = 0 < len(password) <= _LONGEST and "\0" not in password
    with _AT_ONCE:
        if not _unknown_user:
            _unknown_user.append(_HASHER.hash("no account has this hash"))
        try:
            _HASHER.verify(stored or _unknown_user[0], password if usable else "-")
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False
    return usable and stored is not None


def outdated(stored: str) -> bool:
    """Whether a stored hash was made with weaker parameters than today's."""
    return _HASHER.check_needs_rehash(stored)
