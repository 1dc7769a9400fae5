"""Artefacts: files a stage has made go into the experiment's ``analysis`` directory, through the acquisition service.

They are copied first, then uploaded with one upload of a directory that nobody else writes to. The upload carries a key
made of job, stage and run, by which it is found again: a service that was killed meanwhile starts none twice.

The station's service account may publish nothing by itself. Uploads are started under the name of a manager of the
station (``artefact_login_file``), for job owners who are members of the experiment or manage the station.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import os
import pwd
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dm.common import environment, statuses
from dm.common.client import ApiClient
from dm.common.errors import (
    CommunicationError,
    ConfigurationError,
    DmException,
    InternalError,
    ObjectNotFound,
    ProcessingError,
    ServiceLimit,
    ServiceUnavailable,
    TaskTimeout,
)
from dm.common.settings import StationSettings
from dm.site.storage.api import ExperimentDsApi, UserDsApi
from dm.station.acquisition.api import ExperimentDaqApi, LedgerFile, UploadInfo
from dm.station.processing import artefact_files, substitution
from dm.station.processing.accounts import Account
from dm.station.processing.expressions import as_text
from dm.station.processing.settings import ProcessingSettings

if TYPE_CHECKING:
    from dm.station.processing.stagerun import StageRun

log = logging.getLogger(__name__)
KEY = "processingRun"
_PASSING = (CommunicationError, ServiceUnavailable, ServiceLimit, InternalError, TaskTimeout)
_PATIENCE = 600.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_POLL = 5.0  # a service that ends does not wait longer for its threads
_THREADS = 16
_SHOWN_ERRORS = 3
_LEFT_SECONDS = 3_600.0  # an upload may still be reading
_FILES, _UPLOAD = "files", "upload"  # in the directory of a stage: what is uploaded, and the id of that
_PLACE = re.compile(r"([0-9a-f-]{36})-[0-9a-f]{16}")

Record = dict[str, Any]
T = TypeVar("T")
C = TypeVar("C", bound=ApiClient)


class Artefacts:
    """Uploads artefacts.

    :param settings: of the service. :param station: of the station.
    """

    def __init__(self, settings: ProcessingSettings, station: StationSettings) -> None:
        self._settings = settings
        self._station = station
        self._threads = ThreadPoolExecutor(_THREADS, "artefacts")
        self._places: dict[str, set[Path]] = {}  # of jobs that have not ended; used in the engine's thread only
        self._daq = self._client(ExperimentDaqApi, settings.acquisition_url)
        self._experiments = self._client(ExperimentDsApi, station.storage_service_url)
        self._users = self._client(UserDsApi, station.storage_service_url)

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for api in (self._daq, self._experiments, self._users):
            api.close()

    async def of_stage(self, stage: StageRun) -> list[Record]:
        """Upload what a stage has made that was successful; see :meth:`publish`.

        Patterns and working directory are those of each of its input files, with ``$name`` replaced.
        """
        job = stage.job
        wanted = await self._in_thread(functools.partial(_wanted, stage))
        experiment = job.arguments.get("experimentName")
        run = str(job.restarts)
        return await self.publish(job.id, job.owner, stage.name, experiment, wanted, run=run, account=stage.account)

    async def publish(
        self,
        job_id: str,
        owner: str,
        stage: str,
        experiment: str | None,
        wanted: Sequence[artefact_files.Pattern],
        *,
        run: str = "",
        account: Account | None = None,
    ) -> list[Record]:
        """Upload the files that match, wait for the end of that, and return a record of each.

        May be repeated with the same job, stage and run: what was uploaded is not uploaded again.

        :param owner: of the job; must be a member of the experiment or manage the station.
        :param run: which execution of the stage this is. :param account: that the stage ran under.
        :returns: of each file ``path`` and ``experimentFilePath`` (relative to ``analysis``), ``size``, ``md5Sum``.
        :raises ProcessingError: they cannot be uploaded, and why.
        :raises ServiceUnavailable: site or acquisition service have been away for long; resuming the job tries again.
        """
        if not experiment:
            raise ProcessingError("The stage has artefacts, but the job has no experimentName to upload them to.")
        place = self._place(job_id, stage, run)
        await self._patient(functools.partial(self._check, owner, experiment))
        upload = await self._patient(functools.partial(self._existing, experiment, place))
        self._places.setdefault(job_id, set()).add(place)
        if upload is None:
            copied = await self._in_thread(functools.partial(_copy, wanted, place, account))
            if not copied:
                return []
            about = {KEY: place.name, "processingJobId": job_id, "processingStage": stage, "processingJobOwner": owner}
            upload = await self._patient(functools.partial(self._start, experiment, place, about))
        identity = str(upload["id"])
        while not upload.is_over:
            upload = await self._patient(functools.partial(self._daq.getUploadInfo, identity, _POLL))
        records = await self._patient(functools.partial(self._records, upload))
        await self._in_thread(functools.partial(shutil.rmtree, place / _FILES, ignore_errors=True))
        return records

    def forget(self, job_id: str) -> None:
        """Remove what is kept about the uploads of a job, which has ended: until now they could have been repeated."""
        for place in self._places.pop(job_id, ()):
            with contextlib.suppress(RuntimeError):  # the service ends; the next one looks through the directory
                self._threads.submit(shutil.rmtree, place, ignore_errors=True)

    def sweep(self, active: Callable[[str], bool]) -> None:
        """Remove copies that stopped jobs have left; a failure is logged only.

        :param active: says whether the job of an id has not ended.
        """
        if self._settings.artefact_directory is None or not self._settings.artefact_directory.is_dir():
            return
        try:
            for place in self._settings.artefact_directory.iterdir():
                match = _PLACE.fullmatch(place.name)
                if match and time.time() - place.lstat().st_mtime > _LEFT_SECONDS and not active(match[1]):
                    shutil.rmtree(place, ignore_errors=True)
        except (OSError, DmException) as error:
            log.warning("copies of artefacts cannot be looked through: %s", error)

    # --- asking ----------------------------------------------------------------------------------------------

    def _check(self, owner: str, experiment: str) -> None:
        """Refuse owners who may not write into the experiment."""
        try:
            found = self._experiments.getExperimentByName(experiment, self._station.name)
        except ObjectNotFound as error:
            raise ProcessingError(f"The artefacts cannot be uploaded: {error.message}") from None
        if owner in (found.get("experimentUsernameList") or ()):
            return
        with contextlib.suppress(ObjectNotFound):
            user = self._users.getUserByUsername(owner)
            if user.get("systemRoles") or "manager" in (user.get("stationRoles") or {}).get(self._station.name, ()):
                return
        raise ProcessingError(
            f"The artefacts cannot be uploaded: user {owner!r} is no member of experiment {experiment!r} and does not "
            f"manage station {self._station.name}."
        )

    def _existing(self, experiment: str, place: Path) -> UploadInfo | None:
        """Return the upload of an earlier attempt. Without the directory of its copies there was none."""
        if not place.exists():
            return None
        try:
            return self._daq.getUploadInfo((place / _UPLOAD).read_text())
        except (OSError, ObjectNotFound):  # killed before that was noted
            found = self._daq.listUploadRecords({"experimentName": experiment, KEY: place.name})
            return found[-1] if found else None

    def _start(self, experiment: str, place: Path, about: Record) -> UploadInfo:
        info = {**about, "useAnalysisDirectoryAsRoot": True, "processHiddenFiles": True, "onConflict": "version"}
        upload = self._daq.upload(experiment, str(place / _FILES), info)
        with contextlib.suppress(OSError):  # it is found by its key, too
            (place / _UPLOAD).write_text(str(upload["id"]))
        return upload

    def _records(self, upload: UploadInfo) -> list[Record]:
        if upload["status"] != statuses.DONE or upload.get("nProcessingErrors"):
            errors = [str(error) for error in upload.get("processingErrors") or ()][:_SHOWN_ERRORS]
            reason = " ".join(errors) or upload.get("errorMessage") or "no reason is known"
            raise ProcessingError(f"Upload {upload['id']} of the artefacts is {upload['status']}: {reason}")
        rows: list[LedgerFile] = []
        after: int | None = None
        while page := self._daq.listUploadFiles(upload["id"], "done", after=after):
            rows += page
            after = int(page[-1]["position"])
        found = [
            {
                "path": row["path"],
                "experimentFilePath": row["path"],
                "size": row["size"],
                "md5Sum": row.get("md5Sum") or None,
            }
            for row in rows
        ]
        return sorted(found, key=lambda record: str(record["path"]))

    # --- means -----------------------------------------------------------------------------------------------

    def _place(self, job_id: str, stage: str, run: str) -> Path:
        """Return the directory for the copies; its name is the key of the upload."""
        settings = self._settings
        if settings.artefact_directory is None or settings.artefact_login_file is None:
            raise ProcessingError(
                "This service uploads no artefacts: its settings artefact_directory and artefact_login_file are not "
                "both given. Ask the station's managers, or take dm-upload in the stage."
            )
        digest = hashlib.sha256("\0".join((stage, run)).encode("utf-8", "surrogateescape")).hexdigest()
        return settings.artefact_directory / f"{job_id}-{digest[:16]}"

    def _client(self, api: type[C], url: str) -> C:
        return api(url=url or None, ca_file=self._station.ca_file, credentials=self._login)

    def _login(self) -> tuple[str, str]:
        if self._settings.artefact_login_file is None:
            raise ConfigurationError("Setting artefact_login_file is not given.")
        return environment.read_login_file(self._settings.artefact_login_file)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _patient(self, work: Callable[[], T]) -> T:
        """Call a service; while it is away, again and again for a while.

        :raises ServiceUnavailable: it has been away for too long. :raises ProcessingError: it refuses.
        """
        deadline, pause = time.monotonic() + _PATIENCE, _FIRST_PAUSE
        while True:
            try:
                return await self._in_thread(work)
            except ProcessingError:
                raise
            except _PASSING as error:
                if time.monotonic() > deadline:
                    raise ServiceUnavailable(
                        f"The artefacts could not be uploaded for long: {error.message} Resume the job later."
                    ) from error
                log.warning("artefacts wait: %s", error)
            except DmException as error:
                raise ProcessingError(f"The artefacts cannot be uploaded: {error.message}") from error
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)


def _wanted(stage: StageRun) -> list[artefact_files.Pattern]:
    """Return what a stage wants to have kept. :raises ProcessingError: a pattern that cannot be."""
    texts, directory = stage.stage["artefacts"], stage.stage.get("workingDir")
    per_file = any("filePath" in text for text in (*texts, directory or ""))
    found: dict[artefact_files.Pattern, None] = {}
    for file in stage.files if per_file else stage.files[:1]:
        variables = {name: as_text(value) for name, value in stage.variables(file).items()}
        place = None if directory is None else substitution.shown(directory, variables)
        if place is not None and place.startswith("~/"):
            place = stage.account.home + place[1:]
        shown = [substitution.shown(text, variables) for text in texts]
        found |= dict.fromkeys(artefact_files.patterns(shown, place))
    return list(found)


def _copy(
    wanted: Sequence[artefact_files.Pattern], place: Path, account: Account | None
) -> list[artefact_files.Copied]:
    """Copy what matches, anew where an earlier attempt was interrupted."""
    try:
        place.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        if place.exists():
            shutil.rmtree(place)
    except OSError as error:
        raise ProcessingError(
            f"The directory for artefacts, {place.parent}, cannot be used: {error.strerror}."
        ) from None
    try:
        place.mkdir(mode=0o750)
        return artefact_files.copy(wanted, place / _FILES, _uid(account))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _uid(account: Account | None) -> int | None:
    """Return whose files count: those of the stage's account, where it is not the service's own."""
    if account is None or not account.prefix:
        return None
    uid = pwd.getpwnam(account.name).pw_uid
    return None if uid == os.geteuid() else uid
