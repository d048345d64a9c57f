"""Train one network from an experiment file; run again to resume."""

from __future__ import annotations

import logging
import os
import sys

from finallyse.errors import one_line_errors

HELP = """\
usage: python scripts/train.py exp.config_path=FILE [exp.run_name=NAME] [key=value ...]

Trains the network described by FILE (config/experiments/*.yaml) and writes <results>/<run_name>.ckpt.
If stopped or killed, the same command resumes from the last saved state.

  python scripts/train.py exp.config_path=config/experiments/hifigan.yaml exp.run_name=hifigan
  python scripts/train.py exp.config_path=config/experiments/hifigan.yaml data.batch_size=8 train.precision=bf16
  torchrun --standalone --nproc-per-node=4 scripts/train.py exp.config_path=...      # four GPUs, the same result

Often changed (every option: config/README.md; Hydra's grammar, e.g. generator.optimizer.betas=[0.8,0.99]):
  exp.device=auto|cpu|cuda     exp.results=results          where the checkpoint and the state go
  exp.seed=1234                exp.threads=8                CPU threads
  data.batch_size=32           data.sub_batch_size=8        items per microbatch, to save memory; same result
  data.num_workers=4           train.steps=80000            a longer run continues a shorter one
  train.precision=fp32|bf16    train.compile=true           faster on a GPU
  train.val_step=5000          train.checkpoint_step=1000   how often to validate and to save
  train.stop_after=60          minutes after which to save and exit with status 75
  exp.wandb.mode=offline       exp.tensorboard=true         train.on_nonfinite=stop|skip
  train.debug=overfit|fast|profile                          a short run beside the real one, under <results>/debug

Files: <results>/<run_name>.ckpt; <run_name>.best.ckpt, the weights of the best validation by train.best=METRIC; and in
<results>/state/<run_name>/: history.csv (every step), validation.csv, samples/ (audio), step-*.pt (saved states to
resume from; the last two are kept).
Exit status: 0 finished; 2 an error in the command, the config or the data, reported in one line; 75 stopped by SIGTERM,
SIGINT or train.stop_after and saved, or after a loader process has died, or another process trains into the same
folder: run again. A second Ctrl-C quits immediately.
"""


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    logging.getLogger("finallyse").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    from finallyse.config import load_experiment
    from finallyse.training.engine import train

    return train(load_experiment(arguments))


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
