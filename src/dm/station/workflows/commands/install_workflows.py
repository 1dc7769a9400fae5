"""``dm-install-workflows``"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dm.common.command import argument, command, option
from dm.common.errors import ObjectNotFound
from dm.common.records import DmObject
from dm.station.processing.api import WorkflowProcApi
from dm.station.workflows import standard

_COMPARED = ("description", "arguments", "stages", "priority", "maxConcurrentJobs", "onLost")


@command("dm-install-workflows", api="dm.station.processing.api:WorkflowProcApi")
@argument("names", nargs=-1, metavar="[NAME]...")
@option("--owner", help="Owner of the workflows. Default: the user.")
@option("--list", "listing", is_flag=True, help="List the standard workflows and whether they are installed.")
@option("--show", is_flag=True, help="Print the specification files instead, to be copied and changed.")
def main(
    api: WorkflowProcApi, names: tuple[str, ...], owner: str | None, listing: bool, show: bool
) -> Iterator[DmObject | str]:
    """Install the standard workflows, or those named.

    Tells of each whether it was added, updated, or is unchanged. One that has been changed at the station gets its
    standard form back; to keep a change, install it under another name (--show, dm-add-workflow).
    """
    chosen = list(names) or standard.names()
    specs = {name: standard.spec(name) for name in chosen}  # a wrong name changes nothing
    if show:
        yield from (standard.text(name).rstrip() for name in chosen)
        return
    for name, spec in specs.items():
        wanted = {**spec, "owner": owner or api.username}
        state = _state(api, wanted)
        if not listing and state != "unchanged":
            api.upsertWorkflow(wanted)
            state = "added" if state == "missing" else "updated"
        yield DmObject({"name": name, "owner": wanted["owner"], "state": state, "description": _first(spec)})


def _state(api: WorkflowProcApi, wanted: dict[str, Any]) -> str:
    """Return what is with a workflow: ``missing``, ``unchanged`` or ``different``."""
    try:
        there = dict(api.getWorkflowByName(wanted["owner"], wanted["name"]))
    except ObjectNotFound:
        return "missing"
    same = all((there.get(key) or None) == (wanted.get(key) or None) for key in _COMPARED)
    return "unchanged" if same else "different"


def _first(spec: dict[str, Any]) -> str:
    """Return the first sentence of a description."""
    return " ".join(str(spec["description"]).split()).partition(". ")[0].rstrip(".")
