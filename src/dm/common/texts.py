"""Texts of others as databases, logs and pages can hold them."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return a text with NUL and lone surrogates, which neither PostgreSQL nor UTF-8 can hold, as escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
