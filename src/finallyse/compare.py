"""Other systems that the report shows beside a network: the option `compare` of the pipeline."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from finallyse.errors import UserError, nearest

SIGNALS = ("Input", "Noisy", "Enhanced", "Generated", "Reference")
"""What the report calls the signals of a network; no system may have such a name."""


@dataclasses.dataclass(frozen=True)
class System:
    """Another system, whose enhanced versions of a network's validation items are in `folder`."""

    name: str
    network: str
    folder: Path

    @property
    def slug(self) -> str:
        """Its name in names of files."""
        return slug(self.name)


def slug(name: str) -> str:
    """`finally-authors` for `FINALLY (authors)`: the letters and digits, in lower case."""
    return re.sub(r"[\W_]+", "-", name.casefold()).strip("-")


def compared_systems(config: dict) -> list[System]:
    """The systems in `compare` of the pipeline's config, which is complete but for these checks.

    Raises UserError for a missing folder, an unknown network, and a name that something else has in names of files or
    in the report.
    """
    systems = []
    taken = {slug(name): name for name in (*SIGNALS, *config["networks"])}
    for key, entry in config["compare"].items():
        name, where = str(key), f"config: compare.{key}"
        for option, meaning in (("folder", "the system's enhanced files"), ("network", "whose validation items")):
            if not entry[option]:
                raise UserError(f"{where}.{option} is required: {meaning}")
        if entry["network"] not in config["networks"]:
            known = nearest(entry["network"], config["networks"])
            raise UserError(f"{where}.network: unknown network {entry['network']!r}; {known}")
        if not Path(entry["folder"]).is_dir():
            raise UserError(f"{where}.folder: no such folder: {entry['folder']}")
        if not slug(name):
            raise UserError(f"{where}: the name needs a letter or a digit")
        if slug(name) in taken:
            raise UserError(f"{where}: too close to the name {taken[slug(name)]!r}; choose another")
        taken[slug(name)] = name
        systems.append(System(name, entry["network"], Path(entry["folder"])))
    return systems
