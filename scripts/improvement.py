"""Show whether each network beats its input, and check its goals.

    python scripts/improvement.py --results results/demo --networks hifigan hifipp_denoise \\
        --improves hifipp_denoise.wb_pesq hifipp_denoise.si_sdr --reaches hifigan.wb_pesq=2.0

For each network, reads <results>/metrics/NETWORK.csv and NETWORK.summary.csv (of scripts/evaluate.py with --noisy) and
<results>/state/NETWORK/validation.csv, and writes <results>/improvement.md: a table of inputs, outputs and the mean
difference of output and input over utterances with its 95 % interval, then the validations of each training. In the
workflow, `snakemake learn` checks the goals that the configuration sets in networks.<name>.improves and .reaches.

Exit status 0: all goals are met. 1: at least one is not; each is printed on its own line, and the table is still
written. 2: a table is missing or an option is invalid; nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finallyse.errors import UserError, one_line_errors
from finallyse.plugins import load_inherited


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder of results of the workflow")
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME", help="networks, in the table's order")
    parser.add_argument(
        "--improves",
        nargs="*",
        default=[],
        metavar="NETWORK.METRIC",
        help="the network must beat its input in that metric, by the mean of the change; whether its interval excludes "
        "0 is also reported",
    )
    parser.add_argument(
        "--reaches",
        nargs="*",
        default=[],
        metavar="NETWORK.METRIC=NUMBER",
        help="the mean over the validation set must be at least this good; for vocoders, which have no input",
    )
    parser.add_argument("--only-show", action="store_true", help="exit with status 0 even if goals are not met")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the table; default: improvement.md in --results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Write and print the table, check it, return the exit status."""
    options = parse(arguments)
    from finallyse import atomic
    from finallyse.report.improvement import improvement, markdown, parse_goals

    goals = parse_goals(options.improves, options.reaches, options.networks)
    if not (goals or options.only_show):
        raise UserError(
            "nothing to check: give --improves or --reaches (in the workflow's configuration networks.<name>.improves "
            "or networks.<name>.reaches), or --only-show"
        )
    found = improvement(options.results, options.networks, goals)
    text = markdown(found)
    atomic.write_bytes(options.output or options.results / "improvement.md", text.encode())
    print(text, flush=True)
    if options.only_show:
        return 0
    for line in found.unmet:
        print(f"error: {line}", file=sys.stderr)
    return 1 if found.unmet else 0


if __name__ == "__main__":
    with one_line_errors():
        load_inherited()
        sys.exit(main())
