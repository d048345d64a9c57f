"""Make the report of a run: one HTML file that holds everything, and its charts as SVG files.

    python scripts/report.py --results results --networks hifigan finally_stage1 --output results/report.html

Reads, for each network, <results>/configs/NETWORK.yaml, NETWORK.ckpt, state/NETWORK/{history,validation}.csv,
enhanced/NETWORK/, metrics/NETWORK.csv and NETWORK.summary.csv, and <results>/benchmarks/. What is not there yet is
listed in the report as missing (or is an error, with --require-all); what cannot be read is an error, and then nothing
is written.
"""

import argparse
from pathlib import Path

from finallyse.errors import UserError, one_line_errors


def positive(text: str) -> int:
    """An option's value that must be 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="folder of results of the workflow")
parser.add_argument("--networks", nargs="+", required=True, metavar="NAME", help="networks, in the order of the report")
parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the HTML file to write")
parser.add_argument(
    "--figures", type=Path, metavar="DIR", help="also write each network's charts to DIR/NETWORK.{training,metrics}.svg"
)
parser.add_argument(
    "--paper",
    type=Path,
    default=Path("resources/paper"),
    metavar="DIR",
    help="folder of published numbers and of the recipes' sizes: results.csv, recipes.csv (default: %(default)s)",
)
parser.add_argument(
    "--experiments",
    type=Path,
    default=Path("config/experiments"),
    metavar="DIR",
    help="folder of the recipes that each configuration is compared with (default: %(default)s)",
)
parser.add_argument(
    "--schema",
    type=Path,
    default=Path("config/schema.json"),
    metavar="FILE",
    help="schema of the recipes, which knows their defaults (default: %(default)s)",
)
parser.add_argument("--augmentations", type=Path, metavar="FILE", help="page of the augmentations, to be linked to")
parser.add_argument("--title", default="Run report", help="headline of the report (default: %(default)s)")
parser.add_argument(
    "--utterances",
    type=positive,
    default=3,
    metavar="N",
    help="utterances to listen to for each network, from the best to the worst (default: %(default)s)",
)
parser.add_argument(
    "--seconds",
    type=positive,
    default=8,
    metavar="S",
    help="cut longer utterances in the players (default: %(default)s)",
)
parser.add_argument(
    "--rank-by", metavar="METRIC", help="metric that ranks utterances (default: wb_pesq or the next best)"
)
parser.add_argument("--require-all", action="store_true", help="fail if anything of any network is missing")


def main() -> None:
    """Entry point."""
    arguments = parser.parse_args()
    with one_line_errors():
        if arguments.output.suffix != ".html":
            raise UserError(f"--output {arguments.output}: must end in .html")
        from finallyse.report.collect import collect
        from finallyse.report.html import Options, write, write_figures

        report = collect(
            arguments.results,
            arguments.networks,
            paper=arguments.paper,
            experiments=arguments.experiments,
            schema=arguments.schema,
            title=arguments.title,
            require_all=arguments.require_all,
        )
        if arguments.augmentations and not arguments.augmentations.is_file():
            raise UserError(f"--augmentations {arguments.augmentations}: no such file")
        options = Options(arguments.utterances, arguments.seconds, arguments.rank_by)
        size = write(report, arguments.output, options, arguments.augmentations)
        if arguments.figures:
            write_figures(report, arguments.figures)
        print(f"{arguments.output}: {len(report.networks)} networks, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
