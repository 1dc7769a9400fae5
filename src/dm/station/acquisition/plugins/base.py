"""What a processing plugin is: work done with files after storage has verified and published them.

A plugin gets a batch, does its work for all of it at once (one request for many files), and reports per file. The
pipeline remembers in the ledger which plugins a file still needs, runs them in their :class:`Order`, repeats transient
failures with back-off, and resumes after a restart - so ``process`` may see the same file again and must be idempotent:
:attr:`PluginFile.key` is the same text each time for the same bytes of the same file.

Plugins are found by the entry point group ``dm.acquisition.plugins`` or as ``module:Class`` in the settings.
"""

from __future__ import annotations

import enum
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dm.common.client import ApiClient
from dm.common.paths import decode
from dm.station.acquisition.transports.base import NoSettings

C = TypeVar("C", bound=ApiClient)


class Order(enum.IntEnum):
    """Where in the order a plugin runs. A file waits at a plugin until those of smaller order are done with it; plugins
    of equal order run as the settings list them, and none of them holds a file back from another."""

    METADATA = 10
    CATALOG = 20
    WORKFLOW = 30
    LAST = 40


class PluginOptions(BaseModel):
    """Keys that every plugin's table of the settings may have, beside those of its own settings model.

    :param order: instead of the plugin's own :class:`Order`.
    :param after: names of plugins that have to be done with a file before this one sees it.
    :param required: instead of the plugin's own :attr:`Plugin.required`.
    :param concurrency: batches it works on at the same time, over all DAQs and uploads; ``None``: half of the workers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: int | None = Field(default=None, ge=0, le=1000)
    after: frozenset[str] = frozenset()
    required: bool | None = None
    concurrency: int | None = Field(default=None, ge=1, le=64)


@dataclass(frozen=True)
class PluginContext:
    """What the service gives every plugin at start.

    :param station_name: this station.
    :param username: the station's service account, for calls to the other services.
    :param password: of that account; keep it out of logs.
    :param ca_file: certificate authority that signs the other services, or ``None`` for the system's.
    :param stop: set when the service stops; long work ends soon after.
    """

    station_name: str
    username: str
    password: str = field(repr=False)
    ca_file: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, api: type[C], url: str = "", timeout: float = 60.0) -> C:
        """Return an API object under the station's service account, e.g. ``client(CatalogServiceApi)``. Close it.

        :param api: the API class. :param url: of the service; empty: the one the environment names.
        :param timeout: seconds per request.
        """
        return api(self.username, self.password, url or None, ca_file=self.ca_file, timeout=timeout)


@dataclass
class PluginFile:
    """One stored file on its way through the plugins.

    :param path: experiment file path, relative to the root's directory (``data/`` or ``analysis/``), as bytes.
    :param source_path: absolute path it came from, as bytes (on ``source_host`` when there is one).
    :param source_url: the same as text for records, e.g. ``file:///...`` or ``ssh://host/...``.
    :param storage_path: absolute path in storage, as bytes.
    :param size: bytes. :param mtime_ns: modification time, nanoseconds since the epoch.
    :param digests: algorithm -> hex, as storage verified them. :param md5: hex MD5 or empty.
    :param version: counts up with every change of the stored file, from 1.
    :param key: idempotency key: DAQ, path and digest.
    :param metadata: what is known about the file: the user's own ``key:value`` words, then what plugins add.
    :param in_place: it was not moved: storage counts no versions of it.
    :param run: how often somebody had it processed again, which is to have its effects once more (another job, say).
    :param notes: what the file's ledger row is to say beside the outcome; see :meth:`note`.
    :param error: set by :meth:`fail`. :param transient: whether trying again may help.
    """

    path: bytes
    source_path: bytes
    source_url: str
    storage_path: bytes
    size: int
    mtime_ns: int
    digests: dict[str, str]
    md5: str
    version: int
    key: str
    source_host: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    in_place: bool = False
    run: int = 0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    transient: bool = False

    def note(self, text: str) -> None:
        """Add a sentence to the file's ledger row, e.g. what a program said."""
        self.notes.append(text)

    def fail(self, message: str, transient: bool = False) -> None:
        """Record that this plugin failed for this file.

        :param message: one sentence: what, which value, what to do.
        :param transient: repeat with back-off; otherwise it counts as a processing error and stays in the ledger.
        """
        self.error = message
        self.transient = transient

    def readable(self) -> str | None:
        """Return a local path the bytes can be read from: the source while it is there unchanged, else storage, else
        ``None``. Text by ``os.fsdecode``."""
        if self.source_host is None:
            try:
                status = os.stat(self.source_path, follow_symlinks=False)
            except OSError:
                status = None
            if status is not None and status.st_size == self.size and status.st_mtime_ns == self.mtime_ns:
                return decode(self.source_path)
        return decode(self.storage_path) if os.access(self.storage_path, os.R_OK) else None


