"""Routes about what was published, as the experiments' own manifests have it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import Access, Request, Route, Stream, Who
from dm.site.storage import arguments as a
from dm.site.storage.access import reference
from dm.site.storage.recorded import Recorded


class RecordAgain(a.ById):
    """Whose records to make again."""

    dry_run: bool = Field(default=False, description="Only count what is missing.")


def routes(recorded: Recorded) -> list[Route]:
    """Return the rows, bound to the use case."""

    def manifest(request: Request, arguments: a.ById) -> Stream:
        return recorded.stream(request.principal, reference(arguments))

    def record_again(request: Request, arguments: RecordAgain) -> dict[str, Any]:
        return recorded.record_again(request.principal, reference(arguments), arguments.dry_run)

    managers = Access(Who.MANAGER, "experiment_id")
    return [
        Route("POST", "/experimentsById/{experimentId}/recordedFiles", record_again, managers,
              "Record again the published files that the manifest has and the database lost.", RecordAgain),
        Route("GET", "/experimentsById/{experimentId}/manifest", manifest, managers,
              "Give the record of every file that was published, as JSON lines.", a.ById),
    ]  # fmt: skip
