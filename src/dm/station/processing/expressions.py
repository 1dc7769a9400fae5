"""Conditions (``runIf``, ``repeatUntil``): Python boolean expressions on job variables, without ``eval``.

Published meaning: ``$name`` is replaced by its value, then the text is a Python expression. Here the value is bound,
not pasted: inside a quoted text ``$name`` becomes part of that text, bare ``$name`` becomes the value itself (a number
where it looks like one). So no value can change what the expression says. A name that is not set equals nothing when
bare and is a text of its own inside quotes; it never matches a real value, nor the empty text.
"""

from __future__ import annotations

import ast
import operator
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from dm.common.errors import InvalidArgument

MAX_LENGTH = 10_000
MAX_DEPTH = 50
MAX_NUMBER = 10**300
MAX_TEXT = 4 << 20
_PARSING = threading.Lock()  # warning filters are process-wide
_BARE = "_dm_variable_"
_STRING = r"""(?:"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
_NAME = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_TOKEN = re.compile(rf"({_STRING})|{_NAME.pattern}", re.ASCII | re.DOTALL)


class Unset:
    """The value of a bare name that is not set: equal to nothing, in nothing, false."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        return False


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
    ast.Is: lambda one, other: one == other,
    ast.IsNot: lambda one, other: one != other,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"int": int, "float": float, "str": str, "len": len, "abs": abs}
METHODS = frozenset({"lower", "upper", "strip", "startswith", "endswith"})


def check(text: Any, where: str) -> None:
    """Check an expression without evaluating it.

    :param where: how errors name it, e.g. ``Stage '1': runIf``.
    :raises InvalidArgument: not an expression of the supported kind.
    """
    _check(_parse(text, where), where)


def evaluate(text: str, variables: Mapping[str, Any], where: str) -> bool:
    """Evaluate an expression.

    :param variables: name -> text, number, truth value or list.
    :returns: its truth.
    :raises InvalidArgument: it cannot be evaluated with these values (e.g. text compared with a number by ``<``).
    """
    tree = _parse(text, where)
    _check(tree, where)
    try:
        return bool(_value(tree.body, variables))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise InvalidArgument(f"{where} {text[:200]!r} cannot be evaluated: {error}.") from None


def names(text: str) -> set[str]:
    """Return the variable names an expression mentions."""
    return {plain or braced for plain, braced in _NAME.findall(text)}


def _parse(text: Any, where: str) -> ast.Expression:
    if not isinstance(text, str) or not text.strip():
        raise InvalidArgument(f"{where} is not an expression: {str(text)[:60]!r}.")
    if len(text) > MAX_LENGTH:
        raise InvalidArgument(f"{where} is longer than {MAX_LENGTH} characters.")
    bound = _TOKEN.sub(lambda token: token[1] or _BARE + (token[2] or token[3]), text.strip())
    try:
        with _PARSING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\\d" and the like are legal in the text of a condition
            return ast.parse(" ".join(bound.splitlines()), mode="eval")
    except SyntaxError as error:
        raise InvalidArgument(f"{where} {text[:200]!r} is not a valid expression: {error.msg}.") from None
    except (ValueError, MemoryError, RecursionError):
        raise InvalidArgument(f"{where} is not a valid expression: it nests too deeply.") from None


def _children(node: ast.expr, where: str) -> list[ast.expr]:  # noqa: PLR0911 - one case a node kind
    """Return the operands of a supported node, or refuse it."""
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None):
            return []
        case ast.Name(id=name) if name.startswith(_BARE):
            return []
        case ast.BoolOp(values=values):
            return values
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            return [operand]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            return [left, right]
        case ast.Compare(left=left, comparators=others):
            return [left, *others]
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return items
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return arguments
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments, keywords=[]) if name in METHODS:
            return [value, *arguments]
        case ast.Name(id=name):
            raise InvalidArgument(f"{where} uses the word {name!r}; put texts in quotes and variables after a '$'.")
    raise InvalidArgument(
        f"{where} uses {ast.unparse(node).replace(_BARE, '$')[:80]!r}, which conditions do not support."
    )


def _check(tree: ast.Expression, where: str) -> None:
    level, here = 0, [tree.body]
    while here:
        level += 1
        if level > MAX_DEPTH:
            raise InvalidArgument(f"{where} nests deeper than {MAX_DEPTH}.")
        here = [child for node in here for child in _children(node, where)]


def as_text(value: Any) -> str:
    """Return a variable's value as the text that substitution shows."""
    return "" if value is None else str(value)


def _unset_text(name: str) -> str:
    """Return what an unset name is inside a text: characters no real value has."""
    return "".join(chr(0xE000 + ord(character)) for character in name)


def _literal(value: Any) -> Any:
    """Return what a bare ``$name`` means: numbers and truth values as such, anything else as text."""
    if not isinstance(value, str):
        return value
    word = value.strip()
    if word in ("True", "False"):
        return word == "True"
    if len(word) <= 40:
        for kind in (int, float):
            try:
                return kind(word)
            except ValueError:
                continue
    return value


def _value(node: ast.expr, variables: Mapping[str, Any]) -> Any:  # noqa: PLR0911, PLR0912 - one case a node kind
    match node:
        case ast.Constant(value=str() as text):
            return _NAME.sub(
                lambda token: (
                    as_text(variables[name]) if (name := token[1] or token[2]) in variables else _unset_text(name)
                ),
                text,
            )
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            name = name.removeprefix(_BARE)
            return _literal(variables[name]) if name in variables else Unset()
        case ast.BoolOp(op=op, values=values):
            wanted = isinstance(op, ast.Or)
            result: Any = None
            for item in values:
                result = _value(item, variables)
                if bool(result) is wanted:
                    break
            return result
        case ast.UnaryOp(op=op, operand=operand):
            inner = _value(operand, variables)
            return not inner if isinstance(op, ast.Not) else (-inner if isinstance(op, ast.USub) else +inner)
        case ast.BinOp(op=op, left=left, right=right):
            return _arithmetic(type(op), _value(left, variables), _value(right, variables))
        case ast.Compare(left=first, ops=operators, comparators=others):
            operands = [_value(operand, variables) for operand in (first, *others)]
            return all(
                _matches(comparison, left, right)
                for comparison, left, right in zip(operators, operands, operands[1:], strict=False)
            )
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item, variables) for item in items]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, variables) else orelse, variables)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name](*[_value(argument, variables) for argument in arguments])
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments):
            subject = _value(value, variables)
            if not isinstance(subject, str):
                raise TypeError(f"{name}() works on texts, not on {type(subject).__name__}")
            return getattr(subject, name)(*[_value(argument, variables) for argument in arguments])
    raise TypeError("unsupported expression")


def _matches(comparison: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(left, Unset) or isinstance(right, Unset):
        return isinstance(comparison, ast.NotEq | ast.NotIn | ast.IsNot)
    return bool(_COMPARE[type(comparison)](left, right))


def _arithmetic(op: type[ast.operator], left: Any, right: Any) -> Any:
    texts = isinstance(left, str) and isinstance(right, str) and op is ast.Add
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if not (texts or numbers):
        raise TypeError(f"{type(left).__name__} and {type(right).__name__} cannot be combined")
    result = _ARITHMETIC[op](left, right)
    if texts and len(result) > MAX_TEXT:
        raise ValueError("the text grows too long")
    if numbers and isinstance(result, int) and abs(result) > MAX_NUMBER:
        raise ValueError("the number grows too large")
    return result
