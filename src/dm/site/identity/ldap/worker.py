"""The thread that keeps the directory up to date, and what health says of it."""

from __future__ import annotations

import logging

from dm.common.caller import Caller
from dm.common.errors import ServiceUnavailable
from dm.common.health import Health, Level
from dm.common.rounds import Rounds
from dm.site.identity.ldap.connection import Attempt
from dm.site.identity.ldap.keeper import ACTOR, DirectoryKeeper
from dm.site.identity.ldap.login import DirectoryLogin

LOG = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_PAUSE_SECONDS = 3.0
_STOP_SECONDS = 2.0
_LATE_SECONDS = 30.0


class DirectoryWorker:
    """Works in the background from :meth:`start` to :meth:`stop`; of several processes one at a time."""

    def __init__(self, keeper: DirectoryKeeper) -> None:
        self._keeper = keeper
        self._rounds = Rounds("directory", self._round, retry_seconds=_PAUSE_SECONDS, caller=Caller(actor=ACTOR))
        self._attempt = Attempt()
        self._away = False

    def start(self) -> None:
        """Give experiments their numbers and begin. :raises ConfigurationError: ``gid_first`` was changed."""
        self._keeper.prepare()
        self._rounds.start()

    def stop(self) -> None:
        """End within seconds; what is not written yet is written after the next start."""
        if not self._rounds.stop(_STOP_SECONDS):
            self._attempt.abort()
            self._rounds.stop(_STOP_SECONDS)

    def _round(self) -> float:
        """Do what there is to do; return how many seconds to wait."""
        self._attempt = Attempt()
        try:
            more = self._keeper.catch_up(self._attempt)
        except ServiceUnavailable as error:
            if not self._away:
                LOG.warning("the directory will be told later: %s", error)
            self._away = True
            return _PAUSE_SECONDS
        if self._away:
            LOG.info("the directory answers again")
        self._away = False
        return 0.0 if more else _POLL_SECONDS


def watch(health: Health, keeper: DirectoryKeeper, login: DirectoryLogin) -> None:
    """Add the check ``directory`` and the metrics to a service's health; neither asks the directory itself."""
    waiting = health.gauge("directory_changes_waiting", "Changes that LDAP has not been told of.")
    oldest = health.gauge("directory_oldest_seconds", "Age of the oldest of them.")
    drift = health.gauge("directory_drift", "Differences found by the last comparison of LDAP with the database.")
    age = health.gauge("directory_compared_seconds", "Age of the last comparison.")
    answers = health.gauge("directory_login_answers", "0 while logins are turned away because LDAP does not answer.")

    def check() -> tuple[Level, str]:
        state = keeper.state()
        last = state["last"] or {}
        waiting.set(state["waiting"])
        oldest.set(state["oldest"])
        drift.set(last.get("drift", 0))
        age.set(state["age"])
        answers.set(0 if login.breaker.open else 1)
        complaints = []
        if login.breaker.open:
            complaints.append("LDAP does not answer logins")
        if state["oldest"] > _LATE_SECONDS:
            complaints.append(f"{state['waiting']} changes wait for LDAP, the oldest for {state['oldest']:.0f} s")
        if held := last.get("heldBack"):
            complaints.append(f"{held} removals from LDAP are held back; look with dm-sync-groups --dry-run")
        if found := last.get("drift"):
            complaints.append(f"LDAP had been changed by others in {found} ways; see the audit log")
        if obstacles := last.get("inTheWayCount"):
            complaints.append(f"{obstacles} groups cannot be made, others have their names or numbers")
        if refused := last.get("refusedCount", 0) + last.get("people", {}).get("refusedCount", 0):
            complaints.append(f"LDAP refused {refused} entries; look with dm-sync-groups --dry-run and into the log")
        if state["withoutNumber"]:
            complaints.append(f"{state['withoutNumber']} experiments have no group number, raise storage.ldap.gid_last")
        if complaints:
            return "warning", "; ".join(complaints)
        return "ok", f"LDAP is up to date, compared {state['age'] / 60:.0f} min ago"

    health.check("directory", check)
