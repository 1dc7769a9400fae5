"""The ZeroMQ interface from settings."""

from __future__ import annotations

import socket
from pathlib import Path

from dm.common.errors import ConfigurationError
from dm.common.health import Health
from dm.common.web.application import Application
from dm.station.processing.settings import ProcessingSettings
from dm.station.processing.zeromq.desk import Desk
from dm.station.processing.zeromq.server import Gateway, Place


def gateway(
    settings: ProcessingSettings, application: Application, health: Health, station: str, var_dir: Path
) -> Gateway | None:
    """Return the interface, not started; ``None`` where the settings turn it off. Makes the service's keys.

    :param application: whose sessions, rights and routes it shares. :param var_dir: of the station.
    :raises ConfigurationError: unusable keys or host.
    """
    if not settings.zeromq:
        return None
    directory = (settings.zeromq_keys or var_dir / "zeromq").absolute()
    requests, events = (_address(settings.host, port) for port in settings.zeromq_ports.values())
    return Gateway(Place(requests, events, directory, settings.zeromq_threads), Desk(application, station), health)


def _address(host: str, port: int) -> str:
    """Return a ZeroMQ address; ZeroMQ listens on numeric addresses only."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104
        return f"tcp://*:{port or '*'}"
    try:
        numeric = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ConfigurationError(f"Host {host!r} of [processing] has no address: {error.strerror}.") from error
    shown = f"[{numeric}]" if ":" in str(numeric) else numeric
    return f"tcp://{shown}:{port or '*'}"
