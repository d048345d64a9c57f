"""Files that come with the project: its configs, the registry of corpora, the published results, the demo's recordings.

The workflow may run in any folder. There these files are named as in the project's own folder, and are taken from the
project unless the folder has one of that name itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
"""The folder of the project that this package runs from; without meaning for an installed copy of the package."""

SHIPPED = re.compile(r"(config|resources/demo)/.")
"""Paths of a config that may be the project's; downloads and results never are, as they are made by the workflow."""


def project_file(path: str | Path, project: Path = PROJECT) -> Path:
    """`path`, or the file or folder of that path in the project if the working folder has none."""
    own = project / path
    return own if own.exists() and not Path(path).exists() else Path(path)


def with_project_files(value: Any, project: Path) -> Any:
    """A config or experiment whose texts that name shipped files are those of `project_file`."""
    if isinstance(value, dict):
        return {key: with_project_files(inner, project) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_project_files(inner, project) for inner in value]
    return str(project_file(value, project)) if isinstance(value, str) and SHIPPED.match(value) else value
