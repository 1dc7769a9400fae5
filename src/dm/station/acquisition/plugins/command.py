"""Plugin ``command``: runs a program of the site for every stored file, or for every batch of them."""

from __future__ import annotations

import os
import string
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dm.common import accounts
from dm.common.errors import ConfigurationError, ProcessingError
from dm.common.paths import display, encode
from dm.station.acquisition.plugins import message
from dm.station.acquisition.plugins.base import Plugin, PluginBatch, PluginContext, PluginFile
from dm.station.acquisition.plugins.message import Per
from dm.station.acquisition.plugins.process import Ended, Program

TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h
_NOTED = 500
_OF_A_FILE = frozenset({"storagePath", "sourcePath", "experimentFilePath", "size", "md5Sum", "version"})
_OF_ALL = frozenset({"experimentName", "root", "daqId", "station"})
_PATH = b"/usr/local/bin:/usr/bin:/bin"


class CommandSettings(BaseModel):
    """Settings ``[acquisition.plugins.command]``.

    :param arguments: the program, by its absolute path, and its arguments. ``{storagePath}``, ``{sourcePath}``,
        ``{experimentFilePath}``, ``{size}``, ``{md5Sum}`` and ``{version}`` are those of the file (``per = "file"``);
        ``{experimentName}``, ``{root}``, ``{daqId}`` and ``{station}`` can always be used. A brace itself is ``{{``.
    :param per: ``file`` or ``batch``. :param seconds: a run may take; then all it started is killed.
    :param parallel: runs at the same time in one batch, with ``per = "file"``.
    :param account: Unix account to run it under; needed where the service runs as root.
    :param note_output: keep the end of what it says in the file's ledger row also when all is well.
    """

    model_config = ConfigDict(extra="forbid")

    arguments: list[str] = Field(min_length=1)
    per: Per = "file"
    seconds: float = Field(default=60, gt=0, le=86_400)
    parallel: int = Field(default=1, ge=1, le=32)
    account: str | None = None
    note_output: bool = False

    @field_validator("arguments")
    @classmethod
    def _absolute(cls, value: list[str]) -> list[str]:
        if not value[0].startswith("/") or "{" in value[0]:
            raise ValueError(f"the program {value[0]!r} must be an absolute path without placeholders")
        return value

    @model_validator(mode="after")
    def _known(self) -> CommandSettings:
        known = _OF_ALL | (_OF_A_FILE if self.per == "file" else frozenset())
        for word in self.arguments:
            for _text, name, form, conversion in string.Formatter().parse(word):
                if name is not None and (name not in known or form or conversion):
                    listed = ", ".join(f"{{{one}}}" for one in sorted(known))
                    raise ValueError(f"argument {word!r} has a placeholder that is none of {listed}")
        return self


class Command(Plugin):
    """Runs a program without a shell; names of files are data for it, whatever they look like.

    On its standard input it gets the JSON text of :mod:`~dm.station.acquisition.plugins.message`. Exit status 0 is
    success, 75 (``EX_TEMPFAIL``) asks to be run again later; any other is a failure, and so is taking too long. After
    a crash of the service a file may be shown to it once more.
    """

    name = "command"
    summary = "Runs a program of the site for each stored file, or for each batch of them."
    settings_model = CommandSettings

    def __init__(self, settings: BaseModel, context: PluginContext) -> None:
        super().__init__(settings, context)
        assert isinstance(settings, CommandSettings)
        self._given = settings
        program = settings.arguments[0]
        if not os.access(program, os.X_OK) or os.path.isdir(program):
            raise ConfigurationError(f"Program {program!r} of plugin command is missing or not executable.")
        try:
            account = accounts.chosen(settings.account, "site commands", "the plugin's account")
        except ProcessingError as error:
            raise ConfigurationError(error.message) from error
        self._prefix = account.prefix
        self._base = {b"PATH": _PATH, b"LANG": b"C.UTF-8", b"HOME": os.fsencode(account.home)}

    def process(self, batch: PluginBatch) -> None:
        """Run the program for what is to be done."""
        groups = list(message.parts(batch, self._given.per))
        if self._given.parallel == 1 or len(groups) < 2:
            for files in groups:
                self._run(batch, files)
            return
        with ThreadPoolExecutor(self._given.parallel, "site-command") as pool:
            list(pool.map(lambda files: self._run(batch, files), groups))

    def _run(self, batch: PluginBatch, files: list[PluginFile]) -> None:
        """Run it once and tell the files how it went."""
        if self.context.stop.is_set():
            _fail(files, "The service stops; the command is run later.", transient=True)
            return
        values = self._values(batch, files)
        words: list[bytes] = []
        for word in self._given.arguments:
            filled = _filled(word, values)
            if filled.startswith(b"-") and not word.startswith("-"):
                _fail(files, f"Value {display(filled)[:100]!r} would be an option of the command; it was not run.")
                return
            words.append(filled)
        told = message.text(message.message(self.context.station_name, batch, files))
        variables = self._base | {b"DM_" + _variable(name): value for name, value in values.items()}
        arguments: list[str | bytes] = [*self._prefix, *words]
        try:
            ended = Program(arguments, told, self._given.seconds, variables, self.context.stop).run()
        except (OSError, ValueError) as error:
            _fail(files, f"Command {self._given.arguments[0]!r} cannot be started: {error}.")
            return
        self._judge(files, ended)

    def _judge(self, files: list[PluginFile], ended: Ended) -> None:
        said = " ".join(ended.output.decode("utf-8", "replace").split())[-_NOTED:]
        program = repr(self._given.arguments[0])
        if ended.stopped:
            _fail(files, f"Command {program} was ended because the service stops; it is run later.", transient=True)
        elif ended.late:
            _fail(files, f"Command {program} did not end in {self._given.seconds:g} s and was killed: {said}")
        elif ended.status:
            how = f"status {ended.status}" if ended.status > 0 else f"signal {-ended.status}"
            _fail(files, f"Command {program} ended with {how}: {said}", transient=ended.status == TEMPORARY)
        elif self._given.note_output and said:
            for file in files:
                file.note(f"{self.name}: {said}")

    def _values(self, batch: PluginBatch, files: list[PluginFile]) -> dict[str, bytes]:
        values = {
            "experimentName": encode(str(batch.experiment["name"])),
            "root": encode(batch.root),
            "daqId": encode(str(batch.daq["id"])),
            "station": encode(self.context.station_name),
        }
        if self._given.per == "file":
            [file] = files
            values |= {
                "storagePath": file.storage_path,
                "sourcePath": file.source_path,
                "experimentFilePath": file.path,
                "size": b"%d" % file.size,
                "md5Sum": encode(file.md5),
                "version": b"%d" % file.version,
            }
        return values


def _filled(word: str, values: dict[str, bytes]) -> bytes:
    """Put values into a word, once: what looks like a placeholder in a value stays as it is."""
    parts = []
    for text, name, _form, _conversion in string.Formatter().parse(word):
        parts.append(encode(text))
        if name is not None:
            parts.append(values[name])
    return b"".join(parts)


def _variable(name: str) -> bytes:
    """Return ``storagePath`` as ``STORAGE_PATH``."""
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in name).upper().encode()


def _fail(files: list[PluginFile], reason: str, transient: bool = False) -> None:
    for file in files:
        file.fail(reason, transient=transient)
