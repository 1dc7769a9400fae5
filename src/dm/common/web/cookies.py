"""The session cookie, read tolerantly and written strictly.

Python's own cookie parser is quadratic on back-slashes (CVE-2024-7592) and drops everything on one odd part; a
published client sends the whole text of a Set-Cookie header back as its Cookie.
"""

from __future__ import annotations

import re
from email.utils import formatdate

NAME = "SESSIONID"
MAX_CANDIDATES = 8
_ID = re.compile(r"[A-Za-z0-9_-]{16,256}\Z")


def session_ids(header: str) -> list[str]:
    """Return what could be session ids in a Cookie header, in order, without duplicates, at most 8.

    Linear in the header's length. Other cookies and attributes (``expires=...``, ``Path=/``) are passed over.
    """
    found: list[str] = []
    for part in header.replace(",", ";").split(";"):
        name, _, value = part.partition("=")
        value = value.strip().strip('"')
        if name.strip() == NAME and _ID.match(value) and value not in found:
            found.append(value)
            if len(found) == MAX_CANDIDATES:
                break
    return found


def set_session(session_id: str, expires: float) -> str:
    """Return the Set-Cookie value of a new session.

    :param expires: epoch seconds at which the browser forgets it.
    """
    return _cookie(session_id, formatdate(expires, usegmt=True))


def end_session() -> str:
    """Return the Set-Cookie value that makes a client forget its session."""
    return _cookie("", "Thu, 01 Jan 1970 00:00:00 GMT")


def _cookie(value: str, expires: str) -> str:
    return f"{NAME}={value}; expires={expires}; Path=/; Secure; HttpOnly; SameSite=Strict"
