"""Settings of looking through files in storage: the sub-section ``[storage.inspection]``."""

from __future__ import annotations

from pydantic import Field

from dm.common.settings import ServiceSettings


class InspectionSettings(ServiceSettings):
    """How often and how fast the files of all experiments are compared with what is recorded of them."""

    enabled: bool = Field(
        default=True, description="Whether this process inspects; of all processes of a site one does so at a time."
    )
    every_days: float = Field(
        default=7, ge=0, description="Every experiment is looked through after so long; 0: only those asked for."
    )
    read_every_days: float = Field(
        default=90, ge=0, description="Every experiment's files are read and digested after so long; 0: when asked."
    )
    files_per_second: float = Field(default=500, gt=0, description="Most files looked at per second.")
    megabytes_per_second: float = Field(default=50, gt=0, description="Most that is read per second.")
