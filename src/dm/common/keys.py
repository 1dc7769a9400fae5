"""The published constants, by the module they are imported from (``dm.common.constants.<module>``).

A name ``DM_<X>_KEY`` has as value the camelCase key of records, e.g. ``DM_COUNT_FILES_KEY = "countFiles"``. Our own
code writes the keys themselves and takes statuses from :mod:`dm.common.statuses`; this table serves scripts.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from dm.common import statuses


class DmStatus(enum.Enum):
    """Result of an operation as programs report it; the value is an exit status."""

    DM_OK = 0
    DM_ERROR = 1


def camel(name: str) -> str:
    """Return ``nProcessedFiles`` for ``N_PROCESSED_FILES``."""
    first, *others = name.lower().split("_")
    return first + "".join(word.capitalize() for word in others)


def _keys(names: str, **others: Any) -> dict[str, Any]:
    return {f"DM_{name}_KEY": camel(name) for name in names.split()} | others


GROUPS: Mapping[str, Mapping[str, Any]] = {
    "dmProcessingStatus": {
        "DM_PROCESSING_STATUS_PENDING": statuses.PENDING,
        "DM_PROCESSING_STATUS_RUNNING": statuses.RUNNING,
        "DM_PROCESSING_STATUS_FINALIZING": statuses.FINALIZING,
        "DM_PROCESSING_STATUS_DONE": statuses.DONE,
        "DM_PROCESSING_STATUS_FAILED": statuses.FAILED,
        "DM_PROCESSING_STATUS_SKIPPED": statuses.SKIPPED,
        "DM_PROCESSING_STATUS_ABORTING": statuses.ABORTING,
        "DM_PROCESSING_STATUS_ABORTED": statuses.ABORTED,
        "DM_ACTIVE_PROCESSING_STATUS_LIST": list(statuses.ACTIVE),
        "DM_INACTIVE_PROCESSING_STATUS_LIST": list(statuses.INACTIVE),
    },
    "dmProcessingConstants": _keys(
        """COUNT_FILES DATA_DIRECTORY N_PROCESSED_FILES N_PROCESSING_ERRORS N_WAITING_FILES PERCENTAGE_COMPLETE
        PROCESSING_ERRORS START_TIMESTAMP END_TIMESTAMP RUN_TIME STAGE STAGES COMMAND OUTPUT_VARIABLE_REGEX_LIST
        WORKING_DIR REPEAT_PERIOD REPEAT_UNTIL MAX_REPEATS PARALLEL_EXEC SKIP_PLUGINS EXPERIMENT_FILE_PATH
        MAX_RUN_TIME_IN_HOURS PROCESS_EXISTING_FILES UPLOAD_DATA_DIRECTORY_ON_EXIT UPLOAD_DEST_DIRECTORY_ON_EXIT
        DEST_DIRECTORY INCLUDE_FILE_EXTENSIONS EXCLUDE_FILE_EXTENSIONS FILE_PATH_PATTERN PROCESS_HIDDEN_FILES
        REMOVE_SOURCE_FILES SKIP_CATALOG SKIP_CHECKSUM SKIP_TRANSFER WORKFLOW_ARGS WORKFLOW_JOB_OWNER WORKFLOW_NAME
        WORKFLOW_OWNER PROCESSING_MODE REPROCESS_FILES"""
    ),
    "dmExperimentConstants": _keys(
        """EXPERIMENT_NAME EXPERIMENT_ID EXPERIMENT_TYPE EXPERIMENT_USERNAME_LIST EXPERIMENT_USERS START_DATE END_DATE
        ROOT_PATH INITIALIZATION FINALIZATION"""
    ),
    "dmObjectLabels": _keys(
        "ID NAME DESCRIPTION STATUS OWNER BEAMLINE_NAME EXIT_STATUS TYPE_NAME VERBOSE DATA", DM_Y_KEY="Y"
    ),
    "dmFileConstants": _keys(
        "COMPRESSION FILE_NAME FILE_SIZE JSON USE_ANALYSIS_DIRECTORY_AS_ROOT",
        DM_B_KEY="B",
        DM_KB_KEY="KB",
        DM_MB_KEY="MB",
        DM_GB_KEY="GB",
        DM_MAX_FILE_RETRIEVAL_COUNT=500000,
    ),
    "dmUserConstants": _keys("BADGE EMAIL FIRST_NAME LAST_NAME INSTITUTION IS_LOCAL_USER LAST_UPDATE USERNAME PI_FLAG"),
    "dmEsafConstants": _keys("ESAF_ID ESAF_TITLE GUP_ID EXPERIMENTERS TITLE"),
    "dmRole": {"DM_USER_EXPERIMENT_ROLE": "User", "DM_PI_EXPERIMENT_ROLE": "PI"},
    "dmDatabaseConstants": _keys("AVERAGE_FILE_SIZE COLLECTION_SIZE MAX_FILE_SIZE MIN_FILE_SIZE STD_DEV_FILE_SIZE"),
    "dmServiceConstants": {"DM_SERVICE_TYPE_DAQ": "daq"},
    "dmStatus": {"DmStatus": DmStatus} | {status.name: status for status in DmStatus},
}
