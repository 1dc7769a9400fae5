"""The published records of an experiment (short in lists, full alone)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from sqlalchemy import RowMapping

from dm.common import timestamps

# Keys a caller's own metadata may not take; errorCode would make a good record look like an error.
_RESERVED = """
    id name description experimentType experimentTypeId experimentStation experimentStationId primaryStorage
    primaryStorageId startDate endDate createDate updateDate authGroupName rootPath stationName
    experimentUsernameList experimentUsers storageDirectory storageHost storageUrl dataDirectory analysisDirectory
    systemDirectory dataDirectoryFrozen analysisDirectoryFrozen managedDirectoryStructure beamlineUserAccount
    beamlineAdminAccount globusGroupId pinnedAtTime pinnedAtTimestamp pinnedByUser pinnedUntilTime
    pinnedUntilTimestamp status errorCode errorMessage
"""
RESERVED = frozenset(_RESERVED.split())


def short(row: RowMapping) -> dict[str, Any]:
    """Return the record as lists hold it."""
    record = {
        "id": row["id"],
        "name": row["name"],
        "description": row["description"],
        "experimentType": _part(row, "type"),
        "experimentTypeId": row["type_id"],
        "experimentStation": _part(row, "station"),
        "experimentStationId": row["station_id"],
        "primaryStorage": _part(row, "storage"),
        "primaryStorageId": row["storage_id"],
        "startDate": timestamps.iso(row["start_date"]),
        "endDate": timestamps.iso(row["end_date"]),
        "createDate": timestamps.iso(row["create_date"]),
        "updateDate": timestamps.iso(row["update_date"]),
        "authGroupName": row["auth_group_name"],
    }
    if row["root_path"]:
        record["rootPath"] = row["root_path"]
    if row["state"] != "active":
        record["status"] = row["state"]
    return record


def full(row: RowMapping, members: Sequence[RowMapping]) -> dict[str, Any]:
    """Return the whole record, with the caller's metadata at top level.

    :param members: rows with ``username`` and ``role``.
    """
    directory = row["storage_directory"]
    roles: dict[str, list[str]] = {}
    for member in members:
        roles.setdefault(member["username"], []).append(member["role"])
    record = short(row) | {
        "stationName": row["station_name"],
        "experimentUsernameList": list(roles),
        "experimentUsers": [{"username": name, "roles": given} for name, given in roles.items()],
        "storageDirectory": directory,
        "storageHost": row["storage_host"],
        "storageUrl": f"{row['storage_name'].lower()}://{row['storage_host']}{quote(directory, safe='/+=~')}",
        "dataDirectory": f"{directory}/data",
        "analysisDirectory": f"{directory}/analysis",
        "systemDirectory": f"{directory}/system",
        "dataDirectoryFrozen": row["data_directory_frozen"],
        "analysisDirectoryFrozen": row["analysis_directory_frozen"],
        "managedDirectoryStructure": row["managed_directory_structure"],
        "beamlineUserAccount": row["beamline_user_account"] or "",
        "beamlineAdminAccount": row["beamline_admin_account"] or "",
    }
    if row["globus_group_id"]:
        record["globusGroupId"] = row["globus_group_id"]
    if row["pinned_until"] is not None and row["pinned_until"] > datetime.now(UTC):
        record["pinnedByUser"] = row["pinned_by"]
        for key, column in (("pinnedAt", "pinned"), ("pinnedUntil", "pinned_until")):
            seconds = row[column].timestamp()
            record |= {f"{key}Time": seconds, f"{key}Timestamp": timestamps.text(seconds)}
    return row["metadata"] | record


def _part(row: RowMapping, kind: str) -> dict[str, Any]:
    return {"id": row[f"{kind}_id"], "name": row[f"{kind}_name"], "description": row[f"{kind}_description"]}
