"""The interface of a service in words: an OpenAPI 3.1 document and a Markdown page, both from its routes table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import models_json_schema

from dm.common.errors import DmException
from dm.common.interface import release
from dm.common.web.routes import Route, Who
from dm.common.web.table import Entry, compile_route

_REF = "#/components/schemas/{model}"
_BODY_METHODS = frozenset({"POST", "PUT", "DELETE"})


def document(name: str, routes: Iterable[Route]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a routes table.

    :param name: the service's name, for the title.
    """
    entries = [compile_route(route) for route in routes]
    models = list(dict.fromkeys(entry.route.arguments for entry in entries))
    references, definitions = models_json_schema(
        [(model, "validation") for model in models], by_alias=True, ref_template=_REF
    )
    schemas = dict(definitions.get("$defs", {}))
    paths: dict[str, dict[str, Any]] = {}
    for entry in entries:
        reference = references[(entry.route.arguments, "validation")]["$ref"]
        schema = schemas[reference.rpartition("/")[2]]
        for segments in [entry.segments, entry.segments[:-1]] if entry.optional else [entry.segments]:
            path = "/dm/" + "/".join(segments)
            operation = _operation(entry, schema, segments, reference)
            paths.setdefault(path, {})[entry.route.method.lower()] = operation
    schemas["Error"] = {
        "type": "object",
        "description": "Any refusal or failure; the header Dm-Status-Code repeats errorCode, which is 0 otherwise.",
        "required": ["errorCode", "errorClass", "errorMessage"],
        "properties": {
            "errorCode": {"type": "integer"},
            "errorClass": {"type": "string", "enum": sorted({DmException.__name__, *_error_names(DmException)})},
            "errorMessage": {"type": "string"},
            "requestId": {"type": "string"},
        },
    }
    session = {"type": "apiKey", "in": "cookie", "name": "SESSIONID", "description": "The session of POST /dm/login."}
    token = {"type": "http", "scheme": "bearer", "description": "An API token; its scopes say what it is good for."}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"DM {name} service", "version": release()},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"session": session, "token": token}},
    }


def _operation(entry: Entry, schema: dict[str, Any], segments: tuple[str, ...], reference: str) -> dict[str, Any]:
    route = entry.route
    in_path = {part[1:-1] for part in segments if part.startswith("{")}
    optional_variable = entry.segments[-1][1:-1] if entry.optional else None
    required = set(schema.get("required", []))
    parameters = []
    for alias, field in schema.get("properties", {}).items():
        place = "path" if alias in in_path else "query"
        if (place == "query" and alias == optional_variable) or entry.template == "/dm/login":
            continue
        parameter: dict[str, Any] = {
            "name": alias,
            "in": place,
            "required": place == "path" or (alias in required and route.method not in _BODY_METHODS),
        }
        description = field.get("description", "")
        if alias in route.coded:
            description = f"{description} Plain or double base64 b'...'.".strip()
        if description:
            parameter["description"] = description
        plain = {key: value for key, value in field.items() if key != "description"}
        if place == "query" and _is_structure(plain):
            parameter["content"] = {"application/json": {"schema": plain}}
        else:
            parameter["schema"] = plain
        parameters.append(parameter)
    error = {"description": "Error", "content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}}
    operation: dict[str, Any] = {
        "operationId": _operation_id(route.method, segments),
        "summary": route.summary,
        "description": f"Who may call: {route.access.who.value}.",
        "parameters": parameters,
        "responses": {"200": {"description": "Done."}, "default": error},
        "security": [] if route.access.who is Who.PUBLIC else [{"session": []}, {"token": []}],
    }
    in_body = {alias: field for alias, field in schema.get("properties", {}).items() if alias not in in_path}
    if route.method in _BODY_METHODS and in_body:
        content = {"schema": _body_schema(entry, schema, in_body, reference)}
        operation["requestBody"] = {
            "required": entry.template == "/dm/login",
            "description": "The same arguments, as an alternative to the query.",
            "content": {"application/json": content, "application/x-www-form-urlencoded": content},
        }
    return operation


def _body_schema(entry: Entry, schema: dict[str, Any], fields: dict[str, Any], reference: str) -> dict[str, Any]:
    """Return what a body may hold: all arguments but those of the path; any of them may be in the query instead."""
    if entry.template == "/dm/login":
        return {"$ref": reference}
    kept = {key: value for key, value in schema.items() if key not in ("properties", "required", "title")}
    return kept | {"properties": fields}


def _is_structure(field: dict[str, Any]) -> bool:
    options = field.get("anyOf", [field])
    return any(option.get("type") in ("object", "array") or "$ref" in option for option in options)


def _operation_id(method: str, segments: tuple[str, ...]) -> str:
    words = [part[1:-1] if part.startswith("{") else part for part in segments]
    return method.lower() + "".join(
        f"By{w[:1].upper()}{w[1:]}" if s[0] == "{" else w[:1].upper() + w[1:]
        for s, w in zip(segments, words, strict=True)
    )


def _error_names(cls: type[DmException]) -> list[str]:
    """The published classes; private refinements of single modules go over the wire as their parents."""
    names = []
    for child in cls.__subclasses__():
        if child.__module__ == DmException.__module__:
            names.append(child.__name__)
        names += _error_names(child)
    return names


def reference(name: str, routes: Iterable[Route]) -> str:
    """Return the Markdown reference page of a routes table."""
    lines = [
        f"# REST interface of the {name} service",
        "",
        "Generated from the routes table. `{x*}` and `x*` mark arguments that may also come as double base64 text",
        "`b'...'`. Arguments not in the path go into the query, a form or a JSON body.",
        "",
    ]
    for route in routes:
        entry = compile_route(route)
        path = entry.template
        for alias in sorted(route.coded):
            path = path.replace(f"{{{alias}}}", f"{{{alias}*}}")
        lines += [f"## {route.method} {path}", "", route.summary, "", f"Who may call: {route.access.who.value}."]
        rows = [_row(route, alias, field) for alias, field in _fields(route)]
        if rows:
            lines += ["", "| argument | type | required | meaning |", "|---|---|---|---|", *rows]
        if route.body_limit != Route.__dataclass_fields__["body_limit"].default:
            lines += ["", f"Largest request body: {route.body_limit:,} bytes."]
        lines.append("")
    return "\n".join(lines)


def _fields(route: Route) -> list[tuple[str, dict[str, Any]]]:
    schema = route.arguments.model_json_schema(by_alias=True)
    required = set(schema.get("required", []))
    return [(alias, field | {"required": alias in required}) for alias, field in schema.get("properties", {}).items()]


def _row(route: Route, alias: str, field: dict[str, Any]) -> str:
    mark = "*" if alias in route.coded else ""
    options = field.get("anyOf", [field])
    kinds = [option.get("type") or option.get("$ref", "any").rpartition("/")[2] for option in options]
    kind = " or ".join(dict.fromkeys(word for word in kinds if word != "null"))
    need = "yes" if field["required"] else "no"
    if not field["required"] and field.get("default") not in (None, "", [], {}):
        need = f"no, default `{field['default']}`"
    meaning = " ".join(str(field.get("description", "")).split()).replace("|", "\\|")
    return f"| {alias}{mark} | {kind} | {need} | {meaning} |"
