"""Checks of a station: its MongoDB, its service account, its way to the site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pymongo
from pymongo.errors import OperationFailure, PyMongoError

from dm.common.client import RestClient
from dm.common.environment import read_login_file
from dm.common.errors import AuthenticationError, DmException
from dm.common.interface import release
from dm.common.settings import StationServiceSettings, StationSettings
from dm.deploy.checks.files import database_password
from dm.deploy.checks.findings import Finding, error, ok, warning

_SECONDS = 5
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def documents(name: str, settings: StationServiceSettings, embedded: bool) -> Iterator[Finding]:
    """Check a service's MongoDB: reachable, and with accounts unless it is this machine's own."""
    url = settings.database_url
    yield from database_password(name, url)
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        url, serverSelectionTimeoutMS=_SECONDS * 1000, connectTimeoutMS=_SECONDS * 1000
    )
    try:
        hello = client.admin.command("hello")
        yield ok(name, "MongoDB answers" + (f", replica set {hello['setName']}" if "setName" in hello else ""))
        if not hello.get("setName") and hello.get("msg") != "isdbgrid" and not embedded:
            yield warning(name, "It is no replica set: what only it has is lost with its disk.")
        yield _accounts(name, url, embedded)
    except OperationFailure as failure:
        yield error(name, f"MongoDB refuses us: {(failure.details and failure.details.get('errmsg')) or failure}.")
    except PyMongoError as failure:
        yield error(name, f"MongoDB does not answer: {str(failure).partition(',')[0]}.")
    finally:
        client.close()


def _accounts(name: str, url: str, embedded: bool) -> Finding:
    """Ask for something without an account: whoever gets it can change running DAQs."""
    hosts = {part.rpartition(":")[0] or part for part in urlsplit(url).netloc.rpartition("@")[2].split(",")}
    stranger: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        _without_account(url), serverSelectionTimeoutMS=_SECONDS * 1000
    )
    try:
        stranger.get_database("admin").list_collection_names()
    except OperationFailure:
        return ok(f"{name}.accounts", "nobody is let in without an account")
    except PyMongoError as failure:
        return warning(f"{name}.accounts", f"Whether it has accounts cannot be told: {str(failure).partition(',')[0]}.")
    finally:
        stranger.close()
    if embedded or hosts <= _LOOPBACK:
        return warning(
            f"{name}.accounts",
            "Every account of this machine reaches it without a password; before others use the machine, set "
            "database_url to a MongoDB with authentication.",
        )
    return error(f"{name}.accounts", "Whoever reaches it over the network may change it; turn authentication on.")


def _without_account(url: str) -> str:
    scheme, _, rest = url.partition("://")
    where, slash, tail = rest.partition("/")
    database, question, options = tail.partition("?")
    kept = [option for option in options.split("&") if not option.lower().startswith("auth") and option]
    return f"{scheme}://{where.rpartition('@')[2]}{slash}{database}{question if kept else ''}{'&'.join(kept)}"


def site(station: StationSettings) -> Iterator[Finding]:
    """Check the way to the site: its certificate, its release, and whether it takes our service account."""
    name = "station.storage_service_url"
    username, password = read_login_file(station.service_password_file)
    with RestClient(
        station.storage_service_url, username, password, ca_file=station.ca_file, timeout=_SECONDS
    ) as client:
        try:
            status = client.get("/status")
        except DmException as failure:
            yield error(name, str(failure))
            return
        yield _release(name, str(status.get("version", "")), str(status.get("status", "")))
        name = "station.service_password_file"
        try:
            roles = client.get("/session")["stationRoles"].get(station.name, [])
        except AuthenticationError as failure:
            yield error(name, f"The site does not take {username}: {failure}")
            return
        except DmException as failure:
            yield error(name, str(failure))
            return
        if "service" in roles:
            yield ok(name, f"the site knows {username} as the service account of {station.name}")
        else:
            yield error(
                name,
                f"{username} is not the service account of {station.name}; run: dm-add-user-station-role "
                f"--username {username} --role service --station {station.name}",
            )


def _release(name: str, theirs: str, level: str) -> Finding:
    if level == "critical":
        return warning(name, f"The site (release {theirs}) says that it is in a critical state; see its dm-site check.")
    if theirs.split(".")[:2] != release().split(".")[:2]:
        return warning(name, f"The site has release {theirs}, this station {release()}; upgrade the older one soon.")
    return ok(name, f"answers, release {theirs}")
