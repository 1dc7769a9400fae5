"""A task at Globus: submitted once, followed to its end, and what it says of each file."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from dm.common.errors import ServiceUnavailable, TransferError
from dm.station.acquisition.transports.base import TransferBatch
from dm.station.acquisition.transports.globus_record import Record, Records
from dm.station.acquisition.transports.globus_session import Session, UnknownToGlobus

if TYPE_CHECKING:
    from globus_sdk import TransferClient

_SLICE = 0.25  # seconds after which a waiting batch looks whether it is to stop
_LABEL = 128
_DETAILS = 300
_FINE = {"", "ok", "queued"}
#: event codes that trying the same again does not cure; everything else may pass (space, network, a busy server)
_PERMANENT = {
    "AMBIGUOUS_PATH",
    "CANCELED",
    "FILE_NOT_FOUND",
    "INVALID_PATH_NAME",
    "INVALID_SYMLINK",
    "IS_A_DIRECTORY",
    "NOT_A_FILE",
    "PERMISSION_DENIED",
}
_HINTS = {
    "FILE_NOT_FOUND": "compare acquisition.transports.globus.source_paths with what the collection shows",
    "PERMISSION_DENIED": "let the account that Globus maps to read the data directory and write staging",
    "CANCELED": "the task was canceled at Globus; retry the files when it may run",
}


@dataclass
class TaskAtGlobus:
    """The task of one batch.

    :param client: of this thread. :param record: of the batch; changed here, saved where it must be durable.
    """

    session: Session
    client: TransferClient
    records: Records
    record: Record

    # --- submitting -------------------------------------------------------------------------------------------------
    def submit(self) -> None:
        """Submit the task, or find the one that was submitted under the same submission id already.

        :raises TransferError: refused; nothing of it is kept, so it may be put right.
        :raises ConfigurationError: no access at the moment. :raises ServiceUnavailable: :raises CommunicationError:
            unknown whether it arrived; to be repeated.
        """
        if self.record.task:
            return
        try:
            answer = self.session.call(self.client.submit_transfer, self._document())
        except TransferError:
            self.records.drop(self.record.batch)
            raise
        self.record.task = str(answer["task_id"])
        self.records.save(self.record)

    def _document(self) -> Any:
        from globus_sdk import MISSING, TransferData

        settings = self.session.settings
        hours = settings.deadline_hours
        data = TransferData(
            str(settings.source_collection),
            str(settings.destination_collection),
            label=f"{settings.label} {self.record.batch}"[:_LABEL],
            submission_id=self.record.submission,
            verify_checksum=settings.verify_checksum,
            encrypt_data=settings.encrypt_data,
            deadline=(datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds") if hours else MISSING,
            # one file that is gone must not hold back the others
            skip_source_errors=True,
            # a full disk is waited for: the task goes on when there is room again
            fail_on_quota_errors=False,
            notify_on_succeeded=False,
            notify_on_failed=False,
            notify_on_inactive=False,
        )
        for name, sent in self.record.files.items():
            data.add_item(sent.source, self.record.destination + name)
        return data

    # --- following --------------------------------------------------------------------------------------------------
    def wait(self, batch: TransferBatch) -> dict[str, Any]:
        """Wait for the end of the task and return its document.

        It is not cancelled when this service stops: it is found again after the next start.

        :raises ServiceUnavailable: it makes no progress at the moment (the text says why), or we are to stop.
        :raises TransferError: Globus does not know it any more; it is submitted anew next time.
        """
        told = 0
        while True:
            try:
                task = dict(self.session.call(self.client.get_task, self.record.task).data)
            except UnknownToGlobus as error:
                self.records.drop(self.record.batch)
                raise TransferError(f"{error.message} Task {self.record.task} is submitted anew.") from None
            moved = int(task.get("bytes_transferred") or 0)
            batch.moved(max(0, moved - told))
            told = max(told, moved)
            if task["status"] in ("SUCCEEDED", "FAILED"):
                return task
            if batch.aborted():
                self.cancel()
                raise ServiceUnavailable(f"Globus task {self.record.task} was canceled because the batch is given up.")
            trouble = self._trouble(task)
            if trouble:
                raise ServiceUnavailable(f"Globus task {self.record.task} {trouble}.")
            self._pause(batch)

    def _pause(self, batch: TransferBatch) -> None:
        until = time.monotonic() + self.session.settings.poll_seconds
        while (left := until - time.monotonic()) > 0 and not batch.aborted():
            if batch.stop.wait(min(left, _SLICE)):
                raise ServiceUnavailable(
                    f"Globus task {self.record.task} goes on while the service stops; it is taken up again later."
                )

    def cancel(self) -> None:
        """Cancel the task if it still runs, and forget it.

        :raises ServiceUnavailable: :raises CommunicationError: :raises ConfigurationError: Globus cannot be asked;
            nothing is forgotten.
        """
        if self.record.task and not self.record.ended:
            with suppress(TransferError):  # it is over, or unknown
                self.session.call(self.client.cancel_task, self.record.task)
        self.records.drop(self.record.batch)

    def _trouble(self, task: dict[str, Any]) -> str:
        """Return what keeps the task from going on, or empty text."""
        if task["status"] == "INACTIVE":
            return (
                "waits because credentials have expired; log in to its collections at "
                f"https://app.globus.org/activity/{self.record.task}"
            )
        if task.get("is_paused"):
            return f"is paused: {self._pause_reason()}"
        if str(task.get("nice_status") or "").lower() in _FINE:
            return ""
        said = str(task.get("nice_status_short_description") or task["nice_status"])
        events = self._error_events(limit=1)
        details = _details(events[0]) if events else str(task.get("nice_status_details") or "")
        return f"has trouble and goes on trying: {said} ({task['nice_status']}){': ' if details else ''}{details}"

    def _pause_reason(self) -> str:
        info = self.session.call(self.client.task_pause_info, self.record.task).data
        said = [str(info.get(key) or "") for key in ("source_pause_message", "destination_pause_message")]
        said += [str(rule.get("message") or "") for rule in info.get("pause_rules") or []]
        return "; ".join(dict.fromkeys(text for text in said if text)) or "no reason given"

    def _error_events(self, limit: int) -> list[dict[str, Any]]:
        """Return the latest error events."""
        filters = {"filter": "is_error:1"}
        found = self.session.call(self.client.task_event_list, self.record.task, limit=limit, query_params=filters)
        return [event for event in found["DATA"] if event.get("is_error")]

    # --- the verdict ------------------------------------------------------------------------------------------------
    def judge(self, task: dict[str, Any]) -> None:
        """Write into the record which files arrived, and why others did not; durable when it returns.

        :raises DmException: Globus cannot be asked for it now; to be repeated.
        """
        for name, (text, transient) in self._problems(task).items():
            sent = self.record.files[name]
            sent.problem, sent.transient = text, transient
        self.record.ended = True
        self.records.save(self.record)

    def _problems(self, task: dict[str, Any]) -> dict[str, tuple[str, bool]]:
        files = self.record.files
        failed = task["status"] == "FAILED"
        problems: dict[str, tuple[str, bool]] = {}
        if failed or task.get("subtasks_skipped_errors"):
            for skipped in self._listed(self.client.paginated.task_skipped_errors, failed):
                if (name := self._name(skipped)) is not None:
                    code = str(skipped.get("error_code") or "UNKNOWN")
                    problems[name] = _sentence(code, _details({"details": skipped.get("error_details")}))
        if not failed and int(task.get("files_transferred") or 0) == len(files) - len(problems):
            return problems
        arrived = {self._name(item) for item in self._listed(self.client.paginated.task_successful_transfers, failed)}
        missing = [name for name in files if name not in arrived and name not in problems]
        if missing:
            problems.update(self._blame(task, missing))
        return problems

    def _blame(self, task: dict[str, Any], missing: list[str]) -> dict[str, tuple[str, bool]]:
        """Return why files did not arrive: the event that names the file, else what ended the task."""
        if task["status"] != "FAILED":
            text = f"Globus task {self.record.task} succeeded but does not list it among what it transferred"
            return dict.fromkeys(missing, (text, True))
        fatal = task.get("fatal_error") or {}
        events = self._error_events(limit=1000)
        last = events[0] if events else {}
        code = str(fatal.get("code") or last.get("code") or "FAILED")
        said = str(fatal.get("description") or last.get("description") or "no reason given")
        if task.get("canceled_by_admin"):
            code, said = "CANCELED", str(task.get("canceled_by_admin_message") or "canceled by an administrator")
        found: dict[str, tuple[str, bool]] = {}
        for name in missing:
            marks = (self.record.destination + name, self.record.files[name].source)
            own = next((event for event in events if any(mark in str(event.get("details")) for mark in marks)), None)
            found[name] = _sentence(str(own["code"]), _details(own)) if own else _sentence(code, said)
        return found

    def _listed(self, method: Callable[..., Any], lenient: bool) -> list[dict[str, Any]]:
        """Return all pages of a listing; of a task that failed Globus may have none."""
        try:
            return list(self.session.call(lambda: list(method(self.record.task).items())))
        except TransferError:
            if lenient:
                return []
            raise

    def _name(self, item: dict[str, Any]) -> str | None:
        """Return the staged name of a listed file; either path may be hidden from us."""
        target, source = item.get("destination_path"), item.get("source_path")
        if target:
            name = str(target).rpartition("/")[2]
            return name if name in self.record.files else None
        return next((name for name, sent in self.record.files.items() if sent.source == source), None)


def _sentence(code: str, said: str) -> tuple[str, bool]:
    """Return an error text and whether trying again may help."""
    hint = f"; {_HINTS[code]}" if code in _HINTS else ""
    return f"Globus says {code}: {said or 'no reason given'}{hint}", code not in _PERMANENT


def _details(event: dict[str, Any]) -> str:
    """Return the details of an event as one line."""
    return " ".join(str(event.get("details") or event.get("description") or "").split())[:_DETAILS]
