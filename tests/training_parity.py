"""Training compared, step by step, with recordings of the published training code (tests/golden/training.json).

Both sides start from the same weights (drawn from layer names), see the same batches (closed formulas, `arrays_of`) and
the same small WavLM, in double precision. Where this project deliberately does otherwise than the published code, a
switch (`SWITCHES`; docs/differences.md gives the reasons) brings the published behaviour about: by configuration where
there is an option, else by replacing a function. With all its switches on, a run must be the recorded one.

    python tests/training_parity.py [RUN ...]              compare all twelve steps
    python tests/training_parity.py --effects [RUN ...]    what each switch, left off, changes in twelve steps (minutes)
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import math
import sys
import tempfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.signal
import torch
from torch.nn.utils import parametrizations

from finallyse.audio import mel, stft
from finallyse.config import complete_experiment, merge, read_yaml
from finallyse.losses import lmos, resampling
from finallyse.models import finally_gen, wavlm
from finallyse.schema import build_schema
from finallyse.training import trainers_registry
from finallyse.training.batches import Batch
from finallyse.training.clipping import Clipper
from finallyse.training.distributed import Group
from finallyse.training.optim import Updater
from finallyse.training.trainers import BaseTrainer
from support import ROOT
from support.networks import SMALL_WAVLM, write_wavlm
from support.weights import fill, fill_wavlm, layers_of, norm_of

GOLDEN = Path(__file__).parent / "golden" / "training.json"
STEPS, CYCLE = 12, 4  # steps of a recorded run; batches, which come in a cycle: an epoch is one cycle
PESQ_UNIT = 1.0  # this project's pesq loss in units of 0.1 * symmetric + 0.0309 * asymmetric disturbance

SWITCHES = {
    "clip": "gradients are clipped at the largest norm so far, those of each discriminator by itself",
    "spectral": "a power iteration of the spectral norm in every pass, real and generated clips in passes apart",
    "normalize": "WavLM takes the audio as it is, as a condition and in the lmos loss",
    "floor": "the lmos loss takes magnitudes without a floor",
    "rate": "the lmos loss hands 48 kHz audio to WavLM as if it were at 16 kHz",
    "tanh": "no tanh at FINALLY's output",
    "pesq": "the PESQ loss is negated and halved",
    "emphasis": "the pre-emphasis coefficients of PESQ are rounded to single precision",
    "warmup": "no warm-up of the 48 kHz head's learning rates, stage 3's being a switch of its own",
    "zero_lr": "stage 3's warm-up counts periods of 200 steps, from zero: the generator's first 200 do nothing",
}
CONFIGURED = {
    "clip": {"train": {"clip": {"mode": "quantile", "quantile": 1.0}}},
    "pesq": {"losses": {"generator": {"pesq": {"weight": 2 * -0.5 / PESQ_UNIT}}}},
    "warmup": {"generator": {"scheduler": {"warmup_steps": 0}}, "discriminators": {"scheduler": {"warmup_steps": 0}}},
    "zero_lr": {"generator": {"optimizer": {"lr": 0.0}}},
}
REPLACED = {
    "floor": (lmos, "magnitude", torch.abs),
    "rate": (lmos, "to_16k", lambda wav, sample_rate: wav),
    "tanh": (finally_gen, "output_head", lambda conv, x: conv(x)),
}

HIFI = {"upsample_initial_channel": 64, "resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3, 5]] * 2}
HIFIPP = {
    **{f"hifi_{key}": value for key, value in HIFI.items()},
    "hifi_input_channels": 32,
    "spectralunet_block_widths": [4, 8, 12, 16, 16],
    "spectralunet_block_depth": 1,
    "spectralunet_out_channels": 32,
    "waveunet_block_widths": [8, 12, 16, 24],
    "waveunet_block_depth": 1,
    "spectralmasknet_block_widths": [4, 8, 8, 12],
    "spectralmasknet_block_depth": 1,
}
FINALLY = {**HIFIPP, "ssl_dim": 32}
FINALLY_48K = {
    **FINALLY,
    "use_upsamplewaveunet": True,
    "upsamplewaveunet_block_widths": [12, 12, 16, 16, 24],
    "upsamplewaveunet_block_depth": 1,
    "upsamplewaveunet_upsampler_features": 32,
}
MPD = {"widths": [4, 16, 64, 128, 128]}
MSD = {"widths": [16, 16, 32, 64, 128, 128, 128]}
WAVLM = SMALL_WAVLM | {"num_buckets": 32, "max_bucket_distance": 200}


@dataclasses.dataclass(frozen=True)
class Run:
    """A recorded training.

    Args:
        experiment: the recipe that it follows, in the small.
        items: kind of the batches (`arrays_of`).
        gain, gain_last: of the generator's weights (`support.weights.fill`).
        args, parts: of the generator and of the discriminators.
        switches: those without which it is not the recorded one.
        batch, sub_batch: items of a step and of a piece.
        tested_steps: steps that the tests compare; weights and output are recorded for the end of all twelve.
        old_spectral_norm: recorded with torch.nn.utils.spectral_norm, which finds the two singular vectors in the other
            order than its successor.
    """

    experiment: str
    items: str
    gain: float
    gain_last: float
    args: dict
    parts: dict
    switches: tuple[str, ...]
    batch: int = 2
    sub_batch: int | None = None
    tested_steps: int = STEPS
    old_spectral_norm: bool = False


# "hifigan_published" is HiFi-GAN's own training code; the others, "hifigan" too, are the framework of the course work
# that this project re-imagines.
IN_STAGES = ("clip", "normalize", "floor")
IN_STAGE_3 = (*IN_STAGES, "rate", "warmup")
RUNS = {
    "hifigan_published": Run(
        "hifigan", "vocoder", 1.0, 0.5, HIFI, {"mpd": MPD, "msd": MSD}, ("spectral",), old_spectral_norm=True
    ),
    "hifigan": Run(
        "hifigan", "vocoder", 1.0, 0.5, HIFI, {"mpd": MPD, "msd": MSD}, ("spectral", "clip"), tested_steps=7
    ),
    "hifipp_denoise": Run(
        "hifipp_denoise",
        "denoise",
        0.85,
        0.25,
        HIFIPP,
        {"msd": {**MSD, "same_scale": True}},
        ("spectral", "clip"),
        tested_steps=4,
    ),
    "finally_stage1": Run("finally_stage1", "context", 0.85, 0.7, FINALLY, {}, IN_STAGES),
    "finally_stage1_without_tanh": Run(
        "finally_stage1", "context", 0.85, 0.7, FINALLY, {}, (*IN_STAGES, "tanh"), tested_steps=2
    ),
    "finally_stage2": Run("finally_stage2", "context", 0.85, 0.7, FINALLY, {"ms-stft_disc": {"filters": 4}}, IN_STAGES),
    "finally_stage3_pretrain": Run("finally_stage3_pretrain", "48k", 0.85, 1.5, FINALLY_48K, {}, IN_STAGE_3, batch=4),
    "finally_stage3": Run(
        "finally_stage3",
        "48k",
        0.85,
        1.5,
        FINALLY_48K,
        {"ms-stft_disc": {"filters": 2}},
        (*IN_STAGE_3, "pesq", "emphasis"),
        batch=4,
        sub_batch=2,
        tested_steps=3,
    ),
    "finally_stage3_zero_lr": Run(
        "finally_stage3",
        "48k",
        0.85,
        1.5,
        FINALLY_48K,
        {"ms-stft_disc": {"filters": 2}},
        (*IN_STAGE_3, "pesq", "emphasis", "zero_lr"),
        batch=4,
        sub_batch=2,
        tested_steps=2,
    ),
}


# ------------------------------------------------------------------------------------------------------------- batches


def rng_of(kind: str, *key) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(seed).encode()) for seed in (kind, *key)])


def voice_of(key: tuple, rate: int, samples: int) -> np.ndarray:
    """A made-up voice [samples] at any rate, peak about 0.5: harmonics of a tone in slow tremolo, phases from `key`."""
    rng = rng_of("voice", *key)
    pitch, tremolo = 90.0 + 160.0 * rng.random(), 2.0 + 4.0 * rng.random()
    phases, shift = 2 * np.pi * rng.random(60), 2 * np.pi * rng.random()
    time, wav = np.arange(samples) / rate, np.zeros(samples)
    for harmonic, phase in enumerate(phases, 1):
        if harmonic * pitch < 0.45 * rate:
            wav += np.sin(2 * np.pi * harmonic * pitch * time + phase) / harmonic
    return 0.25 * wav * (0.6 + 0.4 * np.sin(2 * np.pi * tremolo * time + shift))


def clean_and_degraded(key: tuple, rate: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """A voice at `rate`, and the same at 16 kHz in noise."""
    clean = voice_of(key, rate, samples) + 0.003 * rng_of("floor", *key).standard_normal(samples)
    low = samples * 16000 // rate
    speech = clean if rate == 16000 else voice_of(key, 16000, low)
    return clean, 0.8 * speech + 0.05 * rng_of("noise", *key).standard_normal(low)


def arrays_of(kind: str, number: int, size: int) -> dict[str, np.ndarray]:
    """Items of batch `number`: float32 [size, samples], 8192 samples at 16 kHz or 18432 at 48 kHz; `start` [size].

    Of kind `context` are segments of 65536 samples that begin at 320 k + 319, where the published code takes the same
    frames of WavLM's as this project (elsewhere its crop is up to a frame late).
    """
    items = []
    for i in range(size):
        key = ({"48k": "sr48"}.get(kind, kind), number, i)
        if kind == "context":
            wav, degraded = clean_and_degraded(key, 16000, 65536)
            start = 320 * int(rng_of("start", *key).integers(0, 179)) + 319
            cut = slice(start, start + 8192)
            items.append({"wav": wav[cut], "input_wav": degraded[cut], "context_wav": degraded, "start": start})
        else:
            wav, degraded = clean_and_degraded(key, *((48000, 18432) if kind == "48k" else (16000, 8192)))
            items.append({"wav": wav, "input_wav": degraded})
    stacked = {name: np.stack([item[name] for item in items]) for name in items[0]}
    return {name: values if name == "start" else values.astype(np.float32) for name, values in stacked.items()}


def batch_of(run: Run, number: int) -> Batch:
    arrays = arrays_of(run.items, number, run.batch)
    tensors = {key: torch.from_numpy(values) for key, values in arrays.items()}
    tensors = {key: value if key == "start" else value.to(torch.get_default_dtype()) for key, value in tensors.items()}
    if run.items == "vocoder":
        tensors = {"wav": tensors["wav"], "mel": mel.LogMel()(tensors["wav"])}
    tensors |= {key: tensors[key].unsqueeze(1) for key in ("wav", "input_wav") if key in tensors}
    return Batch(tensors, [str(i) for i in range(run.batch)])


# ---------------------------------------------------------------------------------------------------- double precision


class _Wide:
    """The module torch with a float32 that is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Let the project, which names float32 in places, compute in double precision for as long as the context lasts."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float64)
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        # oneDNN, which the project calls directly for matrix products, knows no double precision
        stack.enter_context(mock.patch.object(torch.backends.mkldnn, "is_available", lambda: False))
        for module in (mel, stft, wavlm):
            stack.enter_context(mock.patch.object(module, "torch", _Wide()))
        resampler = resampling.torchaudio.transforms.Resample(48000, 16000).double()
        kept = {(48000, torch.device("cpu")): resampler}
        stack.enter_context(mock.patch.dict(resampling._resamplers, kept))
        yield


