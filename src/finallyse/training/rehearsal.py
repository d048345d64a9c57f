"""A training's parts put together and one step made, without its data, its weights or a GPU.

The step is made on PyTorch's meta device, where tensors have shapes but no values: in seconds, whatever the network
needs. Items come from the prepared recordings if they are there, otherwise from made-up ones, through the real dataset
and degradations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from finallyse.audio.io import write_wav
from finallyse.corpora.manifest import COLUMNS, write_csv
from finallyse.datasets import datasets_registry
from finallyse.errors import UserError
from finallyse.metrics import metrics_registry
from finallyse.models.wavlm import WavLM
from finallyse.options import Experiment, from_dict
from finallyse.training import trainers_registry
from finallyse.training.batches import Batch, collate
from finallyse.training.distributed import Group
from finallyse.training.engine import check_rates
from finallyse.training.trainers import BaseTrainer

SMALL = 5_000_000  # parameters
SECONDS = 8.0  # of a made-up recording
# Bytes per trained value: weights, gradients and AdamW's two moments, in float32.
PER_TRAINED = 16
# Activations under bf16 autocast against float32: convolutions and products save theirs in half the bytes, spectral
# operations, norms and losses do not.
BF16_SHARE = 0.6
WAVLM_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "num_buckets": 320,
    "max_bucket_distance": 800,
    "layer_norm_eps": 1e-5,
}

Weights = Callable[[str, str], Mapping]  # (path of a checkpoint, "generator" or "discriminators") -> its weights


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a step takes.

    Attributes:
        trained: values that are trained, in all networks.
        microbatch: largest number of items that one process puts through the networks at once.
        flop: floating-point operations of convolutions and matrix products in a step of the whole batch.
        memory: bytes at the peak of a step in one process, an estimate: weights, optimizer, saved activations.
        left_out: what could not be part of it, and why.
    """

    trained: int
    microbatch: int
    flop: float
    memory: float
    left_out: tuple[str, ...]


def rehearse(experiment: Experiment, weights: Weights, processes: int = 1) -> Rehearsal:
    """Build everything that an experiment trains and make one step, for its largest and its smallest microbatch.

    Args:
        experiment: the complete experiment.
        weights: reads the checkpoints of `init_from`, or knows the shapes of those that are not trained yet.
        processes: GPUs that share the batch.

    Raises:
        UserError: for what would stop the training.
    """
    experiment, left_out = _to_rehearse(experiment)
    _check_best(experiment)
    item, keys, sets = _item(experiment)
    share, sub_batch = experiment.data.batch_size // processes, experiment.data.sub_batch_size
    if share < 1:
        raise UserError(f"data.batch_size={experiment.data.batch_size} cannot be shared by {processes} GPUs")
    largest = min(share, sub_batch or share)
    smallest = share % largest or largest
    try:
        trainer = _trainer(experiment, weights, keys, torch.device("meta"))
        if _is_small(trainer):  # with values it is faster
            trainer = _trainer(experiment, weights, keys, torch.device("cpu"))
            steps = [_step(trainer, sets, item, min(2, smallest))]
        else:
            steps = [_step(trainer, sets, item, size) for size in {largest: 0, smallest: 0}]
    except (NotImplementedError, RuntimeError):
        # An operation that meta tensors do not have, or a real mistake: one item with values will tell.
        _step(_trainer(experiment, weights, keys, torch.device("cpu")), sets, item, 1)
        left_out.append("memory and operations: a part computes with values, which the estimate does without")
        return Rehearsal(0, largest, math.nan, math.nan, tuple(left_out))
    step = steps[0]
    flop = step.flop * experiment.data.batch_size / step.items
    share_of_fp32 = BF16_SHARE if experiment.train.precision == "bf16" else 1
    memory = step.fixed_bytes + step.saved_bytes * share_of_fp32 * largest / step.items
    return Rehearsal(step.trained, largest, flop, memory, tuple(left_out))


class Step(NamedTuple):
    """What one step has shown: values trained, items, operations, bytes that depend on the items and that do not."""

    trained: int
    items: int
    flop: float
    saved_bytes: float
    fixed_bytes: float


def _is_small(trainer: BaseTrainer) -> bool:
    """Whether a step with values takes no longer than one without."""
    networks = (trainer.generator, trainer.discriminators)
    return sum(p.numel() for network in networks for p in network.parameters()) < SMALL


