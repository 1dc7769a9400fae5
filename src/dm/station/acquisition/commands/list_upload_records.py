"""``dm-list-upload-records``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.station.acquisition.api import RECORD_LIMIT, ExperimentDaqApi, UploadInfo


@command("dm-list-upload-records", api="dm.station.acquisition.api:ExperimentDaqApi", keyvalue_arguments=True)
@option("--experiment", help="Only of this experiment.")
@option("--skip", type=int, default=0, help="Leave out this many of the newest.")
@option("--limit", type=int, default=RECORD_LIMIT, show_default=True, help="At most so many.")
def main(
    api: ExperimentDaqApi, experiment: str | None, skip: int, limit: int, words: dict[str, str]
) -> list[UploadInfo]:
    """List uploads of the past, newest last; KEY:VALUE words are keys that must be equal."""
    query = {**words, **({"experimentName": experiment} if experiment else {})}
    return api.listUploadRecords(query, skip, limit)
