"""Sizes of the corpora and weights of a configuration, and how much of them is present: `finallyse data`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finallyse.config import paths_below, read_config
from finallyse.corpora.collection import files_of_collection
from finallyse.corpora.locations import COLLECTION, Locations, local_path, without_password
from finallyse.corpora.sources import RemoteFile, Source, read_sources
from finallyse.corpora.space import RESERVE, free_space
from finallyse.progress import data_size


@dataclasses.dataclass
class Cost:
    """Size of one source. known, about: bytes; unknown: number of files; here: bytes already present.

    prepared: everything that the networks read is present, so that nothing is fetched even if the archives are deleted.
    """

    source: Source
    origin: str
    needed_by: list[str]
    prepared: bool = False
    files: int = 0
    files_here: int = 0
    known: int = 0
    about: int = 0
    unknown: int = 0
    here: int = 0
    left: int = 0

    def add(self, size: int | None, exact: bool, here: int, complete: bool) -> None:
        """Count one file."""
        self.files += 1
        self.files_here += complete
        self.here += here
        if size is None:
            self.unknown += 1
            return
        if exact:
            self.known += size
        else:
            self.about += size
        self.left += 0 if complete or self.prepared else max(0, size - here)


def costs(config: dict) -> list[Cost]:
    """The size of every source in the registry, and the user's own corpora, under a configuration.

    config: of `finallyse.config.load_pipeline`.
    """
    locations = Locations(read_sources(), config["corpora"], config["resources"])
    needed = _needed(config)
    rows = []
    for name, source in locations.sources.items():
        folder = locations.own_folder(name)
        base_url = locations.base_url(name)
        path = local_path(base_url)
        origin = (
            f"folder {folder}"
            if folder
            else path
            if path is not None
            else urlsplit(without_password(base_url)).netloc or "simulated"
        )
        networks, paths = needed.get(name, ([], []))
        cost = Cost(source, origin, networks, source.is_corpus and bool(paths) and all(map(os.path.isfile, paths)))
        if not folder:
            table = Path(locations.downloaded(name, COLLECTION))
            there = {path.name for path in files_of_collection(table)} if table.is_file() else None
            for file in source.files:
                if there is not None and file.name not in there:
                    continue  # missing at the source
                cost.add(*_size(locations, name, file), *_here(Path(locations.downloaded(name, file.name))))
        rows.append(cost)
    for name in locations.own:
        origin = "folder " + ", ".join(locations.folders(name))
        what = f"your own {locations.settings[name]['kind']}"
        source = Source(name, what, "", [what], "", "", unpack="files")
        networks, paths = needed.get(name, ([], []))
        rows.append(Cost(source, origin, networks, bool(paths) and all(map(os.path.isfile, paths))))
    return rows


def _size(locations: Locations, name: str, file: RemoteFile) -> tuple[int | None, bool]:
    """Size of a file in bytes, None if unknown, and whether it is exact."""
    downloaded = Path(locations.downloaded(name, file.name))
    local = locations.local_files(name, file.name)
    for path in (downloaded, *map(Path, local)):
        if path.is_file():
            return path.stat().st_size, True
    expected = locations.expected(name, file.name)
    return (expected.bytes, True) if expected.bytes is not None else (expected.about_bytes, False)


def _here(path: Path) -> tuple[int, bool]:
    """Number of bytes of a file that are present, and whether it is complete."""
    if path.is_file():
        return path.stat().st_size, True
    part = path.with_name(path.name + ".part")
    return (part.stat().st_size if part.is_file() else 0), False


def _needed(config: dict) -> dict[str, tuple[list[str], list[str]]]:
    """source -> networks of the config that read its data or weights, and the paths they read."""
    needed: dict[str, tuple[list[str], list[str]]] = {}
    for network, experiment in config["experiments"].items():
        for kind in ("prepared", "weights"):
            prefix = f"{config['resources']}/{kind}/"
            for path in paths_below(experiment, prefix):
                networks, paths = needed.setdefault(path.removeprefix(prefix).split("/")[0], ([], []))
                paths.append(path)
                if network not in networks:
                    networks.append(network)
    return needed


def show_plan(arguments: Sequence[str], console: Console | None = None) -> None:
    """Print the table. arguments: config files and key=value, as for Snakemake."""
    config = read_config(arguments)
    console = console or Console()
    rows = costs(config)
    table = Table(title="Corpora and weights", title_justify="left")
    table.add_column("source", no_wrap=True)
    for column in ("needed by", "from"):
        table.add_column(column, overflow="fold")
    for column in ("files", "download", "here", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    for cost in rows:
        table.add_row(
            cost.source.name,
            _networks(cost, list(config["experiments"])),
            escape(cost.origin),
            f"{cost.files_here} of {cost.files}" if cost.files else "",
            _download(cost),
            "prepared" if cost.prepared and not cost.here else data_size(cost.here) if cost.here else "",
            _left(cost),
            style=None if cost.needed_by else "dim",
        )
    console.print(table)
    needed = [cost for cost in rows if cost.needed_by]
    left, about = sum(cost.left for cost in needed), sum(cost.about for cost in needed)
    unknown = sum(cost.unknown for cost in needed if not cost.prepared)
    free = free_space(config["resources"])
    console.print(
        f"The networks of this config need {data_size(sum(cost.known + cost.about for cost in needed))}"
        + (f", of which {data_size(about)} are estimates" if about else "")
        + (f", and {unknown} files of unknown size" if unknown else "")
        + f"; {data_size(left)} are still to be fetched. Free in {config['resources']}: {data_size(free)}."
        + (" Not enough." if free < left + RESERVE else ""),
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        "≈ estimate; ? size not known before the download. What is unpacked and prepared needs space beside this.",
        highlight=False,
        soft_wrap=True,
    )


def _networks(cost: Cost, networks: list[str]) -> str:
    if not cost.needed_by:
        return f"not trained with ({', '.join(cost.source.used_for)})"
    return "all networks" if len(cost.needed_by) == len(networks) > 1 else ", ".join(cost.needed_by)


def _download(cost: Cost) -> str:
    parts = []
    if cost.known or cost.about:
        parts.append(("≈ " if cost.about else "") + data_size(cost.known + cost.about))
    if cost.unknown:
        parts.append(f"? ({cost.unknown} files)")
    return " + ".join(parts) or "nothing"


def _left(cost: Cost) -> str:
    if cost.prepared or cost.files_here == cost.files:
        return "–"
    parts = [("≈ " if cost.about else "") + data_size(cost.left)] if cost.left else []
    return " + ".join(parts + (["?"] if cost.unknown else []))


def show_citations(console: Console | None = None) -> None:
    """Print licence, source and citation of everything in the registry."""
    console = console or Console()
    for source in read_sources().values():
        console.print(f"[bold]{escape(source.name)}[/bold]  {escape(source.title)}", highlight=False)
        lines = {
            "licence": source.licence,
            "name": source.attribution,
            "from": source.homepage,
            "cite": source.citation,
            "note": source.note,
        }
        for label, text in ((label, text) for label, text in lines.items() if text):
            console.print(f"    {label}: {escape(text)}", highlight=False, soft_wrap=True)
