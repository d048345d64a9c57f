"""Download one file of the registry, or a whole collection of small files.

    python scripts/download.py vctk VCTK-Corpus-0.92.zip --output resources/downloads/vctk/VCTK-Corpus-0.92.zip
    python scripts/download.py micirp --output resources/downloads/micirp/collection.csv

An interrupted download resumes where it stopped. See resources/datasets.yaml for names, sizes and checksums.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.collection import download_collection
from finallyse.corpora.download import download
from finallyse.corpora.locations import Locations
from finallyse.corpora.sources import REGISTRY, read_sources
from finallyse.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="name of the corpus or weight in the registry")
    parser.add_argument("file", nargs="?", help="one of its files; omit to download all files of a collection")
    parser.add_argument("--output", type=Path, required=True, help="file to write, or table of the collection")
    parser.add_argument("--base-url", help="replaces the registry's base URL: http(s)://, file://")
    parser.add_argument(
        "--verify",
        choices=["published", "lock"],
        default="published",
        help="`lock`: the contents differ from the published ones (default: %(default)s)",
    )
    parser.add_argument("--lock", type=Path, help="lock file for checksums that the publisher does not state")
    parser.add_argument("--registry", type=Path, default=REGISTRY)
    arguments = parser.parse_args()
    with one_line_errors():
        setting = {"base_url": arguments.base_url, "verify": arguments.verify}
        locations = Locations(read_sources(arguments.registry), {arguments.source: setting}, "resources")
        lock = ChecksumLock(arguments.lock) if arguments.lock else None
        if arguments.file is None:
            download_collection(locations, arguments.source, arguments.output, lock)
        else:
            expected = locations.expected(arguments.source, arguments.file)
            download(
                locations.url(arguments.source, arguments.file),
                arguments.output,
                name=arguments.source,
                checksum=expected.checksum,
                size=expected.bytes,
                about_size=expected.about_bytes,
                lock=lock,
            )


if __name__ == "__main__":
    main()