@dataclass
class PluginBatch:
    """Files that pass a plugin together; all of one DAQ or upload.

    :param daq: its info record as users see it (6.3), including ``id``, ``experimentName``, ``workflowName``,
        ``workflowOwner``, ``workflowArgs`` (a dict), ``workflowJobOwner``, ``owner`` and the user's extra keys.
    :param experiment: the experiment record of the storage service (``id``, ``name``, ``dataDirectory``, ...).
    :param root: ``data`` or ``analysis``: which directory of the experiment ``path`` is relative to.
    :param files: those this plugin has not done yet. ``metadata`` persists from plugin to plugin, and over restarts.
    :param id: of the batch; the same when it is seen again after a restart.
    :param directory_mode: ``processingMode`` is ``directory``: per-file plugins that start jobs start one for all
        instead; such a plugin is then called once at the end, with ``last`` set and all stored files.
    :param last: this is the final call of a directory-mode upload.
    """

    daq: dict[str, Any]
    experiment: dict[str, Any]
    root: str
    files: list[PluginFile]
    directory_mode: bool = False
    last: bool = False
    id: str = ""


class Plugin(ABC):
    """Base of all plugins. One instance serves all DAQs; :meth:`process` may run in several threads at once.

    :param settings: an instance of :attr:`settings_model`.
    :param context: station and service account.
    """

    #: its name; the service sets that of its table in the settings, so that a class may be used more than once
    name: str
    summary: ClassVar[str] = ""
    order: ClassVar[Order] = Order.LAST
    settings_model: ClassVar[type[BaseModel]] = NoSettings
    #: whether a permanent failure keeps the file from the plugins after it (else it is noted and the file goes on)
    required: bool = True
    #: whether later plugins need what it adds to the files' metadata, which is kept in memory only: it then sees
    #: files again whenever a later plugin does
    prepares: ClassVar[bool] = False
    #: files that hold its secrets; no DAQ or upload may read them as data
    secrets: tuple[Path, ...] = ()
    #: set by the service from the table
    placing: PluginOptions = PluginOptions()
    #: whether a directory-mode upload calls it once for all files at the end instead of batch by batch
    once_per_directory: ClassVar[bool] = False

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def rank(self) -> int:
        """Where in the order it runs: of the settings, else its own."""
        return self.order if self.placing.order is None else self.placing.order

    def waits_for(self, other: Plugin) -> bool:
        """Whether a file that ``other`` is not done with is kept from this plugin."""
        return other.rank < self.rank or other.name in self.placing.after

    def applies(self, daq: dict[str, Any]) -> bool:
        """Whether this DAQ or upload needs the plugin at all, e.g. a workflow was named. Asked once, at its start."""
        return True

    def check(self, daq: dict[str, Any]) -> None:  # noqa: B027 - most plugins check nothing
        """Check a DAQ's or upload's keys before it is accepted, e.g. that the named workflow exists.

        :raises DmException: in one sentence naming the value; the DAQ is then refused.
        """

    @abstractmethod
    def process(self, batch: PluginBatch) -> None:
        """Do the work for every file, calling :meth:`PluginFile.fail` for those it could not be done for.

        Must be idempotent (see the module text). An exception means that nothing could be tried, e.g. a service is
        down: every file of the batch is repeated later.
        """

    def look_up(self, experiment: dict[str, Any], root: str, path: bytes) -> dict[str, Any] | None:
        """Return what the plugin's own service has on record of a file, for people who ask where the file is.

        :returns: ``None`` when the plugin keeps no records, an empty dictionary when there is none of this file.
        :raises DmException: it cannot be asked now.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most plugins hold nothing
        """Release what the plugin holds."""


def still_needed(plugins: Sequence[Plugin], pending: Sequence[str]) -> list[str]:
    """Return the plugins that have to see a file when those named are not done with it, in their order.

    :param plugins: of the task.
    """
    left = [plugin for plugin in plugins if plugin.name in pending]
    before = {plugin.name for plugin in plugins if plugin.prepares and any(one.waits_for(plugin) for one in left)}
    return [plugin.name for plugin in plugins if plugin in left or plugin.name in before]