def _widen_updates(trainer: BaseTrainer) -> None:
    """The fused optimizer takes verdict and scale in float32, whatever the weights are."""
    trainer.guard.blocked = trainer.guard.blocked.to(torch.float32)
    for updater in trainer.updaters().values():
        for one in getattr(updater, "updaters", [updater]):
            factor = one.clipper.factor
            one.clipper.factor = lambda norm, factor=factor: factor(norm).to(torch.float32)


# ------------------------------------------------------------------------------------------------------------ switches


def experiment_of(run: Run, switches: Collection[str], wavlm_folder: Path, precision: str = "fp32") -> dict:
    """The run's recipe with small networks and the configured ones of the switches."""
    path = ROOT / "config" / "experiments" / f"{run.experiment}.yaml"
    recipe = read_yaml(path)
    small = {
        "generator": {"args": run.args, "init_from": None},
        "discriminators": {"parts": {name: {"args": args} for name, args in run.parts.items()}},
        "losses": {"generator": {"utmos": None}},  # its network is too large to record
        "data": {"batch_size": run.batch, "sub_batch_size": run.sub_batch},
        "train": {"precision": precision},
    }
    if "wavlm" in recipe:
        small["wavlm"] = str(wavlm_folder)
    experiment = complete_experiment(merge(recipe, small), str(path), build_schema())
    # after the check, which has no place for a learning rate of zero
    return merge(experiment, *(CONFIGURED[name] for name in switches if name in CONFIGURED))


