"""Walks a routes table and shows that no route is open by accident."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from dm.common import tls
from dm.common.errors import AuthorizationError, ObjectNotFound
from dm.common.web.routes import Route, Who
from dm.common.web.table import compile_route

PUBLIC_PATHS = {"/login", "/status", "/metrics"}


def assert_refuses_strangers(
    base_url: str,
    application_routes: Iterable[Route],
    ca_file: str | Path,
    stranger_session: str | None,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Call every route that is not public as nobody and as somebody without rights.

    Anonymous callers must get 401 with code 6, and with a session id that nobody has 401 with code 12. The stranger
    must get 403 (code 5) or 404 (code 14); for routes open to any user only the anonymous calls are made.

    :param base_url: of the running service, with or without ``/dm``. :param application_routes: ``application.routes``.
    :param stranger_session: session id of a user who belongs to nothing; ``None`` leaves that half out.
    :param arguments: camelCase argument name -> value, for arguments whose made-up value would not pass validation or
        which should name an object that exists.
    :returns: how many routes were walked.
    """
    walked = 0
    base = base_url.rstrip("/").removesuffix("/dm") + "/dm"
    with httpx.Client(verify=tls.client_context(ca_file), timeout=30) as client:
        for route in application_routes:
            if route.access.who is Who.PUBLIC:
                assert route.path in PUBLIC_PATHS, f"{route.method} {route.path} is declared public"
                continue
            walked += 1
            what = f"{route.method} {route.path}"
            reply = call(client, base, route, arguments or {}, None)
            assert (reply.status_code, code(reply)) == (401, 6), f"{what} without a session: {reply.text[:300]}"
            reply = call(client, base, route, arguments or {}, "no-such-session-" + "x" * 27)
            assert (reply.status_code, code(reply)) == (401, 12), f"{what} with a dead session: {reply.text[:300]}"
            if stranger_session is None or route.access.who is Who.USER:
                continue
            reply = call(client, base, route, arguments or {}, stranger_session)
            assert (reply.status_code, code(reply)) in {
                (403, AuthorizationError.code),
                (404, ObjectNotFound.code),
            }, f"{what} as a stranger: {reply.status_code} {reply.text[:300]}"
    return walked


def code(reply: httpx.Response) -> int:
    code = int(reply.headers["Dm-Status-Code"])
    assert code == 0 or reply.json()["errorCode"] == code
    return code


def call(
    client: httpx.Client,
    base: str,
    route: Route,
    overrides: Mapping[str, Any],
    session: str | None,
    optional: Collection[str] = (),
) -> httpx.Response:
    """Call a route with made-up arguments, and those given; as nobody without a session.

    :param optional: arguments that are given too where the route could do without.
    """
    values = made_up_arguments(route, overrides)
    known = route.arguments.model_json_schema(by_alias=True).get("properties", {})
    values |= {name: overrides[name] for name in optional if name in known and name in overrides}
    entry = compile_route(route)
    path = base
    for segment in entry.segments:
        path += "/" + (quote(str(values.pop(segment[1:-1])), safe="") if segment[0] == "{" else segment)
    headers = {"Cookie": f"SESSIONID={session}"} if session else {}
    if route.method in ("POST", "PUT"):
        return client.request(route.method, path, json=values, headers=headers)
    query = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return client.request(route.method, path, params=query, headers=headers)


def made_up_arguments(route: Route, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for each required argument and each in the path, by its schema."""
    schema = route.arguments.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    needed = set(schema.get("required", [])) | set(compile_route(route).variables)
    properties = schema.get("properties", {})
    values = {name: _made_up(properties[name], definitions) for name in properties if name in needed}
    return values | {name: value for name, value in overrides.items() if name in properties and name in needed}


def _made_up(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:  # a case list
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for options in ("anyOf", "oneOf", "allOf"):
        if options in schema:
            return _made_up(schema[options][0], definitions)
    match schema.get("type"):
        case "integer":
            return int(max(schema.get("minimum", 1), schema.get("exclusiveMinimum", 0) + 1))
        case "number":
            return float(schema.get("minimum", 1.0))
        case "boolean":
            return False
        case "array":
            return [_made_up(schema.get("items", {}), definitions)] * schema.get("minItems", 0)
        case "object":
            properties = schema.get("properties", {})
            return {name: _made_up(properties[name], definitions) for name in schema.get("required", [])}
    if schema.get("format") == "uuid":
        return "00000000-0000-4000-8000-000000000000"
    return "x" * max(1, schema.get("minLength", 1))