def _step(trainer: BaseTrainer, sets: Mapping, item: Mapping, size: int) -> Step:
    """One step of a trainer that has made none, or of one on the meta device, with a microbatch of `size` items."""
    check_rates(trainer.generator, sets["train"], sets["validation"])
    wavlm = list(trainer.wavlm.parameters()) if trainer.wavlm else []
    batch = Batch({key: _repeated(value, size, trainer.device) for key, value in item.items()}, ["made up"] * size)
    updaters = trainer.updaters().values()
    for updater in updaters:
        for optimizer in updater.optimizers.values():
            optimizer.step = lambda: None  # the fused one takes no meta tensors, and nothing depends on it here
    parameters = [*trainer.generator.parameters(), *trainer.discriminators.parameters(), *wavlm]
    trainer.begin(0, 0)
    try:
        with _norms_on(trainer.device), FlopCounterMode(display=False) as counter, Saved(parameters) as saved:
            trainer.train_step(batch)
    except UserError:
        raise
    except Exception as error:
        if trainer.device.type == "meta":
            raise
        raise UserError(f"a training step fails: {_described(error)}") from error
    trained = sum(p.numel() for updater in updaters for p in updater.parameters)
    fixed = PER_TRAINED * trained + 4 * sum(p.numel() for p in parameters if not p.requires_grad)
    fixed += 4 * sum(p.numel() for p in trainer.generator.parameters()) * (trainer.average is not None)
    return Step(trained, size, counter.get_total_flops(), saved.peak, fixed)


def _trainer(experiment: Experiment, weights: Weights, keys: set[str], device: torch.device) -> BaseTrainer:
    """The experiment's trainer on `device`, with WavLM's shapes if its weights are not there yet.

    Without autocast, which the meta device does not know, and in which many CPUs are very slow.
    """
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, precision="fp32"))

    def with_values(found: Mapping) -> dict:
        """`found` with arbitrary values for the weights of a network that is not trained yet."""
        return {
            name: with_values(value)
            if isinstance(value, Mapping)
            else torch.full_like(value, 0.01, device=device)
            if value.is_meta
            else value
            for name, value in found.items()
        }

    class Rehearsing(trainers_registry[experiment.trainer]):
        def _load_wavlm(self, folder: str | None) -> nn.Module | None:
            if folder is None or (Path(folder).exists() and device.type == "cpu"):
                return super()._load_wavlm(folder)
            config = WavLM.read_config(folder) if Path(folder).exists() else _published_wavlm(self.generator)
            return WavLM.without_weights(config).to(device)

        def _pretrained(self, source: str, part: str) -> Mapping:
            return with_values(weights(source, part))

    with _on(device):
        return Rehearsing(experiment, Group(device), keys)


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Context in which networks are built on `device`.

    Raises:
        UserError: for any error.
    """
    try:
        with warnings.catch_warnings(), device, _norms_on(device):
            warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the networks and losses cannot be built: {_described(error)}") from error


@contextlib.contextmanager
def _norms_on(device: torch.device) -> Iterator[None]:
    """Context in which norms of weights compute nothing on the meta device: only the shapes of what they return count.

    PyTorch takes apart their many small operations there in Python, which would be half of the time of a rehearsal.
    """
    if device.type != "meta":
        yield
        return
    weight, spectral = parametrizations._WeightNorm, parametrizations._SpectralNorm
    with (
        mock.patch.object(weight, "forward", lambda norm, magnitude, direction: magnitude * direction),
        mock.patch.object(weight, "right_inverse", lambda norm, values: (_magnitude(values, norm.dim), values)),
        mock.patch.object(spectral, "_power_method", lambda *arguments: None),
    ):
        yield


def _magnitude(weight: Tensor, kept: int) -> Tensor:
    """The magnitude of a normed weight, without values: of each slice of an axis, or of all (-1)."""
    return weight.new_empty(
        [size if axis == kept else 1 for axis, size in enumerate(weight.shape)] if kept >= 0 else []
    )


def _published_wavlm(generator: nn.Module) -> dict[str, Any]:
    """WavLM-large's sizes, or those of a small one for a generator that expects fewer features."""
    width = getattr(generator, "ssl_dim", WAVLM_LARGE["hidden_size"])
    heads = math.gcd(width, WAVLM_LARGE["num_attention_heads"])
    groups = math.gcd(width, WAVLM_LARGE["num_conv_pos_embedding_groups"])
    return WAVLM_LARGE | {
        "hidden_size": width,
        "num_hidden_layers": WAVLM_LARGE["num_hidden_layers"] if width >= WAVLM_LARGE["hidden_size"] else 2,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_conv_pos_embedding_groups": groups,
    }


