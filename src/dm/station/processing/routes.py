"""The routes table of the Processing Service."""

from __future__ import annotations

from dm.common.health import Health
from dm.common.web.common import reset_alarms
from dm.common.web.routes import MANAGER, Route
from dm.station.processing.job_routes import job_routes
from dm.station.processing.jobs import Jobs
from dm.station.processing.logbook import Logbook
from dm.station.processing.outputs import Outputs
from dm.station.processing.submissions import Submissions
from dm.station.processing.workflow_routes import workflow_routes
from dm.station.processing.workflows import Workflows


def routes(  # noqa: PLR0917 - one for each noun
    workflows: Workflows, submissions: Submissions, jobs: Jobs, outputs: Outputs, logbook: Logbook, health: Health
) -> list[Route]:
    """Return the table, bound to the use cases."""
    return [
        *workflow_routes(workflows),
        *job_routes(submissions, jobs, outputs, logbook),
        reset_alarms(health, MANAGER),
    ]
