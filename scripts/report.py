"""Write the report of a run: one self-contained HTML file, and its charts as SVG files.

    python scripts/report.py --results results --networks hifigan finally_stage1 --output results/report.html

For each network, reads <results>/configs/NETWORK.yaml, NETWORK.ckpt, state/NETWORK/{history,validation}.csv,
enhanced/NETWORK/, metrics/NETWORK.csv and NETWORK.summary.csv, and <results>/benchmarks/. Files that do not exist yet
are listed in the report as missing (with --require-all: an error); an unreadable file is an error, and nothing is
written.
"""

import argparse
import json
from pathlib import Path

from finallyse.cli import positive
from finallyse.compare import System
from finallyse.errors import UserError, one_line_errors
from finallyse.plugins import load_inherited
from finallyse.project import project_file
from finallyse.sweep import Sweep, read_sweep

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--results", type=Path, required=True, metavar="DIR", help="results folder of the workflow")
parser.add_argument("--networks", nargs="*", default=[], metavar="NAME", help="networks, in the order of the report")
parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="HTML file to write")
parser.add_argument(
    "--figures", type=Path, metavar="DIR", help="also write each network's charts to DIR/NETWORK.{training,metrics}.svg"
)
parser.add_argument(
    "--paper",
    type=Path,
    default=project_file("resources/paper"),
    metavar="DIR",
    help="folder of published results and the recipes' sizes: results.csv, recipes.csv (default: %(default)s)",
)
parser.add_argument(
    "--experiments",
    type=Path,
    default=project_file("config/experiments"),
    metavar="DIR",
    help="folder of the recipes to compare each configuration with (default: %(default)s)",
)
parser.add_argument(
    "--schema",
    type=Path,
    default=project_file("config/schema.json"),
    metavar="FILE",
    help="schema with the recipes' defaults (default: %(default)s)",
)
parser.add_argument("--augmentations", type=Path, metavar="FILE", help="page of the augmentations to link to")
parser.add_argument(
    "--compare",
    nargs=3,
    action="append",
    default=[],
    metavar=("NAME", "NETWORK", "DIR|RESULTS:NETWORK"),
    help="another system to show beside NETWORK: its files in DIR, or a network in another folder of results, whose "
    "training's curves are shown as well; may be repeated",
)
parser.add_argument(
    "--sweep",
    nargs=3,
    action="append",
    default=[],
    metavar=("NAME", "BASE", "GRID"),
    help="a sweep to show as a table: its name, network and grid (JSON), as in the pipeline's config; may be repeated",
)
parser.add_argument("--title", default="Run report", help="title of the report (default: %(default)s)")
parser.add_argument(
    "--utterances",
    type=positive,
    default=3,
    metavar="N",
    help="utterances with players per network, from the best to the worst (default: %(default)s)",
)
parser.add_argument(
    "--seconds",
    type=positive,
    default=8,
    metavar="S",
    help="maximum length of an utterance in a player, in s (default: %(default)s)",
)
parser.add_argument(
    "--rank-by", metavar="METRIC", help="metric that ranks utterances (default: wb_pesq or the next best)"
)
parser.add_argument("--require-all", action="store_true", help="fail if any file of any network is missing")


def parse_sweep(name: str, base: str, grid: str) -> Sweep:
    """The sweep that the three words of --sweep describe."""
    try:
        return read_sweep(name, {"base": base, "grid": json.loads(grid)})
    except (json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"--sweep {name}: the grid must be option -> values as JSON ({error})") from error


def main() -> None:
    """Entry point."""
    arguments = parser.parse_args()
    with one_line_errors():
        load_inherited()
        if arguments.output.suffix != ".html":
            raise UserError(f"--output {arguments.output}: must end in .html")
        if not (arguments.networks or arguments.sweep):
            raise UserError("nothing to report: give --networks or --sweep")
        from finallyse.report.collect import collect
        from finallyse.report.html import Options, write, write_figures

        report = collect(
            arguments.results,
            arguments.networks,
            paper=arguments.paper,
            experiments=arguments.experiments,
            schema=arguments.schema,
            compare=[System.of(*system) for system in arguments.compare],
            sweeps=[parse_sweep(*words) for words in arguments.sweep],
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
