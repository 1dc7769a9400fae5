"""``dm-reprocess-daq-files``"""

from __future__ import annotations

from dm.common.command import command, option
from dm.common.records import DmObject
from dm.station.acquisition.api import ExperimentDaqApi
from dm.station.acquisition.commands.file_options import choice_options, is_upload


@command("dm-reprocess-daq-files", api="dm.station.acquisition.api:ExperimentDaqApi")
@choice_options
@option("--plugins", default="", help="Names (comma list; see dm-list-processing-plugins); default: all of this DAQ.")
def main(api: ExperimentDaqApi, id: str, path: str | None, pattern: str | None, plugins: str) -> DmObject:
    """Run plugins once more for files of a DAQ or upload that are done, without moving them; prints how many.

    Jobs of a workflow are started anew.
    """
    names = [name.strip() for name in plugins.split(",") if name.strip()]
    return (api.reprocessUploadFiles if is_upload(api, id) else api.reprocessDaqFiles)(id, names, path, pattern)
