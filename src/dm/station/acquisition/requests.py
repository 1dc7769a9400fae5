"""What a user wishes, checked completely before anything starts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dm.common import statuses, timestamps
from dm.common.errors import InvalidArgument, InvalidObjectState, ServiceUnavailable
from dm.common.paths import display
from dm.station.acquisition import sources, spec, stored
from dm.station.acquisition.completion import look
from dm.station.acquisition.plugins.base import Order, Plugin
from dm.station.acquisition.rules import choice
from dm.station.acquisition.rules.base import RuleContext
from dm.station.acquisition.site import Grant
from dm.station.acquisition.sources import Place
from dm.station.acquisition.store import Document
from dm.station.acquisition.task import DAQ, Task
from dm.station.acquisition.transports.base import FileStamp, Source
from dm.station.acquisition.watch.scan import Walk, kind_of

if TYPE_CHECKING:
    from dm.station.acquisition.parts import Parts


@dataclass(frozen=True)
class Wish:
    """A DAQ or upload that somebody wants.

    :param echo: the keys as given. :param claim: what may run only once at a time.
    :param origin: the same for all DAQs and uploads of this directory to this place.
    """

    kind: str
    experiment: dict[str, Any]
    data_directory: str
    spec: spec.TaskSpec
    echo: dict[str, Any]
    place: Place
    plugins: list[Plugin]
    claim: str
    origin: str


def wish(kind: str, parts: Parts, experiment: dict[str, Any], directory: str, task_info: dict[str, Any]) -> Wish:
    """Read a request for a known experiment. :raises InvalidArgument: anything that cannot be."""
    read, echo = spec.parse(task_info)
    if kind == DAQ and read.only is not None:
        raise InvalidArgument("experimentFilePath names a single file; that is for uploads, not for DAQs.")
    place = sources.parse(directory, parts.settings, experiment, read.root)
    sources.refuse_secrets(place, _secrets(parts))
    if place.in_place or read.skip_transfer:
        read, echo = stored.settle(read, echo, place.source, experiment)
    if read.upload_data_directory_on_exit:
        last = sources.parse(read.upload_data_directory_on_exit, parts.settings, experiment, read.root)
        sources.refuse_secrets(last, _secrets(parts))
    known = {plugin.name for plugin in parts.plugins}
    for name in read.skip_plugins:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise InvalidArgument(f"skipPlugins names {name!r}, which is no processing plugin here (known: {listed}).")
    asked = {**echo, "workflowArgs": read.workflow_args}
    plugins = [
        plugin
        for plugin in parts.plugins
        if plugin.name not in read.skip_plugins
        and not (read.skip_catalog and plugin.order == Order.CATALOG)
        and plugin.applies(asked)
    ]
    source = place.source
    _check_rule(kind, read, parts, source)
    needs = [f"{source.scheme}://{source.host or ''}:{source.port or ''}{display(source.root)}", int(experiment["id"])]
    options = [] if kind == DAQ else [json.dumps(echo, sort_keys=True)]
    return Wish(
        kind,
        experiment,
        directory,
        read,
        echo,
        place,
        plugins,
        claim=_hash(kind, *needs, *options),
        origin=f"{parts.station}:{_hash(*needs, read.root, display(read.destination))[:32]}",
    )


def _check_rule(kind: str, read: spec.TaskSpec, parts: Parts, source: Source) -> None:
    """Check that there is the completion rule asked for, by making it."""
    if read.completion_args and not read.completion_rule and kind != DAQ:
        raise InvalidArgument("completionArgs of an upload need completionRule, which names the rule they are for.")
    default = parts.settings.completion_rule if kind == DAQ else choice.DEFAULT
    root = source.root if source.is_local else None
    text = read.completion_rule or default
    choice.build(text, read.completion_args, parts.settings.completion, RuleContext(root)).close()


def _secrets(parts: Parts) -> tuple[Path, ...]:
    """Return what never is data: the service's own secrets and those of its plugins."""
    return (*parts.secrets, *(path for plugin in parts.plugins for path in plugin.secrets))


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def check(wish: Wish, parts: Parts) -> None:
    """Check what the request names: directory, single file, workflow.

    :raises DmException: naming it.
    """
    transport = sources.choose(wish.place.source, parts.transports)
    transport.check(wish.place.source)
    if wish.spec.only is not None and wish.place.source.is_local:
        stamp, mode = look(wish.place.source.root + b"/" + wish.spec.only)
        if stamp is None or kind_of(mode) != "file":
            what = "does not exist" if stamp is None else "is no regular file"
            raise InvalidArgument(
                f"experimentFilePath = {display(wish.spec.only)!r} {what} in {display(wish.place.source.root)!r}."
            )
    asked = {**wish.echo, "workflowArgs": wish.spec.workflow_args, "experimentName": wish.experiment["name"]}
    if wish.spec.workflow_name and not any(plugin.order == Order.WORKFLOW for plugin in wish.plugins):
        raise InvalidArgument(
            f"workflowName = {wish.spec.workflow_name!r} needs the workflow plugin, which is not in use here."
        )
    for plugin in wish.plugins:
        plugin.check(asked)
    parts.site.warm()


def document(wish: Wish, task_id: str, station: str, owner: str, grant: Grant) -> Document:
    """Return the document of a new task. Texts from outside are kept as ASCII JSON: any bytes, dots and signs fit."""
    started = time.time_ns()
    return {
        "_id": task_id,
        "kind": wish.kind,
        "order": f"{wish.kind}:{started:020d}",
        "open": True,
        "status": statuses.PENDING,
        "station": station,
        "owner": owner,
        "claim": wish.claim,
        "place": wish.origin,
        "root": wish.spec.root,
        "request": json.dumps({"dataDirectory": wish.data_directory, "taskInfo": wish.echo}),
        "experiment": json.dumps(wish.experiment, default=str),
        "grant": {"id": grant.id, "secret": grant.secret},
        "plugins": [plugin.name for plugin in wish.plugins],
        "startTime": timestamps.now(),
        "errorMessage": "",
    }


def existing(wish: Wish, task: Task) -> Iterator[tuple[bytes, FileStamp]]:
    """Return what lies in the data directory now.

    :raises ServiceUnavailable: it cannot be listed, so that "new" would have no meaning.
    """
    if not task.source.is_local:
        for entry in task.transport.walk(task.source):
            yield entry.path, entry.stamp
        return
    walk = Walk(task.source.root, wish.spec.selection().enters)
    for entry in walk:
        yield entry.path, entry.stamp
    if b"" in walk.problems:
        raise ServiceUnavailable(walk.problems[b""])


def finished(document: Document) -> None:
    """Check that a task is over. :raises InvalidObjectState: it is not."""
    if document["status"] not in statuses.INACTIVE:
        raise InvalidObjectState(f"{document['kind']} {document['_id']} is {document['status']}; stop it first.")
