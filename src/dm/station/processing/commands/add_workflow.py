"""``dm-add-workflow``"""

from __future__ import annotations

from pathlib import Path

from dm.common.command import command
from dm.station.processing.api import Workflow, WorkflowProcApi
from dm.station.processing.commands.workflow_options import read_spec, spec_options


@command("dm-add-workflow", api="dm.station.processing.api:WorkflowProcApi")
@spec_options
def main(api: WorkflowProcApi, py_spec: Path | None, json_spec: Path | None) -> Workflow:
    """Add a workflow from a specification file."""
    return api.addWorkflow(read_spec(py_spec, json_spec))
