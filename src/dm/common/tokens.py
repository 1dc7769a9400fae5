"""What an API token looks like: ``dmt_<32 hexadecimal digits>_<secret>``.

The digits are the token's id, which is no secret; the rest is 256 random bits. A token stands in a login file or login
form in the password's place, or in the header ``Authorization: Bearer``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from dataclasses import dataclass, field

_TOKEN = re.compile(r"dmt_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Token:
    """A token taken apart. :param id: canonical UUID text."""

    id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The token as its user writes it."""
        return f"dmt_{uuid.UUID(self.id).hex}_{self.secret}"

    @property
    def secret_hash(self) -> bytes:
        """What is stored: SHA-256 is enough for a secret that nobody can guess."""
        return hashlib.sha256(self.secret.encode()).digest()


def new() -> Token:
    """Return a token nobody has seen."""
    return Token(str(uuid.uuid4()), secrets.token_urlsafe(32))


def parse(text: str) -> Token | None:
    """Take a token apart; ``None`` for anything else, such as a password."""
    match = _TOKEN.fullmatch(text)
    return Token(str(uuid.UUID(match[1])), match[2]) if match else None


def is_token(text: str | None) -> bool:
    """Whether the text is a token rather than a password."""
    return text is not None and _TOKEN.fullmatch(text) is not None
