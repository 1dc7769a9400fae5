"""The page on ZeroMQ names every operation with its arguments, every key of events, and the limits there are."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from unittest.mock import MagicMock

from dm.common.web.routes import Arguments
from dm.deploy.install import ZEROMQ_PORTS
from dm.station.processing.routes import routes
from dm.station.processing.zeromq import load, messages, server
from dm.station.processing.zeromq.client import ADDRESS, EVENTS_ADDRESS, KEY_FILE, SERVER_KEY, ProcZmqApi
from dm.station.processing.zeromq.messages import EVENT_KEYS, OPERATIONS, OWN_ARGUMENTS, Operation
from dm.station.processing.zeromq.replies import PEER_BYTES

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "zeromq.md").read_text()
TABLE = {
    (route.method, route.path): route.arguments
    for route in routes(*(MagicMock() for _ in inspect.signature(routes).parameters))
}


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table whose first heading is this."""
    _before, _title, after = PAGE.partition(f"| {title} |")
    table = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def written(model: type[Arguments], operation: Operation) -> set[str]:
    """Return the arguments of a model as the page writes them."""
    optional = {"owner"} if operation.finds_owner else set()
    return {
        f"`{field.alias or name}`{'' if field.is_required() and name not in optional else '?'}"
        for name, field in model.model_fields.items()
    }


def test_operations() -> None:
    found = {row[0].strip("`"): set(filter(None, row[1].split(", "))) for row in rows("operation")}
    assert list(found) == list(OPERATIONS)
    for name, operation in OPERATIONS.items():
        model = OWN_ARGUMENTS[name] if operation.route is None else TABLE[operation.route]
        expected = written(model, operation)
        if operation.by_owner:
            assert set(TABLE[operation.by_owner].model_fields) - set(model.model_fields) == {"owner"}
            expected |= {"`owner`?"}
        assert found[name] == expected, name


def test_events() -> None:
    cells = [cell for row in rows("key") for cell in re.findall(r"`(\w+)`", row[0])]
    _before, _title, after = PAGE.partition("| key | of |")
    keys = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in after.partition("\n\n")[0].splitlines()[2:]))
    assert {"id", "op", "session"} <= set(cells) and set(keys) == set(EVENT_KEYS)


def test_limits_ports_and_names() -> None:
    for figure in (
        f"{messages.MAX_REQUEST >> 20} MiB",
        f"{messages.MAX_REPLY >> 20} MiB",
        f"{PEER_BYTES >> 20} MiB",
        f"{load.PEER_REQUESTS} requests",
        f"{load.KEY_REQUESTS:,} of one key",
        f"{server.SUBSCRIBER_QUEUE:,} events",
        *(str(port) for port in ZEROMQ_PORTS.values()),
        *(f"`{name}`" for name in (ADDRESS, EVENTS_ADDRESS, SERVER_KEY, KEY_FILE)),
        *(f"`{name}`" for name in vars(ProcZmqApi) if not name.startswith("_") and name != "username"),
    ):
        assert re.search(re.escape(figure), re.sub(r"\s+", " ", PAGE)), figure
