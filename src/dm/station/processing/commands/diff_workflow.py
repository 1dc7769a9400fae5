"""``dm-diff-workflow``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dm.common.command import command, option
from dm.station.processing.api import WorkflowDifference, WorkflowProcApi
from dm.station.processing.commands.workflow_options import read_spec, spec_options


@command("dm-diff-workflow", api="dm.station.processing.api:WorkflowProcApi")
@option("--name", "--workflow-name", "name", help="Workflow name; with a file: default is the name in the file.")
@option("--owner", "--workflow-owner", "owner", help="Owner; default: yourself, or the owner in the file.")
@option("--from-revision", type=click.IntRange(1), help="The earlier revision; default: the one before.")
@option("--to-revision", type=click.IntRange(1), help="The later revision; default: the newest.")
@option("--summary", is_flag=True, help="Print which stages and keys differ instead of the text.")
@spec_options
def main(  # noqa: PLR0917 - given by name
    api: WorkflowProcApi,
    name: str | None,
    owner: str | None,
    from_revision: int | None,
    to_revision: int | None,
    summary: bool,
    py_spec: Path | None,
    json_spec: Path | None,
) -> Any:
    """Show what differs between two revisions of a workflow, or between the stored one and a file.

    Prints nothing when there is no difference.
    """
    if py_spec or json_spec:
        if from_revision or to_revision:
            raise click.UsageError("Give a file or revisions, not both.")
        found = _with_file(api, name, owner, read_spec(py_spec, json_spec))
    elif name is None:
        raise click.UsageError("Give --name, or a file.")
    else:
        found = api.diffWorkflowVersions(owner or api.username, name, from_revision, to_revision)
    return found if summary else (found["text"].rstrip("\n") or None)


def _with_file(api: WorkflowProcApi, name: str | None, owner: str | None, spec: dict[str, Any]) -> WorkflowDifference:
    from dm.station.processing import differences, specs

    new = specs.checked(spec, owner or api.username)
    old = api.getWorkflowByName(owner or new["owner"], name or new["name"]).data
    return WorkflowDifference(differences.difference(old, new, ("stored", "file")))