@contextlib.contextmanager
def replaced(switches: Collection[str]) -> Iterator[None]:
    """The functions of the project that a switch replaces, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        for name in REPLACED.keys() & switches:
            module, function, published = REPLACED[name]
            stack.enter_context(mock.patch.object(module, function, published))
        yield


class UpdaterOfEach:
    """An updater for each discriminator, with a gradient norm and clipping of its own, in place of one for all."""

    def __init__(self, updaters: list[Updater]):
        self.updaters = updaters

    @property
    def lr(self) -> float:
        return self.updaters[0].lr

    def begin(self, step: int, epoch: int) -> None:
        for updater in self.updaters:
            updater.begin(step, epoch)

    def update(self, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        results = [updater.update(losses) for updater in self.updaters]
        norm = torch.stack([norm for _, norm, _ in results]).square().sum().sqrt()
        return losses, norm, results[-1][2]


def _clip_each(trainer: BaseTrainer, experiment: dict) -> None:
    section, clip = experiment["discriminators"], experiment["train"]["clip"]
    trainer.discriminator_updater = UpdaterOfEach(
        [
            Updater(
                network.parameters(),
                section["optimizer"],
                section["scheduler"],
                Clipper(clip["mode"], clip["norm"], clip["quantile"], clip["window"], trainer.device),
                trainer.guard,
                trainer.group,
            )
            for network in trainer.discriminators.values()
        ]
    )


def _round_emphasis(trainer: BaseTrainer) -> None:
    responses = trainer.generator_criteria.losses["pesq"].responses
    coefficients = ([2.740826, -5.4816519, 2.740826], [1.0, -1.9444777, 0.94597794])
    rounded = [np.float32(values).astype(float) for values in coefficients]
    responses[1] = torch.from_numpy(scipy.signal.lfilter(*rounded, np.eye(1, responses.shape[1])[0]))


def _old_power_method(norm: parametrizations._SpectralNorm, weight: torch.Tensor, iterations: int) -> None:
    """The power iteration of torch.nn.utils.spectral_norm: v first, then u."""
    with torch.no_grad():
        for _ in range(iterations):
            for vector, product in ((norm._v, lambda: weight.T @ norm._u), (norm._u, lambda: weight @ norm._v)):
                vector.copy_(torch.nn.functional.normalize(product(), dim=0, eps=norm.eps))


def _iterate_in_each_pass(trainer: BaseTrainer, run: Run) -> None:
    norms, discriminate = trainer.discriminator_norms, trainer.discriminate
    norms.advance = lambda: [chain.train() for chain in norms.chains]  # torch then iterates in every pass
    for chain in norms.chains if run.old_spectral_norm else ():
        for norm in chain:
            norm._power_method = functools.partial(_old_power_method, norm)

    def one_after_the_other(wav: torch.Tensor):
        if len(wav) <= (run.sub_batch or run.batch):
            return discriminate(wav)
        (logits, maps), (more_logits, more_maps) = (discriminate(half) for half in wav.chunk(2))  # real, generated
        return (
            [torch.cat(both) for both in zip(logits, more_logits, strict=True)],
            [
                [torch.cat(both) for both in zip(some, more, strict=True)]
                for some, more in zip(maps, more_maps, strict=True)
            ],
        )

    trainer.discriminate = one_after_the_other


# ------------------------------------------------------------------------------------------------- a run and its trace


def _numbers(values, digits: int = 10) -> list[float]:
    return [float(f"{float(value):.{digits}g}") for value in values]


@torch.no_grad()
def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Effective weights; with spectral norm, those before it."""
    weights = {
        name: layer.parametrizations.weight.original if norm_of(layer) == "spectral" else layer.weight
        for name, layer in layers_of(model).items()
    }
    return {name: weight.double().clone() for name, weight in weights.items()}


