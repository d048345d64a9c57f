"""Enhance the validation set of an experiment with its checkpoint, and score it.

    python scripts/inference.py exp.config_path=config/experiments/finally_stage3.yaml exp.run_name=finally_stage3

loads <exp.results>/<exp.run_name>.ckpt, writes <exp.results>/enhanced/<exp.run_name>/{enhanced,reference,noisy}/ and
prints the experiment's metrics. metrics=[] disables scoring. For another dataset, e.g. a folder of recordings:
data.validation.name=finally_dataset ~data.validation.args +data.validation.args.folder=DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from finallyse.config import load_experiment
from finallyse.errors import UserError, one_line_errors


def main(arguments: list[str]) -> None:
    """Parse the command line, enhance, print."""
    experiment = load_experiment(arguments)
    checkpoint = Path(experiment.exp.results) / f"{experiment.exp.run_name}.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint; train it first, or set exp.results and exp.run_name")
    import torch

    from finallyse.inference.enhancer import tune_process
    from finallyse.inference.validation import enhance_validation
    from finallyse.metrics.measure import describe, summarise

    if experiment.exp.threads:
        torch.set_num_threads(experiment.exp.threads)
    tune_process()
    folder = Path(experiment.exp.results) / "enhanced" / experiment.exp.run_name
    metrics, scores = enhance_validation(experiment, checkpoint, folder)
    if metrics.metrics:
        print(describe(summarise(scores, metrics.columns()), metrics.missing_columns()))
    print(f"wrote {folder}")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
