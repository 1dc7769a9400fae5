"""Reading workflow spec files as data: Python literals and strict JSON, never executed.

A ``.py`` spec is a dictionary literal, bare or assigned to a name, with comments, implicit and explicit (``+``)
joining of strings, line continuations, and names that an earlier line of the same file bound to a literal.
"""

from __future__ import annotations

import ast
import io
import json
import tokenize
import warnings
from typing import Any

from dm.common.errors import InvalidArgument

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_VALUES = 50_000
MANY = 100
MAX_TOKENS = 200_000
_BETWEEN = frozenset({tokenize.NL, tokenize.COMMENT})


class _Reader:
    """Evaluates the literal subset of one file; keeps the names bound so far and counts values."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.names: dict[str, Any] = {}
        self.values = 0
        self.text = 0

    def refuse(self, node: ast.AST, what: str) -> InvalidArgument:
        return InvalidArgument(f"{self.source}, line {getattr(node, 'lineno', 1)}: {what}.")

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        self.values += 1
        if depth > MAX_DEPTH or self.values > MAX_VALUES:
            raise self.refuse(node, f"the file nests deeper than {MAX_DEPTH} or holds more than {MAX_VALUES} values")
        match node:
            case ast.Constant(value=str() | int() | float() | bool() | None):
                return node.value
            case ast.Dict():
                return self.dictionary(node, depth)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.value(item, depth + 1) for item in items]
            case ast.BinOp(op=ast.Add()):
                return self.joined(node, depth)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                return -node.operand.value  # type: ignore[attr-defined]
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
        raise self.refuse(node, f"{ast.unparse(node)[:60]!r} is not a plain value; specs are read, never executed")

    def dictionary(self, node: ast.Dict, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            if key_node is None:
                raise self.refuse(value_node, "'**' is not a plain value")
            key = self.value(key_node, depth + 1)
            if not isinstance(key, str):
                raise self.refuse(key_node, f"key {key!r} is not a text")
            if key in result:
                raise self.refuse(key_node, f"key {key!r} occurs twice")
            result[key] = self.value(value_node, depth + 1)
        return result

    def joined(self, node: ast.expr, depth: int) -> str:
        parts = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):  # a + b + c leans left: walk, not recurse
            parts.append(node.right)
            node = node.left
        texts = []
        for part in [node, *reversed(parts)]:
            text = self.value(part, depth + 1)
            if not isinstance(text, str):
                raise self.refuse(part, f"'+' joins texts only, not {type(text).__name__}")
            texts.append(text)
            self.text += len(text)
            if self.text > MAX_BYTES:  # names bound to joins of themselves would double with every line
                raise self.refuse(part, f"the joined texts are longer than {MAX_BYTES} characters")
        return "".join(texts)


def _checked(content: bytes | str, source: str) -> str:
    if len(content) > MAX_BYTES:
        raise InvalidArgument(f"{source} is larger than {MAX_BYTES} bytes.")
    try:
        return content if isinstance(content, str) else content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgument(f"{source} is not UTF-8 text.") from None


def _adjacent(text: str, source: str) -> str:
    """Return the text with blanks for the ``+`` between two strings, which then are joined by standing side by side.

    The meaning is the same and lines stay where they are, but Python's parser takes any number of neighbours and only
    about a thousand ``+`` in a row.
    """
    lines = [list(line) for line in io.StringIO(text)]
    string, plus = False, None
    try:
        for count, token in enumerate(tokenize.generate_tokens(io.StringIO(text).readline)):
            if count > MAX_TOKENS:
                raise InvalidArgument(f"{source} holds more than {MAX_TOKENS} words and signs.")
            if token.type in _BETWEEN:
                continue
            if token.type == tokenize.STRING and plus is not None:
                lines[plus[0] - 1][plus[1]] = " "
            plus = token.start if token.type == tokenize.OP and token.string == "+" and string else None
            string = token.type == tokenize.STRING
    except (tokenize.TokenError, SyntaxError):
        return text  # the parser says what is wrong with it
    return "".join("".join(line) for line in lines)


def read_python(content: bytes | str, source: str = "The workflow specification") -> dict[str, Any]:
    """Read the dictionary of a ``.py`` spec.

    :param content: the file's content. :param source: how errors name it.
    :returns: the last dictionary of the file.
    :raises InvalidArgument: not the literal subset, over the limits, or no dictionary.
    """
    text = _checked(content, source)
    if text.count("+") > MANY:
        text = _adjacent(text, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # specs hold "\\d" and "\\$" in ordinary strings
            module = ast.parse(text)
    except SyntaxError as error:
        raise InvalidArgument(f"{source}, line {error.lineno or 1}: {error.msg}.") from None
    except (ValueError, MemoryError, RecursionError):
        raise InvalidArgument(f"{source} is not readable: it nests too deeply or holds a NUL character.") from None
    reader = _Reader(source)
    found: dict[str, Any] | None = None
    for statement in module.body:
        match statement:
            case ast.Expr(value=node):
                value = reader.value(node)
            case ast.Assign(targets=[ast.Name(id=name)], value=node):
                value = reader.names[name] = reader.value(node)
            case _:
                raise reader.refuse(statement, "only a dictionary literal belongs into a spec; it is never executed")
        found = value if isinstance(value, dict) else found
    if found is None:
        raise InvalidArgument(f"{source} holds no dictionary.")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [key for key, _ in pairs]
        raise InvalidArgument(f"Key {next(key for key in names if names.count(key) > 1)!r} occurs twice.")
    return result


def _no_constant(name: str) -> Any:
    raise InvalidArgument(f"{name} is not JSON.")


def _depth(value: Any, source: str) -> None:
    level, here = 0, [value]
    while here:
        level += 1
        if level > MAX_DEPTH:
            raise InvalidArgument(f"{source} nests deeper than {MAX_DEPTH}.")
        here = [
            inner
            for item in here
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]


def read_json(content: bytes | str, source: str = "The workflow specification") -> dict[str, Any]:
    """Read the object of a ``.json`` spec: no NaN, no key twice, bounded size and depth.

    :raises InvalidArgument: naming what is wrong.
    """
    text = _checked(content, source)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{source}, line {error.lineno}: {error.msg}.") from None
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{source} is not readable JSON: it nests too deeply or holds a huge number.") from None
    if not isinstance(value, dict):
        raise InvalidArgument(f"{source} holds no JSON object.")
    _depth(value, source)
    return value
