"""Sending local files to the GridFTP servers of a storage host.

globus-url-copy says of a list only that something failed, and after a failure it spoils the next file of the same
connection. So what arrived is read from the staging directory itself, and what did not is sent once more, as long as
that brings something.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from dm.common.errors import CommunicationError, TransferError
from dm.common.paths import display
from dm.station.acquisition.transports.base import FileOutcome, TransferBatch, TransferFile
from dm.station.acquisition.transports.copying import CopyError, mount_point, note
from dm.station.acquisition.transports.gridftp_copy import Connections, Ended, copy, local_url, place, url
from dm.station.acquisition.transports.gridftp_credentials import Credentials
from dm.station.acquisition.transports.gridftp_fleet import Fleet
from dm.station.acquisition.transports.gridftp_settings import GridFtpSettings, Server
from dm.station.acquisition.transports.offering import Offer, digested, opened, parts

ROUNDS = 4
BLOCK = 256 << 10  # bytes that servers write at once


@dataclass(frozen=True)
class Tools:
    """What moving needs.

    :param connections: shared by all batches. :param workers: digest files.
    """

    settings: GridFtpSettings
    credentials: Credentials
    fleet: Fleet
    connections: Connections
    workers: Executor


class Staging:
    """The staging directory of a batch: behind the servers of its host, or reachable on this machine.

    :raises TransferError: no servers are known for the host, or they do not show the directory.
    """

    def __init__(self, tools: Tools, batch: TransferBatch) -> None:
        self._fleet = tools.fleet
        self._here = batch.staging_directory
        self._shown = None
        self.where = f"the file system at {mount_point(self._here)!r}"
        if batch.staging_host is not None:
            self._shown = tools.settings.servers.get(batch.staging_host)
            if self._shown is None:
                raise TransferError(
                    f"No GridFTP server of storage host {batch.staging_host!r} is known; name it in "
                    "acquisition.transports.gridftp.servers."
                )
            self._there = place(self._shown, self._here, f"Staging directory {display(self._here)!r}")
            self.where = f"storage host {batch.staging_host!r}"

    def servers(self) -> list[Server]:
        """Return the servers to send to now; none when the directory is reachable here.

        :raises CommunicationError: none answers.
        """
        return self._fleet.answering(self._shown.servers, self._there) if self._shown else []

    def url(self, servers: Sequence[Server], name: str) -> str:
        """Return the URL of a staged file."""
        if not servers:
            return local_url(os.path.join(self._here, name.encode()))
        return url("destination", servers, self._there + b"/" + name.encode())

    def arrived(self, servers: Sequence[Server]) -> dict[str, int]:
        """Return the sizes of the staged files.

        :raises CommunicationError: the servers do not tell.
        """
        if not servers:
            with os.scandir(self._here) as entries:
                return {os.fsdecode(one.name): one.stat(follow_symlinks=False).st_size for one in entries}
        listed = self._fleet.ask(servers, lambda control: control.listing(self._there))
        return {fact.name.decode("utf-8", "replace"): fact.stamp.size for fact in listed if fact.kind == "file"}


def push(tools: Tools, batch: TransferBatch) -> list[FileOutcome]:
    """Send a batch, digesting its files meanwhile; see :meth:`..base.Transport.move`."""
    staging = Staging(tools, batch)
    outcomes: list[FileOutcome] = []
    for files in parts(batch.files):
        outcomes += _push(tools, batch, staging, files)
    return outcomes


def _push(tools: Tools, batch: TransferBatch, staging: Staging, files: Sequence[TransferFile]) -> list[FileOutcome]:
    outcomes = [FileOutcome(file.staged_name) for file in files]
    with opened(batch, files, outcomes) as offers:
        if not offers:
            return outcomes
        with digested(tools.workers, batch, offers):
            unsent = _send(tools, batch, staging, offers)
        for offer in offers:
            if offer.file.staged_name in unsent and not offer.outcome.error:
                note(offer.outcome, unsent[offer.file.staged_name], offer.file.path)
    return outcomes


def _send(tools: Tools, batch: TransferBatch, staging: Staging, offers: Iterable[Offer]) -> dict[str, CopyError]:
    """Send what is offered, in as many rounds as bring something.

    :returns: staged name -> why it did not arrive.
    """
    left = {offer.file.staged_name: offer for offer in offers}
    before = {name: offer.size for name, offer in left.items()}
    ended: Ended | None = None
    stuck = ""
    with (
        tempfile.TemporaryDirectory(prefix="dm-gridftp-") as private,
        tools.connections.share() as connections,
    ):
        for _round in range(ROUNDS):
            servers = staging.servers()
            ended, stuck = None, ""
            try:
                ended = copy(
                    [(f"file://{offer.path}", staging.url(servers, name)) for name, offer in left.items()],
                    private,
                    tools.settings,
                    tools.credentials.environment(),
                    connections=connections,
                    sizes=(before[name] for name in left),
                    hosts={"destination": servers} if servers else {},
                    stop=batch.stop,
                )
            except TransferError as error:
                stuck = error.message
            arrived = staging.arrived(servers)
            missing = {
                name: offer
                for name, offer in left.items()
                if not whole(name, before[name], arrived, ended) and offer.steady
            }
            if not missing:
                return {}
            good = tools.fleet.weed(servers)
            if len(missing) == len(left) and len(good) == len(servers) and not (ended and ended.killed):
                break
            left = missing
    if len(missing) == len(before):
        require_reason(ended, stuck, missing, staging.where)
    return {name: not_arrived(offer.file, [name], ended, stuck, staging.where) for name, offer in missing.items()}


def whole(name: str, size: int, arrived: Mapping[str, int], ended: Ended | None) -> bool:
    """Whether a file surely arrived.

    :param arrived: staged name -> size. :param ended: the run; ``None`` when it was given up: like one that was killed,
        it may leave a file of full size in which a block is missing.
    """
    if arrived.get(name) != size:
        return False
    if ended is None or ended.killed:
        return size <= BLOCK
    return ended.code == 0 or not ended.complaint(name)


def require_reason(ended: Ended | None, stuck: str, names: Iterable[str], where: str) -> None:
    """Tell a way that is blocked from files that are refused, when not one arrived.

    :param ended: the last run; ``None`` when it was given up, and ``stuck`` says why. :param names: see
        :func:`not_arrived`.
    :raises CommunicationError: nothing was said of any of the files: another transport may have a way.
    """
    if ended is None:
        raise CommunicationError(f"No file arrived on {where}: {stuck}")
    if not ended.full and not any(ended.complaint(name) for name in names):
        raise CommunicationError(f"No file arrived on {where}: {ended.sentence()}.")


def not_arrived(file: TransferFile, names: Iterable[str], ended: Ended | None, stuck: str, where: str) -> CopyError:
    """Return why a file did not arrive.

    :param names: of the file, as servers and globus-url-copy say them; for the others see :func:`require_reason`.
    """
    said = stuck.rstrip(".")
    if ended is not None:
        said = next((text for name in names if (text := ended.complaint(name))), "") or ended.sentence()
    return CopyError(
        f"File {display(file.path)!r} did not arrive on {where}: {said}.", transient="Permission denied" not in said
    )
