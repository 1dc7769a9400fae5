"""Login throttling: guessing one account's password becomes slow, and nobody else notices.

Two token buckets per account, existing or not: one for each address that tries (10 failures at once, then 20 an
hour) and one for all addresses together (30, then 30 an hour). One address can therefore never use up what the others
have left, and an account sees fewer than 100 failures an hour whatever the number of addresses.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dm.common.errors import AuthenticationError, ServiceLimit

HOUR = 3600.0
MAX_ACCOUNTS = 20_000


class TooManyLogins(ServiceLimit):
    """A login refused unseen because too many failed before.

    :param retry_after: seconds after which trying makes sense.
    """

    http_status = 429

    def __init__(self, retry_after: float) -> None:
        self.retry_after = max(1, round(retry_after))
        super().__init__(f"Too many failed logins for this account; try again in {self.retry_after} seconds.")

    def to_wire(self, request_id: str | None = None) -> dict[str, object]:
        """Go over the wire as the published class."""
        return super().to_wire(request_id) | {"errorClass": ServiceLimit.__name__}


@dataclass
class _Bucket:
    capacity: float
    per_hour: float
    tokens: float
    at: float

    def refill(self, now: float) -> None:
        self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.per_hour / HOUR)
        self.at = now

    def wait(self) -> float:
        """Seconds until one more try is allowed."""
        return max(0.0, (1 - self.tokens) * HOUR / self.per_hour)


class LoginThrottle:
    """Counts failures and delays further tries.

    :param in_flight: tries of one account that may be checked at the same time; more wait for their turn.
    :param waiting: tries that may wait, over all accounts; more are refused.
    :param patience: seconds a try waits at most.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        in_flight: int = 16,
        waiting: int = 40,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._in_flight_limit = in_flight
        self._waiting_limit = waiting
        self._patience = patience
        self._clock = clock
        self._changed = threading.Condition()
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()
        self._in_flight: dict[bytes, int] = {}
        self._waiting = 0

    @contextmanager
    def attempt(self, username: str, remote: str) -> Iterator[None]:
        """Wrap one password check; an :class:`AuthenticationError` inside counts as a failure.

        :raises TooManyLogins: without running the body.
        """
        account = _key(username.strip().lower())
        address = _key(username.strip().lower(), remote)
        self._enter(account, address)
        failed: bool | None = None
        try:
            yield
            failed = False
        except AuthenticationError:
            failed = True
            raise
        finally:
            self._leave(account, address, failed)

    def _enter(self, account: bytes, address: bytes) -> None:
        give_up = self._clock() + self._patience
        with self._changed:
            while True:
                delay = max(self._bucket(address, 10, 20).wait(), self._bucket(account, 30, 30).wait())
                if delay > 0:
                    raise TooManyLogins(delay)
                if self._in_flight.get(account, 0) < self._in_flight_limit:
                    self._in_flight[account] = self._in_flight.get(account, 0) + 1
                    return
                left = give_up - self._clock()
                if left <= 0 or self._waiting >= self._waiting_limit:
                    raise TooManyLogins(5)
                self._waiting += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._waiting -= 1

    def _leave(self, account: bytes, address: bytes, failed: bool | None) -> None:
        """Book the outcome; ``None`` (an error on our side) costs nothing."""
        with self._changed:
            if failed:
                self._bucket(address, 10, 20).tokens -= 1
                self._bucket(account, 30, 30).tokens -= 1
            elif failed is False:
                self._buckets.pop(address, None)
            self._in_flight[account] -= 1
            if not self._in_flight[account]:
                del self._in_flight[account]
            self._changed.notify_all()

    def _bucket(self, key: bytes, capacity: float, per_hour: float) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= 2 * MAX_ACCOUNTS:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(capacity, per_hour, capacity, now)
        bucket.refill(now)
        self._buckets.move_to_end(key)
        return bucket


def _key(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[:16]
