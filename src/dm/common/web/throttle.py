"""Login throttling: guessing one account's password becomes slow, and nobody else notices.

Two limits per account, existing or not: one for each address that tries (10 failures at once, then 20 an hour) and one
for all addresses together (30, then 30 an hour). One address can therefore never use up what the others have left, and
an account sees fewer than 100 failures an hour whatever the number of addresses.

What is left is kept by a :class:`Tally`: in memory, or in a database for all processes of a service.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dm.common.errors import AuthenticationError, InvalidSession, ServiceLimit, ServiceUnavailable

HOUR = 3600.0
MAX_ACCOUNTS = 20_000
_POLL = 0.05
_TOKEN_ID = 36  # characters of a token that say which one it is


@dataclass(frozen=True)
class Limit:
    """How many failures are allowed. :param at_once: after a quiet time. :param per_hour: from then on."""

    at_once: float
    per_hour: float

    def refilled(self, left: float, seconds: float) -> float:
        """Return what is left some seconds later."""
        return min(self.at_once, left + max(0.0, seconds) * self.per_hour / HOUR)

    def wait(self, left: float) -> float:
        """Return the seconds until one more try is allowed."""
        return max(0.0, (1 - left) * HOUR / self.per_hour)


FROM_ADDRESS = Limit(10, 20)
FROM_ANYWHERE = Limit(30, 30)


class TooManyLogins(ServiceLimit):
    """A login refused unseen because too many failed before.

    :param retry_after: seconds after which trying makes sense. :param what: there were too many of.
    """

    http_status = 429

    def __init__(self, retry_after: float, what: str = "failed logins for this account") -> None:
        self.retry_after = max(1, round(retry_after))
        super().__init__(f"Too many {what}; try again in {self.retry_after} seconds.")

    def to_wire(self, request_id: str | None = None) -> dict[str, object]:
        """Go over the wire as the published class."""
        return super().to_wire(request_id) | {"errorClass": ServiceLimit.__name__}


class UndecidedLogin(ServiceUnavailable):
    """A login that could not be decided, because one of those who know passwords does not answer.

    It counts as a failure: while that lasts, wrong guesses at the passwords known here would else be free.
    """

    def to_wire(self, request_id: str | None = None) -> dict[str, object]:
        """Go over the wire as the published class."""
        return super().to_wire(request_id) | {"errorClass": ServiceUnavailable.__name__}


class Tally(Protocol):
    """Keeps what is left of the limits. A try is taken before it is checked, so that many at once are no way around."""

    def take(self, account: str, remote: str) -> float | None:
        """Take one try.

        :returns: 0 - taken; seconds to wait - refused; ``None`` - all that is left is being checked at this moment.
        """
        ...

    def give(self, account: str, remote: str, failed: bool | None) -> None:
        """Say how a taken try ended. ``False`` forgives the address; ``None`` (an error on our side) costs nothing."""
        ...


@dataclass
class _Bucket:
    limit: Limit
    left: float
    at: float
    pending: int = 0

    @property
    def wait(self) -> float | None:
        """As :meth:`Tally.take` returns it."""
        if self.left >= 1:
            return 0.0
        return None if self.pending else self.limit.wait(self.left)


class MemoryTally:
    """A tally of one process. :param clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    @property
    def count(self) -> int:
        """How many accounts and addresses are remembered."""
        return len(self._buckets)

    def take(self, account: str, remote: str) -> float | None:
        """Take one try."""
        with self._lock:
            both = self._both(account, remote)
            waits = [bucket.wait for bucket in both]
            if any(waits):
                return max(wait or 0.0 for wait in waits)
            if None in waits:
                return None
            for bucket in both:
                bucket.left -= 1
                bucket.pending += 1
            return 0.0

    def give(self, account: str, remote: str, failed: bool | None) -> None:
        """Say how it ended."""
        with self._lock:
            both = self._both(account, remote)
            for bucket in both:
                bucket.pending = max(0, bucket.pending - 1)
                if not failed:
                    bucket.left = min(bucket.limit.at_once, bucket.left + 1)
            if failed is False:
                both[0].left = both[0].limit.at_once - both[0].pending
                if not both[0].pending:
                    self._buckets.pop(key_of(account, remote), None)

    def _both(self, account: str, remote: str) -> tuple[_Bucket, _Bucket]:
        return self._bucket(key_of(account, remote), FROM_ADDRESS), self._bucket(key_of(account), FROM_ANYWHERE)

    def _bucket(self, key: bytes, limit: Limit) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= 2 * MAX_ACCOUNTS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(limit, limit.at_once, now)
        bucket.left = limit.refilled(bucket.left, now - bucket.at)
        bucket.at = now
        self._buckets.move_to_end(key)
        return bucket


