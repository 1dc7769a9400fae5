"""The routes table, compiled for dispatch on the raw path.

Paths are split while still percent-encoded, so ``%2F`` inside a segment is data, and a segment may hold any bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dm.common.errors import ConfigurationError
from dm.common.web.arguments import Binder, decode, unquote
from dm.common.web.routes import Route, Who

PREFIX = "/dm"
UNPREFIXED = ("/status", "/metrics")
METHODS = ("GET", "POST", "PUT", "DELETE")
_OPTIONAL = re.compile(r"\[/(\{\w+\})\]\Z")
_VARIABLE = re.compile(r"\{(\w+)\}\Z")


@dataclass(frozen=True)
class Entry:
    """A route ready for use.

    :param route: the row.
    :param template: its full path for people and metrics, e.g. ``/dm/experiments/{name}``.
    :param segments: path parts; a variable is its camelCase name in braces.
    :param optional: whether the last segment may be missing.
    """

    route: Route
    template: str
    segments: tuple[str, ...]
    optional: bool
    binder: Binder

    @property
    def variables(self) -> list[str]:
        """The arguments in the path, in order."""
        return [part[1:-1] for part in self.segments if part.startswith("{")]


@dataclass(frozen=True)
class Match:
    """A path that fits a route: the entry and the decoded path arguments."""

    entry: Entry
    path: dict[str, str]


class UnknownPathError(LookupError):
    """No route has this path."""


class UnknownMethodError(LookupError):
    """The path exists, for other methods.

    :param allowed: these methods.
    """

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(", ".join(allowed))
        self.allowed = allowed


@dataclass
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    variable: _Node | None = None
    entries: dict[str, Entry] = field(default_factory=dict)


class RouteTable:
    """All routes of a service.

    :param routes: the rows.
    :raises ConfigurationError: a row that cannot work: unknown method, a path, access or coded argument that the
        argument model lacks, or two rows for one method and path.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.entries: list[Entry] = []
        self._root = _Node()
        for route in routes:
            self._add(compile_route(route))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        shapes = [entry.segments, entry.segments[:-1]] if entry.optional else [entry.segments]
        for shape in shapes:
            node = self._root
            for part in shape:
                if part.startswith("{"):
                    node.variable = node.variable or _Node()
                    node = node.variable
                else:
                    node = node.literals.setdefault(part, _Node())
            if entry.route.method in node.entries:
                raise ConfigurationError(f"Two routes for {entry.route.method} {entry.template}.")
            node.entries[entry.route.method] = entry

    def match(self, method: str, path: str) -> Match:
        """Find the route of a raw, still percent-encoded path (without query).

        :raises UnknownPathError: no route has it. :raises UnknownMethodError: it exists for other methods.
        """
        if path in UNPREFIXED:
            path = PREFIX + path
        if path != PREFIX and not path.startswith(PREFIX + "/"):
            raise UnknownPathError(path)
        raw = path[len(PREFIX) + 1 :].split("/")
        parts = [unquote(part.encode("latin-1")) for part in raw]
        allowed: set[str] = set()
        entry = self._find(self._root, parts, 0, method, allowed)
        if entry is None and parts[-1] == "":  # a trailing slash is an empty optional last segment
            entry = self._find(self._root, parts[:-1], 0, method, allowed, optional_only=True)
            if entry is not None and len(parts) != len(entry.segments):
                entry = None
        if entry is None:
            if allowed:
                raise UnknownMethodError([name for name in METHODS if name in allowed])
            raise UnknownPathError(path)
        values = {
            segment[1:-1]: part for segment, part in zip(entry.segments, parts, strict=False) if segment[0] == "{"
        }
        if entry.optional and len(parts) >= len(entry.segments):
            last = entry.segments[-1][1:-1]
            text = values[last]
            if (decode(text, last) if last in entry.route.coded else text) == "":
                del values[last]
        return Match(entry, values)

    def _find(
        self, node: _Node, parts: list[str], index: int, method: str, allowed: set[str], *, optional_only: bool = False
    ) -> Entry | None:
        """Walk the tree, literal segments before variables, going back when a branch has no such method."""
        if index == len(parts):
            entry = node.entries.get(method)
            if entry is not None and not (optional_only and not entry.optional):
                return entry
            if not optional_only:
                allowed.update(node.entries)
            return None
        part = parts[index]
        literal = node.literals.get(part)
        if literal is not None:
            entry = self._find(literal, parts, index + 1, method, allowed, optional_only=optional_only)
            if entry is not None:
                return entry
        if node.variable is not None and part != "":
            return self._find(node.variable, parts, index + 1, method, allowed, optional_only=optional_only)
        return None


def compile_route(route: Route) -> Entry:
    """Check one row and prepare it.

    :raises ConfigurationError: see :class:`RouteTable`.
    """
    where = f"Route {route.method} {route.path}"
    if route.method not in METHODS:
        raise ConfigurationError(f"{where}: the method is not one of {', '.join(METHODS)}.")
    if not route.path.startswith("/") or route.path.startswith("/dm/"):
        raise ConfigurationError(f"{where}: the path must start with '/' and leave out '/dm'.")
    optional = _OPTIONAL.search(route.path)
    full = _OPTIONAL.sub(r"/\1", route.path)
    segments = tuple(full[1:].split("/"))
    binder = Binder(route)
    aliases = set(binder.names.values())
    for segment in segments:
        if not segment or ("{" in segment and not _VARIABLE.match(segment)):
            raise ConfigurationError(f"{where}: segment {segment!r} is malformed.")
        if segment[0] == "{" and segment[1:-1] not in aliases:
            raise ConfigurationError(f"{where}: the argument model has no {segment}.")
    unknown = route.coded - aliases
    if unknown:
        raise ConfigurationError(f"{where}: coded arguments {sorted(unknown)} are not in the argument model.")
    if route.access.argument is not None and route.access.argument not in route.arguments.model_fields:
        raise ConfigurationError(f"{where}: the access argument {route.access.argument!r} is not in the model.")
    if not isinstance(route.access.who, Who):
        raise ConfigurationError(f"{where}: the access names no rule.")
    return Entry(route, PREFIX + route.path, segments, optional is not None, binder)
