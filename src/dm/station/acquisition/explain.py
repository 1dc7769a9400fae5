"""Why is this file not there? One honest sentence, and the facts it rests on.

Four places are asked: the source on disk, the ledger, storage (with the caller's own rights) and the services of
plugins that keep records (the catalog). A place that cannot be asked is said to be so.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from dm.common import timestamps
from dm.common.errors import DmException, ObjectNotFound
from dm.common.paths import decode, display, opened_parent
from dm.common.wire import literal
from dm.station.acquisition.judgement import Case, judge
from dm.station.acquisition.timeline import timeline
from dm.station.acquisition.transports.base import storable
from dm.station.acquisition.watch.scan import kind_of
from dm.station.acquisition.whereabouts import Candidate, Record, Sees, Wanted, described, responsible

if TYPE_CHECKING:
    from dm.common.web.routes import Principal
    from dm.station.acquisition.office import Office

_NOT_THEIRS = ("filtered", "hidden", "before")  # reasons: the file may be one of another experiment


def explain(office: Office, principal: Principal, wanted: Wanted, sees: Sees) -> Record:
    """Return why a file is where it is, or is not.

    :param sees: whether the caller may see a task. What lies at the source is told to managers of the station, and to
        others of files that the task takes.
    :returns: ``path``, ``reason`` (a word for programs), ``explanation`` (a sentence for people), and where known
        ``daqId``, ``kind``, ``experimentName``, ``experimentFilePath``, ``root``, ``ledger``, ``timeline``, ``source``,
        ``storage``, ``records``.
    """
    found = responsible(office, wanted, sees)
    if found is None:
        return _uncovered(office, principal, wanted)
    candidate, record = found
    source = _look(candidate)
    storage = _stat(office, principal, candidate.experiment["name"], candidate.target, candidate.spec.root)
    case = Case(office, candidate, record, source, storage)
    case.records = _look_up(case)
    reason, sentence = judge(case)
    if reason in _NOT_THEIRS and not principal.manages(office.parts.station):
        case.source = {}
    told: Record = {
        "path": decode(candidate.path),
        "displayPath": display(candidate.path),
        "reason": reason,
        "explanation": sentence,
        "daqId": candidate.id,
        "kind": candidate.kind,
        "status": case.status,
        "dataDirectory": candidate.place.source.text,
        "experimentName": candidate.experiment["name"],
        "experimentFilePath": decode(candidate.target),
        "root": candidate.spec.root,
        "ledger": record,
        "timeline": timeline(record) if record is not None else [],
        "source": case.source,
        "storage": storage,
        "records": case.records,
    }
    return told


# --- the places -----------------------------------------------------------------------------------------------------
def _look(candidate: Candidate) -> Record:
    """Return what lies at the source, seen with the service's own eyes and following no link."""
    source = candidate.place.source
    if not source.is_local:
        return {"host": source.host}
    try:
        with opened_parent(source.root, candidate.path) as (parent, name):
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            kind = "directory" if stat.S_ISDIR(status.st_mode) else kind_of(status.st_mode)
            found: Record = {
                "exists": True,
                "kind": kind,
                "size": status.st_size,
                "mtimeNs": storable(status.st_mtime_ns),
                "modificationTimestamp": timestamps.text(storable(status.st_mtime_ns) / 1e9),
            }
            if kind == "file" and not os.access(name, os.R_OK, dir_fd=parent, effective_ids=True):
                found["reason"] = "unreadable"
                found["problem"] = (
                    f"The account of the service may not read {display(candidate.path)!r} "
                    f"(mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid})"
                )
            return found
    except (FileNotFoundError, ObjectNotFound):
        return {"exists": False}
    except DmException as error:  # through a link, or a directory that may not be entered
        return {"reason": "notWatched", "problem": error.message}
    except OSError as error:
        return {"reason": "unreadable", "problem": f"{display(candidate.path)!r} cannot be seen: {error.strerror}"}


def _stat(office: Office, principal: Principal, experiment: str, path: bytes, root: str) -> Record:
    """Return what storage says of a file, to the caller."""
    try:
        with office.parts.user_client(principal) as client:
            found = client.get(
                "/files/stat",
                experimentName=experiment,
                stationName=office.parts.station,
                path=literal(path),
                root=root,
            )
    except ObjectNotFound as error:
        if "xperiment" in error.message and "file" not in error.message.lower():
            return {"problem": error.message}
        return {"exists": False}
    except DmException as error:
        return {"problem": error.message}
    return {"exists": True, **found}


def _look_up(case: Case) -> Record:
    """Return what plugins that keep records know of a file: name -> record, empty for none."""
    candidate = case.candidate
    used = set(candidate.document.get("plugins") or [])
    found: Record = {}
    for plugin in case.office.parts.plugins:
        if plugin.name not in used:
            continue
        try:
            record = plugin.look_up(candidate.experiment, candidate.spec.root, candidate.target)
        except DmException as error:
            record = {"problem": error.message}
        if record is not None:
            found[plugin.name] = record
    return found


def _uncovered(office: Office, principal: Principal, wanted: Wanted) -> Record:
    """Explain a file that no DAQ or upload is responsible for."""
    shown = described(wanted)
    told: Record = {"path": wanted.source_path or wanted.path, "ledger": None, "timeline": []}
    if wanted.id:
        raise ObjectNotFound(f"DAQ or upload {wanted.id[:80]!r} does not exist.")
    if wanted.experiment_name:
        experiment = dict(office.parts.identity.experiment(principal, wanted.experiment_name))
        told["experimentName"] = experiment["name"]
    if wanted.path:
        storage = _stat(office, principal, wanted.experiment_name, os.fsencode(wanted.path), wanted.root)
        told["storage"] = storage
        if storage.get("exists"):
            return {
                **told,
                "reason": "broughtByOthers",
                "explanation": f"The file {shown} is in storage; no DAQ or upload of this station brought it there.",
            }
    return {
        **told,
        "reason": "notWatched",
        "explanation": f"No DAQ or upload that you may see takes {shown}; start one on its directory (dm-start-daq, "
        "dm-upload).",
    }