def _change(before: dict[str, torch.Tensor], model: torch.nn.Module) -> dict:
    """What training did to a network: to all of it, and to five layers, evenly spaced in alphabetical order."""
    moved = {name: weight - before[name] for name, weight in _weights(model).items()}
    names = sorted(before)
    along = sum(float((moved[name] * before[name]).sum()) for name in names)
    layers = {
        name: {
            "rms": _numbers([moved[name].square().mean().sqrt()])[0],
            "first": _numbers(moved[name].flatten()[:8], 8),
        }
        for name in dict.fromkeys(names[i] for i in np.linspace(0, len(names) - 1, 5).astype(int))
    }
    return {
        "moved": _numbers([math.sqrt(sum(float(moved[name].square().sum()) for name in names))])[0],
        "along": _numbers([along / sum(float(before[name].square().sum()) for name in names)])[0],
        "layers": layers,
    }


def trace(name: str, switches: Collection[str], steps: int = STEPS, precision: str = "fp64") -> dict:
    """Train a run; returns what happened, in the form of the recorded runs (tests/golden/README.md).

    precision: "fp64", or "fp32" or "bf16" as in the option train.precision.
    """
    run, wide = RUNS[name], precision == "fp64"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if run.experiment.startswith("finally"):
            write_wavlm(folder, normalize="normalize" not in switches, fill=fill_wavlm, **WAVLM)
        stack.enter_context(replaced(switches))
        if wide:
            stack.enter_context(double_precision())
        experiment = experiment_of(run, switches, folder, "fp32" if wide else precision)
        keys = {"wav", "mel"} if run.items == "vocoder" else {"wav", "input_wav", "context_wav", "start"}
        trainer = trainers_registry[experiment["trainer"]](experiment, Group(torch.device("cpu")), keys)
        networks = {"generator": trainer.generator, **trainer.discriminators}
        for part, network in networks.items():
            fill(network, *((run.gain, run.gain_last) if part == "generator" else (1.0, 1.0)))
        before = {part: _weights(network) for part, network in networks.items()}
        if "clip" in switches and len(trainer.discriminators) > 1:
            _clip_each(trainer, experiment)
        if "emphasis" in switches:
            _round_emphasis(trainer)
        if "spectral" in switches:
            _iterate_in_each_pass(trainer, run)
        if wide:
            _widen_updates(trainer)
        recorded: dict[str, list] = {}
        for step in range(steps):
            trainer.begin(step, step // CYCLE)
            losses = trainer.train_step(batch_of(run, step % CYCLE))
            rates = {f"lr_{part}": updater.lr for part, updater in trainer.updaters().items()}
            for key, value in (losses | rates).items():
                recorded.setdefault(key, []).append(float(value))
        with trainer.inference():
            output = trainer.synthesize_wavs(batch_of(run, CYCLE)).double()
        spaced = torch.from_numpy(np.linspace(0, output.numel() - 1, 32).astype(int))
        return {
            "steps": {key: _numbers(values, 12) for key, values in recorded.items() if "skipped" not in key},
            "networks": {part: _change(before[part], network) for part, network in networks.items()},
            "output": {
                "shape": list(output.shape),
                "std": _numbers([output.std(correction=0)])[0],
                "spaced": _numbers(output.flatten()[spaced], 8),
            },
        }


# ---------------------------------------------------------------------------------------------------------- comparison


@functools.cache
def _golden() -> dict:
    return json.loads(GOLDEN.read_text())


def golden(name: str) -> dict:
    """The recorded run, in this project's units."""
    recorded = copy.deepcopy(_golden()["runs"][name])
    if "pesq" in recorded["steps"]:
        recorded["steps"]["pesq"] = [PESQ_UNIT * value for value in recorded["steps"]["pesq"]]
    return recorded


def published_rates() -> dict:
    """`lr`: recipe -> `generator` or `discriminators` -> rates at `steps`, counted from 1; `epoch`: its steps."""
    return _golden()["learning_rates"]


def relative(ours: float, theirs: float) -> float:
    """Relative difference; 0 for two zeros."""
    return abs(ours - theirs) / max(abs(theirs), 1e-12) if ours != theirs else 0.0


def tolerance(step: int) -> float:
    """Largest relative difference of a loss, a norm or a learning rate at `step`, counted from 1.

    On the machine of the recording all its 12 digits are equal at all steps, but for 4e-9 in the run whose clip factors
    differ from 1 (the fused optimizer takes them in single precision). Elsewhere rounding grows: from 1e-9 at step 1 to
    2e-5 in a loss and 3e-3 in a norm at step 12 where it was tried, so from 1e-15 to 1e-8 at most.
    """
    return 1e-8 * 1.6 ** (step - 1)


def disagreements(ours: dict, theirs: dict) -> list[str]:
    """Where a trace is not the recorded one, earliest first: steps as far as traced, after all twelve the rest too."""
    found = []

    def check(difference: float, limit: float, text: str) -> None:
        if not difference <= limit:  # so that NaN is one
            found.append(f"{text} (relative difference {difference:.1e}, at most {limit:.0e})")

    steps = len(ours["steps"]["generator"])
    for step in range(1, steps + 1):
        for key, values in theirs["steps"].items():
            one, other = ours["steps"][key][step - 1], values[step - 1]
            check(relative(one, other), tolerance(step), f"step {step}: {key} is {one:.9g}, recorded {other:.9g}")
    if ours["output"]["shape"] != theirs["output"]["shape"]:
        found.append(f"output {ours['output']['shape']}, recorded {theirs['output']['shape']}")
    if steps < STEPS or found:
        return found
    for part, recorded in theirs["networks"].items():
        network = ours["networks"][part]
        check(relative(network["moved"], recorded["moved"]), 1e-5, f"{part}: distance that the weights went")
        check(abs(network["along"] - recorded["along"]), 1e-8, f"{part}: change along the weights")
        for layer, change in recorded["layers"].items():
            pairs = zip(network["layers"][layer]["first"], change["first"], strict=True)
            difference = max(abs(one - other) for one, other in pairs) / max(change["rms"], 1e-12)
            check(difference, 1e-3, f"{part}.{layer}: change of a weight")
    pairs = zip(ours["output"]["spaced"], theirs["output"]["spaced"], strict=True)
    check(max(abs(one - other) for one, other in pairs) / theirs["output"]["std"], 1e-4, "output")
    return found


# -------------------------------------------------------------------------------------------------------- command line


def describe_effect(ours: dict, base: dict) -> str:
    """What changed from `base` to `ours`, in relative terms."""
    losses = [
        f"{key} {ours['steps'][key][0] / values[0] - 1:+.2g} / {ours['steps'][key][-1] / values[-1] - 1:+.2g}"
        for key, values in base["steps"].items()
        if not key.startswith("lr_")
    ]
    moved = [
        f"{part} {ours['networks'][part]['moved'] / network['moved']:.3g}"
        for part, network in base["networks"].items()
        if network["moved"] > 1e-9
    ]
    change = np.array(ours["output"]["spaced"]) - np.array(base["output"]["spaced"])
    output = np.sqrt(np.mean(change**2)) / base["output"]["std"]
    steps = f"at step 1 / {STEPS}: {', '.join(losses)}"
    return f"{steps}; weights went x {', '.join(moved)}; output moved by {output:.2g} of its RMS"


def print_effects(name: str, of: Collection[str]) -> None:
    """How far each switch of these, left off, leads from the run with all of them on; and what bfloat16 does."""
    switches = RUNS[name].switches
    base = trace(name, switches)
    for left_off in [switch for switch in switches if switch in of]:
        ours = trace(name, [switch for switch in switches if switch != left_off])
        print(f"{name}, without {left_off}: {describe_effect(ours, base)}", flush=True)
    if "bf16" not in of:
        return
    base, ours = (trace(name, switches, precision=precision) for precision in ("fp32", "bf16"))
    print(f"{name}, bf16 instead of fp32: {describe_effect(ours, base)}", flush=True)


def main() -> int:
    """Exit status 1 where a run is not the recorded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--effects", action="store_true", help="measure each switch instead of comparing")
    everything = [*SWITCHES, "bf16"]
    parser.add_argument("--of", nargs="+", choices=everything, default=everything, help="effects to measure; all")
    args = parser.parse_args()
    if unknown := set(args.runs) - RUNS.keys():
        parser.error(f"no such run: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    failed = False
    for name in args.runs or RUNS:
        if args.effects:
            print_effects(name, args.of)
            continue
        found = disagreements(trace(name, RUNS[name].switches), golden(name))
        failed |= bool(found)
        print(f"{name}: {found[0] if found else 'as recorded'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
