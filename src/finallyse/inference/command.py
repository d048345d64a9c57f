"""Implementation of `finallyse enhance`."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence

from finallyse.errors import UserError
from finallyse.inference.engine import choose_engine, open_engine
from finallyse.inference.files import Options, enhance_files, plan_outputs
from finallyse.pretrained import checkpoint_file


def run(inputs: Sequence[str], output: str, checkpoint: str | None, *, engine: str = "auto", **options) -> int:
    """Enhance `inputs` into `output`; returns the exit status: 0, or 1 if a file could not be enhanced.

    The command line is checked before PyTorch is loaded. `options` are those of `finallyse.inference.files.Options` and
    of `open_engine`.
    """
    names = [field.name for field in dataclasses.fields(Options)]
    writing = Options(**{name: options.pop(name) for name in names if name in options})
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {options['device']}: must be auto, cpu or cuda")
    if options["precision"] not in ("fp32", "bf16"):
        raise UserError(f"--precision {options['precision']}: must be fp32 or bf16")
    engine = choose_engine(engine, checkpoint)
    checkpoint_file(checkpoint, engine)
    pairs = plan_outputs(inputs, output, writing)
    # on termination, remove temporary files
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if engine == "torch":
        from finallyse.inference.enhancer import tune_process

        tune_process()
    return 1 if enhance_files(open_engine(checkpoint, engine, **options), pairs, writing) else 0
