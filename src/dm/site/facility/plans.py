"""Plans: name, dates, place and people of an experiment for a proposal or a safety form, by the site's template.

Making it is the storage service's; a plan holds the arguments of its calls.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dm.common import timestamps
from dm.common.errors import InvalidArgument
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.facility.esafs import Esafs
from dm.site.facility.proposals import Proposals
from dm.site.facility.runs import Runs
from dm.site.facility.settings import TemplateSettings
from dm.site.facility.viewer import Viewer

_UNSAFE = re.compile(r"[^\w\-.+=~]+")
_LONGEST_FIELD = 40


class Plans:
    """The use cases of planning experiments."""

    def __init__(
        self, templates: TemplateSettings, viewer: Viewer, esafs: Esafs, proposals: Proposals, runs: Runs
    ) -> None:
        self._templates = templates
        self._viewer = viewer
        self._esafs = esafs
        self._proposals = proposals
        self._runs = runs

    def from_esaf(self, principal: Principal, station: str, id: str) -> dict[str, Any]:
        """Return the plan of an experiment for a safety form of a station.

        :returns: experimentName, stationName, description, rootPath, startDate, endDate, users (username, roleName,
            firstName, lastName), metadata. :raises ObjectNotFound: the station has no such form the caller may see.
        """
        record = self._esafs.get(principal, id, station)
        start, end = (timestamps.parse(record[key]) for key in ("experimentStartDate", "experimentEndDate"))
        run = self._run_of(start)
        fields = {"esaf_id": record["esafId"], "record_id": record["esafId"], "gup_id": record.get("gupId") or ""}
        metadata = {"esafId": record["esafId"], "run": run}
        people = record["experimentUsers"]
        return self._plan(
            self._templates.esaf_name, station, record["esafTitle"], (start, end), people, fields, metadata
        )

    def from_proposal(self, principal: Principal, station: str, id: str, run: str | None = None) -> dict[str, Any]:
        """Return the plan of an experiment for a proposal of a station; see :meth:`from_esaf`."""
        record = self._proposals.get(principal, id, station, run=run)
        span = timestamps.parse(record["startTime"]), timestamps.parse(record["endTime"])
        fields = {"gup_id": record["id"], "record_id": record["id"], "esaf_id": ""}
        metadata = {"proposalId": record["id"], "run": record["run"]}
        people = record["experimenters"]
        return self._plan(self._templates.proposal_name, station, record["title"], span, people, fields, metadata)

    def _plan(  # noqa: PLR0917
        self,
        name: str,
        station: str,
        title: str,
        span: tuple[datetime, datetime],
        people: list[dict[str, Any]],
        fields: dict[str, Any],
        metadata: dict[str, Any],
    ) -> dict[str, Any]:
        start, end = span
        lead = next((one for one in people if one["piFlag"] in ("Y", "Yes")), people[0] if people else {})
        values = fields | {
            "run": metadata["run"],
            "station": station,
            "title": title,
            "pi_last_name": lead.get("lastName", ""),
            "pi_first_name": lead.get("firstName", ""),
            "pi_badge": lead.get("badge", ""),
            "year": f"{start:%Y}",
            "month": f"{start:%m}",
            "day": f"{start:%d}",
        }
        usernames = self._viewer.usernames(one["badge"] for one in people)
        return {
            "experimentName": experiment_name(name, values),
            "stationName": station,
            "description": filled(self._templates.description, values)[: rules.MAX_TEXT],
            "rootPath": "/".join(
                part for part in (experiment_name(piece, values, "") for piece in self._templates.root_path.split("/"))
                if part
            ),
            "startDate": timestamps.iso(start),
            "endDate": timestamps.iso(end),
            "users": [
                {
                    "username": usernames.get(one["badge"], ""),
                    "roleName": "PI" if one["piFlag"] in ("Y", "Yes") else "User",
                    "firstName": one["firstName"],
                    "lastName": one["lastName"],
                }
                for one in people
            ],
            "metadata": {key: value for key, value in metadata.items() if value not in ("", None)},
        }  # fmt: skip

    def _run_of(self, moment: datetime) -> str:
        for run in self._runs.all():
            if timestamps.parse(run["startTime"]) <= moment <= timestamps.parse(run["endTime"]):
                return str(run["name"])
        return ""


def filled(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its ``{field}`` replaced; nothing within braces but a known name is looked at.

    :raises InvalidArgument: an unknown field.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InvalidArgument(f"Template {template!r} has the field {{{match[1]}}}; known are {', '.join(values)}.")
        return str(values[match[1]])

    return re.sub(r"\{([^{}]*)\}", value, template)


def experiment_name(template: str, values: Mapping[str, Any], otherwise: str = "experiment") -> str:
    """Return a name by a template: characters that names may not have become dashes, and it is short enough."""
    safe = {key: _safe(str(value))[:_LONGEST_FIELD].strip("-") for key, value in values.items()}
    text = re.sub(r"-{2,}", "-", _safe(filled(template, safe))).strip("-.~_")
    while len(text.encode()) > rules.MAX_NAME_BYTES:
        text = text[:-1]
    return text or otherwise


def _safe(text: str) -> str:
    composed = unicodedata.normalize("NFC", text.replace("'", "").replace("\u2019", ""))
    kept = "".join(one if one.isalnum() or one in "_-.+=~" else "-" for one in composed)
    return _UNSAFE.sub("-", kept)
