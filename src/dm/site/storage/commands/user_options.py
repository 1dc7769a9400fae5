"""Options of the commands that add and change users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from dm.common.command import option

F = TypeVar("F", bound=Callable[..., Any])


def name_options(function: F) -> F:
    """Add options for a person's names; those not given are ``None``."""
    decorated = option("--email", help="E-mail address.")(function)
    decorated = option("--middle-name", help="Middle name.")(decorated)
    decorated = option("--last-name", help="Last name.")(decorated)
    return option("--first-name", help="First name.")(decorated)
