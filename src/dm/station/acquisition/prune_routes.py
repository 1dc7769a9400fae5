"""The part of the routes table that removes source files.

``POST /daqs/{id}/pruneSource``, ``delete``, ``keepDays``, ``readAgain``, ``after``, ``limit``: ``{"files", "next"}``

The same below ``/uploads/{id}``.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import MANAGER, Arguments, Request, Route
from dm.station.acquisition.prune import Pruner, Wish
from dm.station.acquisition.task import DAQ, UPLOAD


class PruneArguments(Arguments):
    """What is to be removed."""

    id: str = Field(min_length=1, max_length=100, description="Of the finished DAQ or upload.")
    delete: bool = Field(default=False, description="Remove; otherwise only say what would be removed.")
    keep_days: float = Field(default=0, ge=0, le=36_500, description="Files stored less than so many days ago stay.")
    read_again: bool = Field(default=False, description="Storage reads and digests its files again, too.")
    after: int = Field(default=0, ge=0, description="next of the page before.")
    limit: int = Field(default=200, ge=1, le=1000, description="Most files of the page.")


def prune_routes(pruner: Pruner) -> list[Route]:
    """Return the rows of the table."""

    def handler(kind: str) -> Any:
        def prune(request: Request, arguments: PruneArguments) -> dict[str, Any]:
            wish = Wish(
                request.principal.username,
                arguments.delete,
                arguments.keep_days,
                arguments.read_again,
                arguments.after,
                arguments.limit,
            )
            return pruner.page(kind, arguments.id, wish)

        return prune

    return [
        Route(
            "POST",
            f"/{plural}/{{id}}/pruneSource",
            handler(kind),
            MANAGER,
            f"Remove source files of a finished {what} that storage, asked now, has; a dry run unless delete is given.",
            PruneArguments,
        )
        for kind, plural, what in ((DAQ, "daqs", "DAQ"), (UPLOAD, "uploads", "upload"))
    ]
