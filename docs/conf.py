"""Sphinx configuration of the DM documentation."""

from importlib.metadata import version as installed_version

project = "DM"
author = "the DM developers"
version = release = installed_version("beamline-dm")
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"DM {version}"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
