"""Processing statuses of jobs, stages, DAQs and uploads, as they stand in records."""

from __future__ import annotations

from typing import Final

PENDING: Final = "pending"
RUNNING: Final = "running"
FINALIZING: Final = "finalizing"
DONE: Final = "done"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
ABORTING: Final = "aborting"
ABORTED: Final = "aborted"

ACTIVE: Final = (PENDING, RUNNING, FINALIZING, ABORTING)
INACTIVE: Final = (DONE, FAILED, SKIPPED, ABORTED)
