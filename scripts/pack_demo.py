"""Pack one of the demo's corpora into archives with the names and layout of the published ones.

    python scripts/pack_demo.py vctk --speech results/demo/resources/archives/speech/speech.csv \
        --into results/demo/resources/archives/vctk

speech.csv comes from scripts/collect_demo_speech.py; a folder of recordings given instead is collected first, into the
folder `speech` next to the archive folder. dns5-rooms, micirp and wavlm-large need no --speech.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.sources import REGISTRY, read_sources
from finallyse.demo.pack import OF_SPEECH, PACKERS, pack
from finallyse.demo.speech import collect_speech
from finallyse.errors import UserError, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=sorted(PACKERS))
    parser.add_argument("--speech", type=Path, help="speech.csv, or a folder of recordings")
    parser.add_argument("--into", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--registry", type=Path, default=REGISTRY)
    parser.add_argument(
        "--lock", type=Path, help="lock file of downloads; entries of older archives with these names are removed"
    )
    parser.add_argument("--downloads", type=Path, help="folder that these archives are downloaded to, for --lock")
    arguments = parser.parse_args()
    with one_line_errors():
        if arguments.source in OF_SPEECH and arguments.speech is None:
            raise UserError(f"{arguments.source} is made of speech: --speech is required")
        speech = arguments.speech
        if speech is not None and speech.is_dir():
            speech = arguments.into.parent / "speech" / "speech.csv"
            collect_speech(arguments.speech, speech)
        written = pack(read_sources(arguments.registry)[arguments.source], speech, arguments.into)
        if arguments.lock and arguments.downloads:
            lock = ChecksumLock(arguments.lock)
            for path in written:
                lock.forget_other_than(arguments.downloads / path.name, path)


if __name__ == "__main__":
    main()
