"""Train one network from an experiment file; run it again to continue where it stopped."""

from __future__ import annotations

import logging
import os
import sys

from finallyse.errors import UserError, one_line_errors

HELP = """\
usage: python scripts/train.py exp.config_path=FILE [exp.run_name=NAME] [key=value ...]

Trains the network that FILE (config/experiments/*.yaml) describes and writes <results>/<run_name>.ckpt.
Stopped or killed, it continues from its last saved state when the same command is given again.

  python scripts/train.py exp.config_path=config/experiments/hifigan.yaml exp.run_name=hifigan
  python scripts/train.py exp.config_path=config/experiments/hifigan.yaml data.batch_size=8 train.precision=bf16
  torchrun --standalone --nproc-per-node=4 scripts/train.py exp.config_path=...      # four GPUs, the same result

Often changed (every option: config/README.md; Hydra's grammar, e.g. generator.optimizer.betas=[0.8,0.99]):
  exp.device=auto|cpu|cuda     exp.results=results          where the checkpoint and the state go
  exp.seed=1234                exp.threads=8                CPU threads
  data.batch_size=32           data.sub_batch_size=8        pieces of a batch, to save memory; same result
  data.num_workers=4           train.steps=80000            a longer run continues a shorter one
  train.precision=fp32|bf16    train.compile=true           faster on a GPU
  train.val_step=5000          train.checkpoint_step=1000   how often to validate and to save
  train.stop_after=60          minutes after which to save and exit with status 75
  exp.wandb.mode=offline       exp.tensorboard=true         train.on_nonfinite=stop|skip

Files: <results>/<run_name>.ckpt; beside it <run_name>.best.ckpt, the weights that validated best by train.best=METRIC;
and in <results>/state/<run_name>/: history.csv (every step), validation.csv, samples/ (to listen to), step-*.pt (what a
killed run continues from; the last two are kept).
Exit status: 0 finished; 2 a mistake in the command, the config or the data, told in one line; 75 stopped by SIGTERM,
SIGINT or train.stop_after and saved: run it again. A second Ctrl-C ends it at once.
"""


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    logging.getLogger("finallyse").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    from finallyse.config import load_experiment
    from finallyse.training.engine import train

    try:
        return train(load_experiment(arguments))
    except OSError as error:
        if error.strerror is None:
            raise
        raise UserError(f"{error.filename or 'a file'}: {error.strerror}") from error


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
