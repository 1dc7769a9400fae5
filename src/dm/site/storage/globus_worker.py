"""The thread that keeps Globus groups equal to the experiments' members, and what health says of it."""

from __future__ import annotations

import logging
import threading

from dm.common.errors import DmException
from dm.common.health import Health, Level
from dm.site.identity import audit
from dm.site.storage.globus_groups import GlobusGroups

LOG = logging.getLogger(__name__)
ACTOR = "globus-groups"
_STOP_SECONDS = 2.0


class GlobusWorker:
    """Works in the background from :meth:`start` to :meth:`stop`, where the site has Globus groups.

    :param health: gets the check ``globus`` and its metrics.
    """

    def __init__(self, groups: GlobusGroups, health: Health) -> None:
        self.groups = groups
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        watch(health, groups)

    def start(self) -> None:
        """Begin."""
        if self.groups.configured:
            self._thread = threading.Thread(target=self._run, name="globus-groups", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End within seconds; a call to Globus that hangs is not waited for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
            self._thread = None

    def _run(self) -> None:
        with audit.acting(ACTOR):
            while not self._stop.wait(self.groups.sync_seconds):
                try:
                    self.groups.round(self._stop)
                except DmException as error:
                    LOG.warning("Globus groups wait: %s", error)
                except Exception:
                    LOG.exception("Globus groups")


def watch(health: Health, groups: GlobusGroups) -> None:
    """Add the check ``globus`` and its metrics; Globus itself is not asked."""
    if not groups.configured:
        return
    count = health.gauge("globus_groups", "Experiments with a Globus group.")
    failing = health.gauge("globus_groups_failing", "Groups that could not be compared with Globus.")
    unknown = health.gauge("globus_members_unknown", "Members whose identities Globus does not know.")

    def check() -> tuple[Level, str]:
        all_groups, refused, strangers = groups.troubles()
        count.set(all_groups)
        failing.set(refused)
        unknown.set(strangers)
        said = f"{all_groups} groups, {strangers} members unknown to Globus"
        if refused:
            return "warning", f"{said}; {refused} could not be compared, see dm-list-globus-groups"
        return "ok", said

    health.check("globus", check)
