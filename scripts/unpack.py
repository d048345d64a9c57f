"""Unpack an archive, or copy the files of a collection, into a folder; an interrupted run is resumed.

python scripts/unpack.py resources/downloads/vctk/VCTK-Corpus-0.92.zip --into resources/unpacked/vctk --marker DONE
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finallyse import atomic
from finallyse.corpora.archives import unpack, unpack_collection
from finallyse.corpora.collection import files_of_collection
from finallyse.corpora.locations import COLLECTION
from finallyse.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help=f"archive, or {COLLECTION} of a collection")
    parser.add_argument("--into", type=Path, required=True, help="output folder; several archives may share it")
    parser.add_argument("--marker", type=Path, help="file to write on completion")
    arguments = parser.parse_args()
    with one_line_errors():
        if arguments.archive.name == COLLECTION:
            files = files_of_collection(arguments.archive)
            said = f"{unpack_collection(arguments.into, files, COLLECTION)} files\n"
        else:
            count, size = unpack(arguments.archive, arguments.into)
            said = f"{count} files, {size} bytes\n"
        if arguments.marker:
            arguments.marker.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_bytes(arguments.marker, said.encode())


if __name__ == "__main__":
    main()
