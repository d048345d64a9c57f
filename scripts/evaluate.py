"""Measure a folder of enhanced files: one row per utterance, one summary row per metric.

    python scripts/evaluate.py --enhanced DIR [--reference DIR] [--noisy DIR] --metrics wb_pesq stoi --output OUT.csv

writes OUT.csv (one row per utterance) and OUT.summary.csv (one row per number: mean, half width of its 95 % confidence
interval over utterances, how many were scored, how many were not and why, what is missing). A killed run resumes.

Files are matched by name, ignoring the suffix; rates may differ; channels are averaged. Lengths may differ by up to
0.1 s: both files are then cut to the shorter one. Beyond that, and for silence, metrics that compare two files give no
number and the reason is counted. The exit status is 1 if a file could not be read or measured, or if a metric that was
named could not be computed for any file, e.g. without its weights or its package; the tables contain all the others.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finallyse.cli import positive
from finallyse.errors import one_line_errors, printable
from finallyse.metrics import metrics_registry
from finallyse.plugins import load as load_plugins


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--enhanced", type=Path, required=True, metavar="DIR", help="files to measure")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="clean files of the same names")
    parser.add_argument("--noisy", type=Path, metavar="DIR", help="unprocessed files of the same names, for comparison")
    parser.add_argument(
        "--score-reference", action="store_true", help="also score the references, with metrics that need no reference"
    )
    parser.add_argument(
        "--only-referenced",
        action="store_true",
        help="leave out files without a reference, and name the references without a file",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        required=True,
        metavar="NAME",
        help=f"some of: {', '.join(metrics_registry)}; or all, for all of them that can be computed (--skip-missing)",
    )
    parser.add_argument(
        "--skip-missing", action="store_true", help="a metric that cannot be computed does not change the exit status"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.csv", help="table of utterances")
    parser.add_argument("--resources", default="resources", metavar="DIR", help="folder that contains weights/")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="device of neural-network metrics"
    )
    parser.add_argument("--jobs", type=positive, metavar="N", help="processes; default: one per core")
    text = "measure what there is of files that are cut short or damaged"
    parser.add_argument("--accept-cut", action="store_true", help=text)
    text = "Python file with metrics of your own; may be repeated"
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    load_plugins(vars(options).pop("plugin"))
    if options.metrics == ["all"]:
        options.metrics, options.skip_missing = list(metrics_registry), True
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the summary, return the exit status."""
    options = vars(parse(arguments))
    from finallyse.metrics.evaluate import evaluate  # slow to import: from here on Ctrl-C is told in one line
    from finallyse.metrics.measure import describe

    skip_missing = options.pop("skip_missing")
    result = evaluate(options.pop("enhanced"), options.pop("metrics"), options.pop("output"), **options)
    print(describe(result.summaries["enhanced"], result.missing, result.summaries.get("noisy")))
    failed = {} if skip_missing else result.failed
    for message in (*result.unreadable, *(f"metric {name}: {reason}" for name, reason in failed.items())):
        print(f"error: {printable(message)}", file=sys.stderr)
    return 1 if result.unreadable or failed else 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
