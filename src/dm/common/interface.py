"""Which releases work together: the version of the interface between clients, stations and the site.

Every request of our clients and every reply of our services says its release and its interface in two headers, and
``/status`` says both. Interfaces of the same major number work together, whichever release is the newer one; with
another number nothing is tried, and one sentence says which side to upgrade. Who sends no header (other people's
programs, releases before there were headers) is taken to speak interface 1.

The minor number goes up when something is added, the major number when something published changes its meaning or goes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import metadata

from dm.common.errors import CommunicationError, InvalidRequest

MAJOR, MINOR = 1, 1
INTERFACE = f"{MAJOR}.{MINOR}"
RELEASE_HEADER, INTERFACE_HEADER = "Dm-Version", "Dm-Interface"
DISTRIBUTION = "beamline-dm"
_VERSION = re.compile(r"\s*([0-9]{1,4})\.([0-9]{1,4})\s*")
_RELEASE = re.compile(r"[A-Za-z0-9.+!_-]{1,40}")


@functools.cache
def release() -> str:
    """Return the version of the installed distribution, or ``unknown``."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def headers() -> dict[str, str]:
    """Return the headers by which each side introduces itself."""
    return {RELEASE_HEADER: release(), INTERFACE_HEADER: INTERFACE}


def major(found: Mapping[str, str]) -> int:
    """Return the major number that headers (names as given or in lower case) speak of; 1 where they say nothing."""
    text = found.get(INTERFACE_HEADER) or found.get(INTERFACE_HEADER.lower()) or ""
    match = _VERSION.fullmatch(text)
    return int(match[1]) if match else 1


def check_caller(service: str, found: Mapping[str, str]) -> None:
    """Refuse a caller of another interface. :raises InvalidRequest: it is; the sentence says who must be upgraded."""
    theirs = major(found)
    if theirs != MAJOR:
        raise InvalidRequest(
            _sentence("The caller", found, theirs, f"the {service} service", upgrade_us=theirs > MAJOR)
        )


def check_service(url: str, found: Mapping[str, str]) -> None:
    """Refuse the reply of a service of another interface.

    :raises CommunicationError: it is, and may be another one after an upgrade: callers that wait for services wait.
    """
    theirs = major(found)
    if theirs != MAJOR:
        raise CommunicationError(
            _sentence(f"The service at {url}", found, theirs, "this client", upgrade_us=theirs > MAJOR)
        )


def _sentence(them: str, found: Mapping[str, str], theirs: int, us: str, *, upgrade_us: bool) -> str:
    said = found.get(RELEASE_HEADER) or found.get(RELEASE_HEADER.lower()) or ""
    named = f"release {said}" if _RELEASE.fullmatch(said) else "an unnamed release"
    older = us if upgrade_us else f"{them[:1].lower()}{them[1:]}"
    return (
        f"{them} ({named}) speaks interface {theirs} of DM, {us} (release {release()}) interface {MAJOR}; "
        f"upgrade {older}."
    )
