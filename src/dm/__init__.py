"""DM: data management for synchrotron beamlines.

Importing this package touches neither network nor logging; the names scripts use (``ExperimentDsApi``,
``ProcApiFactory``, ``ObjectNotFound`` ...) are imported from their homes when they are first asked for.
"""

from dm.common import compat as _compat

_compat.install()
