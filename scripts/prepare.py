"""Prepare a corpus: mono WAVs at one rate, manifests of its splits, and a table of what was left out.

    python scripts/prepare.py --corpus vctk --rate 16000 \\
        --source resources/unpacked/vctk --output resources/prepared/vctk/16000
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes are the parallelism

from finallyse.corpora.prepare import prepare
from finallyse.errors import one_line_errors


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="its name in resources/datasets.yaml")
    parser.add_argument("--source", required=True, help="folder of the unpacked corpus, or of recordings of your own")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--rate", required=True, type=int, help="sample rate of the prepared files, Hz")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")
    parser.add_argument(
        "--max-dropped", type=float, default=0.5, help="share of unusable recordings above which to stop (default: 0.5)"
    )
    prepare(**vars(parser.parse_args()))


if __name__ == "__main__":
    with one_line_errors():
        main()
