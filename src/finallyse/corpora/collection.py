"""Collections: sources of many small files, fetched together; some may no longer exist at the source.

The table `collection.csv` in the same folder lists the status of each file: file, status, bytes, sha256.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.download import Missing, download
from finallyse.corpora.locations import Locations, without_password
from finallyse.corpora.manifest import write_csv
from finallyse.errors import UserError
from finallyse.hashes import sha256

COLUMNS = ("file", "status", "bytes", "sha256")
FETCHED, MISSING = "fetched", "missing at the source"


def download_collection(locations: Locations, name: str, table: str | Path, lock: ChecksumLock | None) -> None:
    """Fetch all files of a source into the folder of `table`, then write the table.

    Optional files may be missing; if others are, all available files are fetched, and one UserError lists the missing
    ones. Files from an earlier run that match the lock are not fetched again.
    """
    table = Path(table)
    rows, missing = [], []
    for file in locations.source(name).files:
        expected = locations.expected(name, file.name)
        target = table.parent / file.name
        try:
            checksum = _held(target, lock) or download(
                locations.url(name, file.name),
                target,
                name=name,
                checksum=expected.checksum,
                size=expected.bytes,
                about_size=expected.about_bytes,
                lock=lock,
            )
        except Missing:
            if not file.optional:
                missing.append(file.name)
            rows.append({"file": file.name, "status": MISSING})
            continue
        size = target.stat().st_size
        rows.append({"file": file.name, "status": FETCHED, "bytes": size, "sha256": checksum})
    if missing:
        raise UserError(
            f"{without_password(locations.base_url(name))} lacks {len(missing)} of the {len(rows)} files of {name}: "
            f"{', '.join(missing)}; if they are gone for good, mark them `optional: true` in resources/datasets.yaml, "
            f"or name another source in the config: corpora.{name}.base_url or corpora.{name}.folder"
        )
    absent = [row["file"] for row in rows if row["status"] == MISSING]
    if absent:
        print(f"{name}: {len(absent)} optional files are {MISSING}: {', '.join(absent)}", file=sys.stderr)
    write_csv(table, COLUMNS, rows)


def _held(target: Path, lock: ChecksumLock | None) -> str | None:
    """The sum of an existing file, if it matches the lock."""
    if lock is None or not target.is_file():
        return None
    known = lock.get(target)
    return known if known and sha256(target) == known else None


def files_of_collection(table: str | Path) -> list[Path]:
    """The files that exist according to a table."""
    table = Path(table)
    if not table.is_file():
        raise UserError(f"{table}: no such table of a collection")
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if unknown := {row["status"] for row in rows} - {FETCHED, MISSING}:
            raise ValueError(f"a file is neither {FETCHED} nor {MISSING}, but {unknown.pop()}")
        files = [table.parent / row["file"] for row in rows if row["status"] == FETCHED]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{table}: not a table of a collection ({error}); delete it to fetch the files again"
        ) from error
    for file in files:
        if file.parent != table.parent:
            raise UserError(f"{table}: lists {file}, which is not in its folder; delete {table} to fetch it again")
        if not file.is_file():
            raise UserError(f"{file}: listed in {table}, but not there; delete {table} to fetch it again")
    return files
