"""Routes about the facility's people: who they are, and bringing users up to date with them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dm.common.web.routes import ADMIN, MANAGER, Arguments, Request, Route
from dm.site.facility.people import People
from dm.site.identity.synchronisation import MAX_LISTED, UserSynchronisation

_WAIT = 30.0


class Badge(Arguments):
    """A badge."""

    badge: int = Field(gt=0, lt=1 << 31, description="Badge number.")


class PersonName(Arguments):
    """A user name."""

    username: str = Field(description="Login name.")


class Page(Arguments):
    """A page of the list of people."""

    after: int = Field(default=0, ge=0, description="nextAfter of the page before.")
    limit: int = Field(default=5000, ge=1, le=10_000, description="Most people of the page.")


class Sync(Arguments):
    """What to synchronise."""

    adapter: str | None = Field(default=None, description="Adapter that gives the people; unset: the only one.")
    dry_run: bool = Field(default=False, description="Only say what would be done.")
    force: bool = Field(default=False, description="Also where more would change than the settings allow.")
    wait_time: float = Field(default=0.0, ge=0, le=_WAIT, description="Wait so many seconds for its end.")


class SyncId(Arguments):
    """A run."""

    id: str = Field(description="Id of the run.")
    wait_time: float = Field(default=0.0, ge=0, le=_WAIT, description="Wait so many seconds for its end.")


class Syncs(Arguments):
    """Which runs."""

    adapter: str | None = Field(default=None, description="Only those of this adapter.")
    limit: int = Field(default=100, ge=1, le=MAX_LISTED, description="Most runs, the last ones.")


def routes(people: People, syncs: UserSynchronisation) -> list[Route]:
    """Return the rows, bound to the use cases."""

    def page(request: Request, arguments: Page) -> dict[str, Any]:
        return people.page(arguments.after, arguments.limit)

    def by_badge(request: Request, arguments: Badge) -> dict[str, Any]:
        return people.by_badge(arguments.badge)

    def by_name(request: Request, arguments: PersonName) -> dict[str, Any]:
        return people.by_username(arguments.username)

    def begin(request: Request, arguments: Sync) -> dict[str, Any]:
        begun = syncs.begin(request.principal.username, arguments.adapter, arguments.dry_run, arguments.force)
        return syncs.get(begun["id"], arguments.wait_time) if arguments.wait_time else begun

    def get(request: Request, arguments: SyncId) -> dict[str, Any]:
        return syncs.get(arguments.id, arguments.wait_time)

    def last(request: Request, arguments: Syncs) -> list[dict[str, Any]]:
        return syncs.all(arguments.adapter, arguments.limit)

    return [
        Route("GET", "/facilityUsers", page, MANAGER, "Give a page of the people of the facility's user directories.",
              Page),
        Route("GET", "/facilityUsersByBadge/{badge}", by_badge, MANAGER, "Give the person with a badge.", Badge),
        Route("GET", "/facilityUsersByUsername/{username}", by_name, MANAGER,
              "Give a person of the facility's user directories.", PersonName),
        Route("POST", "/userSyncs", begin, ADMIN,
              "Begin to bring users up to date with a user directory; gives the run.", Sync),
        Route("GET", "/userSyncs", last, ADMIN, "List the last runs, newest last.", Syncs),
        Route("GET", "/userSyncs/{id}", get, ADMIN, "Give a run with all it changed or left out.", SyncId),
    ]  # fmt: skip
