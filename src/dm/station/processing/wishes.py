"""What somebody who submits a job wishes, and whether that can be."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dm.common.errors import InvalidArgument, ServiceLimit
from dm.station.processing import documents, substitution
from dm.station.processing.expressions import as_text

MAX_ARGUMENTS = 1_000
MAX_ARGUMENT_NAME = 255
MAX_SIZE = 4 << 20
MAX_KEY = 1_024
MAX_PRIORITY = 100


@dataclass(frozen=True)
class Wish:
    """A job somebody wants.

    :param arguments: input specification and values of ``$name``. :param owner: whose job it is to be; ``None``: the
        caller's. :param key: the same key of the same caller gives the same job, however often and whenever.
    :param priority: -100 to 100; ``None``: the workflow's. :param via: the interface it came by.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None
    key: str | None = None
    priority: int | None = None
    via: str = "REST"

    @classmethod
    def parse(cls, given: Mapping[str, Any], via: str) -> Wish:
        """Read one of many jobs as submitted: ``argsDict``, ``jobOwner``, ``idempotencyKey``, ``priority``.

        :raises InvalidArgument: one of another type.
        """
        arguments, priority = given.get("argsDict") or {}, given.get("priority")
        if not isinstance(arguments, Mapping):
            raise InvalidArgument(f"argsDict is {arguments!r:.80}, not an object.")
        for name in ("jobOwner", "idempotencyKey"):
            if not isinstance(given.get(name), str | None):
                raise InvalidArgument(f"{name} is {given[name]!r:.80}, not a text.")
        if isinstance(priority, bool) or not isinstance(priority, int | None):
            raise InvalidArgument(f"priority is {priority!r:.80}, not a whole number.")
        return cls(arguments, given.get("jobOwner"), given.get("idempotencyKey"), priority, via)

    def job_id(self, username: str) -> str:
        """Return a fresh id, or the one that belongs to the key: the database's unique key does the rest.

        :raises InvalidArgument: the key is too long.
        """
        if not self.key:
            return str(uuid.uuid4())
        if len(self.key) > MAX_KEY:
            raise InvalidArgument(f"The idempotency key is longer than {MAX_KEY} characters.")
        digest = hashlib.sha256(json.dumps([username, self.key]).encode()).digest()
        return str(uuid.UUID(bytes=digest[:16], version=4))

    def priority_of(self, workflow: Mapping[str, Any]) -> int:
        """Return the priority of the job. :raises InvalidArgument: out of range."""
        if self.priority is None:
            return int(workflow.get("priority") or 0)
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise InvalidArgument(f"Priority {self.priority} is not between -{MAX_PRIORITY} and {MAX_PRIORITY}.")
        return self.priority


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments no job can have.

    :raises InvalidArgument: naming one that is reserved or cannot be a variable. :raises ServiceLimit: too large.
    """
    if len(arguments) > MAX_ARGUMENTS:
        raise InvalidArgument(f"A job takes at most {MAX_ARGUMENTS} arguments, not {len(arguments)}.")
    for name, value in arguments.items():
        if not name or len(name) > MAX_ARGUMENT_NAME or not name.isprintable():
            raise InvalidArgument(f"Argument name {name[:80]!r} is empty, too long or not printable.")
        if name in documents.ENGINE_KEYS:
            raise InvalidArgument(f"Argument name {name!r} is reserved; choose another.")
        text = json.dumps(value) if isinstance(value, dict | list) else as_text(value)
        if reason := substitution.bad_value(name, text):
            raise InvalidArgument(reason)
    if len(json.dumps(dict(arguments))) > MAX_SIZE:
        raise ServiceLimit(f"The arguments of a job are larger than {MAX_SIZE} bytes.")
