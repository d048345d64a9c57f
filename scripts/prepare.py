"""Prepare a corpus: mono WAVs at one rate, manifests of its splits, and a table of excluded recordings.

    python scripts/prepare.py --corpus vctk --rate 16000 \\
        --source resources/unpacked/vctk --output resources/prepared/vctk/16000
"""

import argparse

from finallyse.corpora.prepare import prepare
from finallyse.errors import one_line_errors
from finallyse.hardware import cores


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="name of the corpus in resources/datasets.yaml")
    parser.add_argument("--source", required=True, help="folder of the unpacked corpus, or of your own recordings")
    parser.add_argument("--output", required=True, help="output folder")
    parser.add_argument("--rate", required=True, type=int, help="sample rate of the prepared files, Hz")
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default: 0)")
    parser.add_argument(
        "--max-dropped", type=float, default=0.5, help="fail if more than this share is unusable (default: 0.5)"
    )
    parser.add_argument(
        "--min-bak",
        type=float,
        default=1.0,
        help="leave out recordings whose DNSMOS BAK, from 1 to 5, is below this (default: 1, not measured)",
    )
    parser.add_argument(
        "--accept-cut",
        action="store_true",
        help="take what there is of recordings that are cut short or damaged, instead of leaving them out",
    )
    prepare(**vars(parser.parse_args()))


if __name__ == "__main__":
    with one_line_errors():
        main()
