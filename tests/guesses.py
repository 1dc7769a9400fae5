"""Guesses at passwords, for the tests of what slows them down."""

from __future__ import annotations

from dm.common.errors import AuthenticationError
from dm.common.web.throttle import LoginThrottle, TooManyLogins


def fail(throttle: LoginThrottle, username: str = "d123456", remote: str = "10.0.0.1") -> bool:
    """Try a wrong password; return whether it was even looked at."""
    try:
        with throttle.attempt(username, remote):
            raise AuthenticationError("Incorrect username or password.")
    except AuthenticationError:
        return True
    except TooManyLogins:
        return False
