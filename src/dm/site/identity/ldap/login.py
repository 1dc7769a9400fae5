"""Checking passwords at the directory, without ever hanging at it.

Whoever logs in waits at most ``login_timeout_seconds``. The errands themselves run in a pool of
``login_connections`` threads, so that a directory that hangs holds so many threads and no more; after a few failures
in a row nobody waits at all for a while.

A name the site does not know, and a wrong password of somebody the directory is not asked about, cost the same
operations at the directory as a wrong password there: neither the answer nor its time tells who exists.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from dm.common.errors import DmException, ServiceUnavailable
from dm.site.identity.ldap import connection as ldap
from dm.site.identity.ldap.connection import Attempt, Directory

LOG = logging.getLogger(__name__)
T = TypeVar("T")

_FAILURES = 3
_PAUSE_SECONDS = 5.0
_LONGEST_PAD_SECONDS = 1.0
_AWAY = "The user directory does not answer; try again in a moment."


class Breaker:
    """Says whether to try at all: after some failures in a row, only one errand every few seconds."""

    def __init__(self, failures: int = _FAILURES, pause: float = _PAUSE_SECONDS) -> None:
        self._failures = failures
        self._pause = pause
        self._count = 0
        self._next = 0.0
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether errands are turned away."""
        with self._lock:
            return self._count >= self._failures

    def admit(self) -> None:
        """Return when the errand may be tried. :raises ServiceUnavailable: not now."""
        with self._lock:
            if self._count < self._failures:
                return
            now = time.monotonic()
            if now < self._next:
                raise ServiceUnavailable(_AWAY)
            self._next = now + self._pause

    def note(self, good: bool) -> None:
        """Tell how an errand ended."""
        with self._lock:
            self._count = 0 if good else self._count + 1
            if not good:
                self._next = time.monotonic() + self._pause


class DirectoryLogin:
    """The site's second way to check a password; see :class:`dm.site.identity.users.Users`."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._settings = directory.settings
        self._pool = ThreadPoolExecutor(self._settings.login_connections, "ldap-login")
        self._places = threading.BoundedSemaphore(self._settings.login_connections)
        self.breaker = Breaker()
        self._typical_refusal = 0.0

    def close(self) -> None:
        """End the threads; those waiting for the directory end by its time limits."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def asks_about(self, has_password: bool) -> bool:
        """Whether the directory is asked about a user. :param has_password: one of DM's own."""
        return self._settings.login == "all" or (self._settings.login == "without-password" and not has_password)

    @property
    def enabled(self) -> bool:
        """Whether the directory checks passwords at all."""
        return self._settings.login != "off"

    def matches(self, username: str, password: str, known: bool) -> bool:
        """Whether the directory takes this password for the user's.

        :param known: ``False`` goes through the same motions and always answers no.
        :raises ServiceUnavailable: it does not answer in time, or too many wait for it already.
        """
        self.breaker.admit()
        if not self._places.acquire(blocking=False):
            raise ServiceUnavailable("Too many logins wait for the user directory; try again in a moment.")
        attempt = Attempt(self._settings.login_timeout_seconds)
        try:
            future = self._pool.submit(self._check, attempt, username, password, known)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return self._result(future, attempt)

    def _result(self, future: Future[bool], attempt: Attempt) -> bool:
        try:
            good = future.result(self._settings.login_timeout_seconds)
        except FutureTimeout:
            attempt.abort()
            self.breaker.note(good=False)
            raise ServiceUnavailable(_AWAY) from None
        except DmException:
            self.breaker.note(good=False)
            raise
        except Exception as error:  # ldap3 on an answer that is none
            LOG.warning("login at the directory: %s: %s", type(error).__name__, ldap.reason(error))
            self.breaker.note(good=False)
            raise ServiceUnavailable(_AWAY) from error
        self.breaker.note(good=True)
        return good

    def _check(self, attempt: Attempt, username: str, password: str, known: bool) -> bool:
        template = self._settings.user_dn_template
        with self._directory.opened(attempt, bind=template is None) as connection:
            dn = self._dn(connection, username) if template is None else _filled(template, username)
            attempt.left  # noqa: B018 - raises when the time is over
            began = time.monotonic()
            real = known and dn is not None and bool(password)
            if not real:
                dn = f"cn={secrets.token_hex(8)},{self._settings.people_base}"
            code = ldap.bind(connection, dn or "", password or "-")
            spent = time.monotonic() - began
        if code == ldap.SUCCESS:
            return real
        if code not in ldap.REFUSED:
            raise ServiceUnavailable(_AWAY)
        if real:
            # How long the directory takes to find a password wrong: hashing, mostly.
            self._typical_refusal += (spent - self._typical_refusal) * 0.3
        else:
            time.sleep(min(max(self._typical_refusal - spent, 0.0), _LONGEST_PAD_SECONDS, attempt.left))
        return False

    def _dn(self, connection: object, username: str) -> str | None:
        """Return the DN of the one entry of a user, or ``None``."""
        text = self._settings.user_filter.replace("{username}", ldap.escaped_filter(username or secrets.token_hex(8)))
        found = [entry["dn"] for entry in ldap.search(connection, self._settings.people_base, text, ["uid"])]
        if len(found) > 1:
            LOG.warning("%d entries fit user %s; nobody can log in so", len(found), ascii(username[:80]))
        return found[0] if len(found) == 1 else None


def _filled(template: str, username: str) -> str:
    return template.replace("{username}", ldap.escaped_dn(username))
