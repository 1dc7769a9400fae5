"""The reference page of the standard workflows, made from their specifications."""

from __future__ import annotations

from typing import Any

from dm.station.workflows import standard

_INTRODUCTION = """# Standard workflows

Workflows that come with DM. One command installs them, or those that are named, for the user or for another owner:

```sh
dm-install-workflows
dm-install-workflows --owner user25idc image-statistics checksum-audit
dm-install-workflows --list
```

Done again after an upgrade it brings them up to date. They are meant to be copied as well: `--show` prints the file, to
be changed and added under another name with `dm-add-workflow --py-spec=FILE`.

```sh
dm-start-processing-job --workflow-name image-statistics experimentName:my-first filePath:run1/scan_0001.h5
dm-start-daq --experiment my-first --data-directory /detector \\
    --workflow-name image-statistics --workflow-owner user25idc
```

Results are written below `outputDirectory`, in a directory of the job's id. With an `experimentName` they go from there
to `analysis/<name of the workflow>/`, in the same directories as the files they are made of, and into the catalog, and
the directory is removed; without one, or when the job failed, they stay. The tools that the stages run are sub-commands
of `dm-process`, which can be used by hand too. What they find out becomes keys of the job: `dm-get-processing-job
--display-keys ALL` shows it, `dm-list-processing-jobs` searches for it.

`azimuthal-integration`, `convert-to-hdf5`, zstd, and images compressed with bitshuffle or LZ4 need Python packages that
are installed with `pip install 'beamline-dm[workflows]'`; the error says so where one is missing.
"""


def page() -> str:
    """Return the page, in Markdown."""
    specs = [standard.spec(name) for name in standard.names()]
    lines = [_INTRODUCTION, "| workflow | |", "|---|---|"]
    lines += [f"| [{spec['name']}](#{spec['name']}) | {_first(spec)} |" for spec in specs]
    for spec in specs:
        lines += ["", f"## {spec['name']}", "", spec["description"], "", *_arguments(spec), "", *_stages(spec)]
    return "\n".join(lines) + "\n"


def _first(spec: dict[str, Any]) -> str:
    return str(spec["description"]).partition(". ")[0]


def _arguments(spec: dict[str, Any]) -> list[str]:
    lines = ["| argument | type | default | |", "|---|---|---|---|"]
    for name, about in spec["arguments"].items():
        choices = ", ".join(f"`{choice}`" for choice in about.get("choices", ()))
        default = "**required**" if about.get("required") else f"`{about['default']}`" if "default" in about else ""
        lines.append(f"| `{name}` | {choices or about.get('type', 'text')} | {default} | {about['description']} |")
    return lines


def _stages(spec: dict[str, Any]) -> list[str]:
    lines = []
    for name, stage in spec["stages"].items():
        keys = [f"`{key}`: `{value}`" for key, value in stage.items() if key != "command"]
        lines += [
            f"* **{name}**{': ' if keys else ''}{', '.join(keys)}",
            "",
            "  ```sh",
            f"  {stage['command']}",
            "  ```",
            "",
        ]
    return lines[:-1]
