"""Prepare a corpus: mono WAVs at one rate, manifests of its splits, and a table of excluded recordings.

    python scripts/prepare.py --corpus vctk --rate 16000 \\
        --source resources/unpacked/vctk --output resources/prepared/vctk/16000

A corpus of your own has a name of your own, and needs --kind:

    python scripts/prepare.py --corpus studio --kind speech --validation 0.1 --rate 16000 \\
        --source /data/studio --output resources/prepared/studio/16000
"""

import argparse

from finallyse.corpora.layouts import CORPORA, GROUPS, own_corpus
from finallyse.corpora.prepare import prepare
from finallyse.errors import UserError, one_line_errors
from finallyse.hardware import cores


def share_or_folder(text: str) -> float | str:
    """`0.1`, or the path of a folder."""
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="name of the corpus in resources/datasets.yaml, or your own")
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
    add = parser.add_argument_group("a corpus of your own").add_argument
    add("--kind", choices=sorted(GROUPS), help="what it has; pairs: in the folders `clean` and `noisy` of the source")
    add("--noisy", help="pairs: folder of the noisy recordings; the source is that of the clean ones")
    text = "share of the recordings to validate with, or a folder of them (default: a folder `validation`, else 0.1)"
    add("--validation", type=share_or_folder, metavar="SHARE|FOLDER", help=text)
    text = "the same for tests (default: a folder `test`, else none)"
    add("--test", type=share_or_folder, metavar="SHARE|FOLDER", help=text)
    arguments = vars(parser.parse_args())
    own = {key: arguments.pop(key) for key in ("kind", "noisy", "validation", "test")}
    if own["kind"] is None and (given := [f"--{key}" for key, value in own.items() if value is not None]):
        raise UserError(f"{given[0]} is for a corpus of your own, which needs --kind")
    if own["kind"] and arguments["corpus"] in CORPORA:
        raise UserError(f"--kind: {arguments['corpus']} is a published corpus; choose another name for your own")
    for key in ("validation", "test"):
        if isinstance(own[key], float) and not 0 < own[key] < 1:
            raise UserError(f"--{key}: a share must be more than 0 and less than 1, got {own[key]:g}")
    prepare(**arguments, own=own_corpus(**own) if own["kind"] else None)


if __name__ == "__main__":
    with one_line_errors():
        main()
