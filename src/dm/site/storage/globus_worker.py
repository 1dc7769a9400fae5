"""The thread that keeps Globus groups equal to the experiments' members, and what health says of it."""

from __future__ import annotations

from dm.common.health import Health, Level
from dm.common.rounds import Rounds
from dm.site.storage.globus_groups import GlobusGroups

_STOP_SECONDS = 2.0


class GlobusWorker:
    """Works in the background from :meth:`start` to :meth:`stop`, where the site has Globus groups.

    :param health: gets the check ``globus`` and its metrics.
    """

    def __init__(self, groups: GlobusGroups, health: Health) -> None:
        self.groups = groups
        pause = groups.sync_seconds if groups.configured else 0.0
        self._rounds = Rounds("globus-groups", self._round, retry_seconds=pause, first_seconds=pause)
        watch(health, groups)

    def start(self) -> None:
        """Begin."""
        if self.groups.configured:
            self._rounds.start()

    def stop(self) -> None:
        """End within seconds; a call to Globus that hangs is not waited for."""
        self._rounds.stop(_STOP_SECONDS)

    def _round(self) -> float:
        self.groups.round(self._rounds.stopping)
        return self.groups.sync_seconds


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
