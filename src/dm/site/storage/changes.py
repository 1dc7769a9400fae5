"""What can be set on an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dm.site import rules


@dataclass(frozen=True)
class Changes:
    """What to set on an experiment; ``None`` leaves a value (when adding: takes the default)."""

    type_name: str | None = None
    description: str | None = None
    root_path: str | None = None
    globus_group_id: str | None = None
    start_date: str | float | None = None
    end_date: str | float | None = None
    managed_directory_structure: bool | None = None
    beamline_user_account: str | None = None
    beamline_admin_account: str | None = None
    data_directory_frozen: bool | None = None
    analysis_directory_frozen: bool | None = None

    def columns(self) -> dict[str, Any]:
        """Return the checked column values of what is given. :raises InvalidArgument: a bad value."""
        values: dict[str, Any] = {}
        for key in ("description", "globus_group_id", "beamline_user_account", "beamline_admin_account"):
            if (given := getattr(self, key)) is not None:
                values[key] = rules.plain_text(given, key.replace("_", " ").capitalize())
        for key in ("managed_directory_structure", "data_directory_frozen", "analysis_directory_frozen"):
            if (flag := getattr(self, key)) is not None:
                values[key] = flag
        for key, what in (("start_date", "Start date"), ("end_date", "End date")):
            if (moment := rules.date(getattr(self, key), what)) is not None:
                values[key] = moment
        return values
