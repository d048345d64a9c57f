"""Implementation of `finallyse enhance`."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finallyse.errors import UserError
from finallyse.inference.files import Options, enhance_files, plan_outputs
from finallyse.plugins import load as load_plugins
from finallyse.pretrained import checkpoint_file

if TYPE_CHECKING:
    from finallyse.inference.enhancer import Enhancer


def run(
    inputs: Sequence[str],
    output: str,
    checkpoint: str | None,
    *,
    threads: int | None = None,
    plugins: Sequence[str] = (),
    **options,
) -> int:
    """Enhance `inputs` into `output`; returns the exit status: 0, or 1 if a file could not be enhanced.

    The command line is checked before PyTorch is loaded. `options` are those of `finallyse.inference.files.Options` and
    of `Enhancer.from_checkpoint`.
    """
    names = [field.name for field in dataclasses.fields(Options)]
    writing = Options(**{name: options.pop(name) for name in names if name in options})
    _check(options)
    trained = checkpoint_file(checkpoint)
    pairs = plan_outputs(inputs, output, writing)
    # on termination, remove temporary files
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    return 1 if enhance_files(_load(trained, threads, plugins, options), pairs, writing) else 0


def run_live(
    ends: Sequence[str], checkpoint: str | None, *, threads: int | None = None, plugins: Sequence[str] = (), **options
) -> int:
    """Enhance a live signal; returns the exit status. `ends`: its source and target, by default stdin and stdout.

    `options` are those of `finallyse.inference.live.Live` and of `Enhancer.from_checkpoint`.
    """
    from finallyse.inference import live

    names = [field.name for field in dataclasses.fields(live.Live)]
    given = dict(zip(("source", "target"), ends, strict=False))
    settings = live.Live(**given, **{name: options.pop(name) for name in names if name in options})
    _check(options)
    return live.run(_load(checkpoint_file(checkpoint), threads, plugins, options), settings)


def _check(options: Mapping[str, Any]) -> None:
    """Raise UserError for options that no network accepts, before PyTorch is loaded."""
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {options['device']}: must be auto, cpu or cuda")
    if options["precision"] not in ("fp32", "bf16"):
        raise UserError(f"--precision {options['precision']}: must be fp32 or bf16")


def _load(trained: Path, threads: int | None, plugins: Sequence[str], options: Mapping[str, Any]) -> Enhancer:
    import torch

    from finallyse.inference.enhancer import Enhancer, tune_process

    load_plugins(plugins)
    if threads:
        torch.set_num_threads(threads)
    tune_process()
    return Enhancer.from_checkpoint(trained, **options)