def _repeated(value: Tensor, size: int, device: torch.device) -> Tensor:
    """`value` [1, ...] for `size` items, on the meta device without its values."""
    if device.type == "meta":
        return torch.empty(size, *value.shape[1:], dtype=value.dtype, device=device)
    return value.expand(size, *value.shape[1:])


def _described(error: Exception) -> str:
    """One line: kind, message and the innermost place in code that is not PyTorch's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"


class Saved:
    """Context that follows the bytes of the tensors that autograd saves, each storage once, parameters not at all.

    Attributes:
        peak: the most at any time, bytes.
    """

    def __init__(self, parameters: list[Tensor]):
        self.known = {p.untyped_storage()._cdata for p in parameters}
        self.counts: dict[int, int] = {}
        self.live = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor
        )

    def __enter__(self) -> Saved:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)


class _Kept:
    """A saved tensor, counted as long as autograd has it."""

    def __init__(self, saved: Saved, tensor: Tensor):
        self.saved, self.tensor = saved, tensor
        storage = tensor.untyped_storage()
        self.key, self.bytes = storage._cdata, storage.nbytes()
        if self.key in saved.known:
            self.key = None
            return
        saved.counts[self.key] = saved.counts.get(self.key, 0) + 1
        if saved.counts[self.key] == 1:
            saved.live += self.bytes
            saved.peak = max(saved.peak, saved.live)

    def __del__(self):
        if self.key is None:
            return
        self.saved.counts[self.key] -= 1
        if not self.saved.counts[self.key]:
            self.saved.live -= self.bytes


# ---------------------------------------------------------------------------------------------------------------------
# Data


def _item(experiment: Experiment) -> tuple[dict[str, Tensor], set[str], dict[str, Any]]:
    """The tensors of a batch of one training item, the item's keys, and both datasets, which have made an item each."""
    with tempfile.TemporaryDirectory() as folder:
        data = _with_recordings(dataclasses.asdict(experiment.data), f"{experiment.exp.resources}/prepared/", folder)
        sets = {kind: datasets_registry[data[kind]["name"]](**data[kind]["args"]) for kind in ("train", "validation")}
        first = sets["train"][(0, 0)]
        batch = collate([first])
        sets["validation"][(0, 0)]
    return batch.tensors, set(first), sets


def _with_recordings(data: Any, prepared: str, folder: str) -> Any:
    """`data` with made-up recordings in place of manifests below `prepared` that do not exist yet."""
    if isinstance(data, dict):
        return {key: _with_recordings(value, prepared, folder) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_recordings(value, prepared, folder) for value in data]
    if not isinstance(data, str) or not data.startswith(prepared) or Path(data).exists():
        return data
    corpus, rate, name = data.removeprefix(prepared).split("/")
    return str(_made_up(Path(folder, corpus, rate), name, int(rate)))


def _made_up(folder: Path, name: str, rate: int) -> Path:
    """A manifest of a few recordings of noise that serve as speech, pairs, noises and impulse responses alike."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(2):
        row = {"path": f"wav/{index}.wav", "noisy_path": f"wav/{index}_noisy.wav", "samples": int(SECONDS * rate)}
        wav = 0.1 * rng.standard_normal(row["samples"]).astype(np.float32)
        for path in (row["path"], row["noisy_path"]):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_wav(folder / path, wav, rate, overload="scale")
        row |= {"rate": rate, "speaker": str(index), "split": name.removesuffix(".csv"), "offset": 0, "gain": 1}
        rows.append(row | {"peak": float(np.abs(wav).max()), "source_checksum": "0" * 64})
    write_csv(folder / name, (*COLUMNS, "offset", "noisy_path"), rows)
    return folder / name


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _to_rehearse(experiment: Experiment) -> tuple[Experiment, list[str]]:
    """The experiment without losses whose weights are not there yet, which are named, and without their balance."""
    left_out, kept = [], {}
    for name, part in experiment.losses.generator.items():
        missing = [path for path in _paths(part) if not Path(path).exists()]
        if missing:
            left_out.append(f"loss {name}: {missing[0]} is not there yet")
        else:
            kept[name] = part
    options = dataclasses.asdict(experiment)
    options["losses"]["generator"] = kept
    options["train"]["balance_step"] = None  # one more backward pass for each loss, on which nothing depends
    return from_dict(Experiment, options), left_out


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, str) and "/" in value:
        yield value


def _check_best(experiment: Experiment) -> None:
    column = experiment.train.best
    if column is not None:
        columns = [name for metric in experiment.metrics for name in metrics_registry[metric].columns]
        if column not in columns:
            raise UserError(f"train.best={column}: not among the numbers of `metrics` ({', '.join(columns) or 'none'})")
