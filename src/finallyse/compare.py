"""Other systems that the report shows beside a network: the option `compare` of the pipeline."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from finallyse.errors import UserError, nearest

SIGNALS = ("Input", "Noisy", "Enhanced", "Generated", "Reference")
"""What the report calls the signals of a network; no system may have such a name."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A network in a folder of results, written `RESULTS:NETWORK`."""

    results: Path
    network: str

    def __str__(self) -> str:
        return f"{self.results}:{self.network}"

    @property
    def checkpoint(self) -> Path:
        return self.results / f"{self.network}.ckpt"

    @property
    def signals(self) -> Path:
        """The folder of its validation set's signals: folders enhanced/, reference/, noisy/."""
        return self.results / "enhanced" / self.network

    @property
    def enhanced(self) -> Path:
        """Its validation set, enhanced. Raises UserError if it is not there."""
        folder = self.signals / "enhanced"
        if not folder.is_dir():
            raise UserError(f"{self}: no such folder: {folder}; run its workflow up to it, or name another network")
        return folder


def run_of(text: str, network: str = "") -> Run | None:
    """The run that `RESULTS:NETWORK` describes, or `RESULTS` for the `network` given; None: no such folder."""
    folder, colon, name = text.rpartition(":")
    if colon and name and Path(folder).is_dir():
        return Run(Path(folder), name)
    return Run(Path(text), network) if network and Path(text).is_dir() else None


@dataclasses.dataclass(frozen=True)
class System:
    """Another system, whose enhanced versions of a network's validation items are in `folder`.

    run: the network of another folder of results that it is; None: anything else.
    """

    name: str
    network: str
    folder: Path
    run: Run | None = None

    @classmethod
    def of(cls, name: str, network: str, source: str) -> System:
        """The system of a folder of files, or of `RESULTS:NETWORK`."""
        run = None if Path(source).is_dir() else run_of(source)
        return cls(name, network, run.enhanced if run else Path(source), run)

    @property
    def source(self) -> str:
        """What `of` makes it from."""
        return str(self.run or self.folder)

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
        if not entry["network"]:
            raise UserError(f"{where}.network is required: whose validation items")
        if entry["network"] not in config["networks"]:
            known = nearest(entry["network"], config["networks"])
            raise UserError(f"{where}.network: unknown network {entry['network']!r}; {known}")
        if bool(entry["folder"]) == bool(entry["results"]):
            raise UserError(
                f"{where}: give one of folder (the system's enhanced files) and results (another folder of results)"
            )
        run = None
        if entry["results"]:
            run = run_of(entry["results"], entry["network"])
            if run is None:
                raise UserError(f"{where}.results: no such folder of results: {entry['results']}")
            if not (run.signals / "enhanced").is_dir():
                raise UserError(
                    f"{where}.results: no enhanced files of {run.network} in {run.results}; name another "
                    f"network there by {run.results}:NETWORK"
                )
        elif not Path(entry["folder"]).is_dir():
            raise UserError(f"{where}.folder: no such folder: {entry['folder']}")
        if not slug(name):
            raise UserError(f"{where}: the name needs a letter or a digit")
        if slug(name) in taken:
            raise UserError(f"{where}: too close to the name {taken[slug(name)]!r}; choose another")
        taken[slug(name)] = name
        systems.append(System(name, entry["network"], run.enhanced if run else Path(entry["folder"]), run))
    return systems