class LoginThrottle:
    """Counts failures and delays further tries.

    :param tally: keeps what is left; default: in memory.
    :param in_flight: tries of one account that this process checks at the same time; more wait for their turn.
    :param waiting: tries that may wait, over all accounts; more are refused.
    :param patience: seconds a try waits at most.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        tally: Tally | None = None,
        *,
        in_flight: int = 16,
        waiting: int = 40,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tally = tally or MemoryTally(clock)
        self._in_flight_limit = in_flight
        self._waiting_limit = waiting
        self._patience = patience
        self._clock = clock
        self._changed = threading.Condition()
        self._in_flight: dict[str, int] = {}
        self._waiting = 0

    @contextmanager
    def attempt(self, username: str, remote: str) -> Iterator[None]:
        """Wrap one password check; :class:`AuthenticationError` and :class:`UndecidedLogin` inside count as failures.

        :raises TooManyLogins: without running the body.
        """
        account = canonical(username)
        self._enter(account, remote)
        failed: bool | None = None
        try:
            yield
            failed = False
        except (AuthenticationError, UndecidedLogin):
            failed = True
            raise
        finally:
            try:
                self._tally.give(account, remote, failed)
            finally:
                self._leave(account)

    def _enter(self, account: str, remote: str) -> None:
        give_up = self._clock() + self._patience
        self._begin(account, give_up)
        try:
            while (wait := self._tally.take(account, remote)) is None:
                if self._clock() >= give_up:
                    raise TooManyLogins(5)
                with self._changed:
                    self._changed.wait(_POLL)  # another process may be the one that is checking
            if wait:
                raise TooManyLogins(wait)
        except BaseException:
            self._leave(account)
            raise

    def _begin(self, account: str, give_up: float) -> None:
        """Wait until this process may check one more of the account's tries."""
        with self._changed:
            while self._in_flight.get(account, 0) >= self._in_flight_limit:
                left = give_up - self._clock()
                if left <= 0 or self._waiting >= self._waiting_limit:
                    raise TooManyLogins(5)
                self._waiting += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._waiting -= 1
            self._in_flight[account] = self._in_flight.get(account, 0) + 1

    def _leave(self, account: str) -> None:
        with self._changed:
            self._in_flight[account] -= 1
            if not self._in_flight[account]:
                del self._in_flight[account]
            self._changed.notify_all()


class TokenGuesses:
    """Refuses an API token from an address where its id came with wrong secrets too often.

    A token's id is no secret. So that nobody can lock a token out by its id, one that was right from there within the
    hour is always looked at.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._right: OrderedDict[bytes, float] = OrderedDict()
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    @contextmanager
    def attempt(self, token: str, remote: str) -> Iterator[None]:
        """Wrap one look; an :class:`InvalidSession` inside counts as a wrong guess at the token's id.

        :raises TooManyLogins: without running the body.
        """
        key, whole = key_of(token[:_TOKEN_ID], remote), key_of(token, remote)
        now = self._clock()
        with self._lock:
            bucket = self._buckets.get(key)
            left = FROM_ADDRESS.refilled(bucket.left, now - bucket.at) if bucket else 1.0
            known = now - self._right.get(whole, -HOUR) < HOUR
        if left < 1 and not known:
            raise TooManyLogins(FROM_ADDRESS.wait(left), "wrong API tokens")
        try:
            yield
        except InvalidSession:
            self._note(key, whole)
            raise
        with self._lock:
            self._right[whole] = now
            self._right.move_to_end(whole)
            while len(self._right) > MAX_ACCOUNTS:
                self._right.popitem(last=False)

    def _note(self, key: bytes, whole: bytes) -> None:
        now = self._clock()
        with self._lock:
            self._right.pop(whole, None)
            bucket = self._buckets.setdefault(key, _Bucket(FROM_ADDRESS, FROM_ADDRESS.at_once, now))
            bucket.left = max(0.0, FROM_ADDRESS.refilled(bucket.left, now - bucket.at) - 1)
            bucket.at = now
            self._buckets.move_to_end(key)
            while len(self._buckets) > MAX_ACCOUNTS:
                self._buckets.popitem(last=False)


def canonical(username: str) -> str:
    """Return the one spelling under which an account's failures are counted."""
    return username.strip().lower()


def key_of(account: str, remote: str | None = None) -> bytes:
    """Return a short key of an account, from one address or from anywhere."""
    # no name a stranger thinks of looks like the key of another account
    text = f"anywhere\0{account}" if remote is None else f"address\0{remote}\0{account}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:16]
