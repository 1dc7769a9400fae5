"""Routes about what was published, as the experiments' own manifests have it."""

from __future__ import annotations

from dm.common.web.routes import Access, Request, Route, Stream, Who
from dm.site.storage import arguments as a
from dm.site.storage.access import reference
from dm.site.storage.recorded import Recorded


def routes(recorded: Recorded) -> list[Route]:
    """Return the rows, bound to the use case."""

    def manifest(request: Request, arguments: a.ById) -> Stream:
        return recorded.stream(request.principal, reference(arguments))

    return [
        Route("GET", "/experimentsById/{experimentId}/manifest", manifest, Access(Who.MANAGER, "experiment_id"),
              "Give the record of every file that was published, as JSON lines.", a.ById),
    ]  # fmt: skip
