"""Cut a folder of recordings into the short clips of speech that the demo's corpora are packed from.

python scripts/collect_demo_speech.py resources/demo/speech --output results/demo/resources/archives/speech/speech.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

from finallyse.demo.speech import collect_speech
from finallyse.errors import one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="recordings of any format, rate and number of channels")
    parser.add_argument("--output", type=Path, required=True, help="speech.csv; the clips are written to its folder")
    parser.add_argument("--seconds", type=float, default=360.0, help="total duration in s (default: %(default)s)")
    arguments = parser.parse_args()
    with one_line_errors():
        collect_speech(arguments.folder, arguments.output, arguments.seconds)


if __name__ == "__main__":
    main()
