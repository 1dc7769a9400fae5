"""What an administrator can say in ``[acquisition.plugins.logbook]``."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class LogbookSettings(BaseModel):
    """Settings of the plugin.

    :param directory: where the logbooks go, one file per experiment.
    :param refuse: name endings that must not occur; such a file fails, and its row says why.
    """

    model_config = ConfigDict(extra="forbid")

    directory: Path = Field(description="Where the logbooks go, one file per experiment.")
    refuse: list[str] = Field(default=[], description="Name endings that must not occur.")
