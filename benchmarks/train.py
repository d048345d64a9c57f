"""Time of a training step for the full-size networks of the recipes, compared with a straightforward step.

    python benchmarks/train.py                                             CPU, batch 2, 2 threads, medians of 5
    python benchmarks/train.py --device cuda --batch 32 --compile          GPU: fp32, bf16, bf16 + compile, peak memory

"Straightforward" has the same networks, losses and mathematics in the most direct form: real and generated clips pass
the discriminators one after the other, the generator's update computes unused gradients of the discriminators, real
feature maps keep their graph, WavLM is that of transformers, AdamW has default settings, losses are read at every step,
and glibc returns memory to the system as by default. It runs before ours, in the same process on the same batch.

The second last table divides the time of our step, by torch.profiler, into forward and backward passes of WavLM (as
condition; within losses it counts as losses), generator, discriminators, losses, and the optimizer; on a GPU, the time
of their kernels, with "other" the rest of the step. "data" is the time of loading the batch in the training process;
loader processes do it in parallel.

The last table shows what bounds a step: its floating-point operations (two per multiply-add of its convolutions and
matrix products, forward and backward, counted by PyTorch), the operations per second, and their share of the rate at
which the device multiplies large matrices of the same type.

The data is the embedded speech. WavLM is WavLM-large with random weights. The UTMOS loss is left out, since its weights
cannot be part of this repository. With --clock cpu, times, except the profiler's, are CPU seconds divided by the number
of threads, for use on a busy machine.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from finallyse.audio.torchaudio_shim import torchaudio  # noqa: F401  transformers imports it
from finallyse.config import load_experiment
from finallyse.datasets import datasets_registry
from finallyse.hardware import choose_device, processor
from finallyse.options import Experiment
from finallyse.training import trainers_registry
from finallyse.training.batches import Batch, collate
from finallyse.training.distributed import Group
from finallyse.training.engine import prepare_pytorch
from finallyse.training.trainers import BaseTrainer
from support import ROOT
from support.networks import WAVLM_LARGE, write_wavlm
from support.timing import parser_of, publish
from support.training import prepare_resources

RECIPES = {
    "hifigan": "hifigan",
    "hifi++": "hifipp_denoise",
    "stage 1": "finally_stage1",
    "stage 2": "finally_stage2",
    "stage 3": "finally_stage3",
}
LINEAR = {  # oneDNN's linear layer, which PyTorch's counter does not know
    torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, out_shape, **__: 2 * math.prod(x) * weight[0]
}
KINDS = ("wavlm", "generator", "discriminator", "losses", "optimizer")  # the trainers' record_function ranges


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=2, help="items per step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="steps for the median, after a warm-up step")
    parser.add_argument("--compile", action="store_true", help="also bf16 with torch.compile")
    parser.add_argument("--no-baseline", action="store_true", help="leave out the straightforward form")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    clock = Clock(device, arguments.clock, arguments.threads)

    forms = {"straightforward": None} if not arguments.no_baseline else {}
    forms |= {"fp32": ("fp32", False), "bf16": ("bf16", False)}
    if arguments.compile:
        forms["bf16 + compile"] = ("bf16", True)
    times, memory, shares, bounds = [], [], [], []
    peaks = {precision: product_rate(device, precision, clock) for precision in ("fp32", "bf16")}
    with tempfile.TemporaryDirectory() as folder:
        resources = prepare_resources(Path(folder))
        if any(name.startswith("stage") for name in arguments.recipes):
            write_wavlm(resources / "weights" / "wavlm-large", **WAVLM_LARGE)
        for name in arguments.recipes:
            measured = {}
            for form, options in forms.items():
                measured[form] = measure(RECIPES[name], options, resources, device, clock, arguments)
                print(f"{name}, {form}: {measured[form][0]:.3f} s", file=sys.stderr, flush=True)
            first = next(iter(measured.values()))[0]
            cells = [f"{t:.3f}" + (f" ({first / t:.2f}x)" if i else "") for i, (t, *_) in enumerate(measured.values())]
            times.append(f"| {name} | {' | '.join(cells)} |")
            memory.append(f"| {name} | {' | '.join(f'{peak:.1f}' for _, peak, *_ in measured.values())} |")
            for form, (median, _, seconds, data, work) in measured.items():
                if work:
                    rate, peak = work / median, peaks[form.split()[0]]
                    bounds.append(f"| {name}, {form} | {work / 1e12:.2f} | {rate / 1e9:.0f} | {rate / peak:.0%} |")
                if seconds:
                    cells = [f"{seconds.get(kind, 0.0):.3f}" for kind in (*KINDS, "other")]
                    shares.append(f"| {name}, {form} | {' | '.join(cells)} | {data:.3f} |")
    header = [f"| {' | '.join(['', *forms])} |", f"|---|{'---|' * len(forms)}"]
    unit = "seconds" if arguments.clock == "wall" else f"CPU seconds / {arguments.threads}"
    lines = [
        describe(device, arguments),
        "",
        f"Step, {unit} (how many times as fast as the first column):",
        "",
        *header,
        *times,
        "",
    ]
    if device.type == "cuda":
        lines += ["Peak memory, GB:", "", *header, *memory, ""]
    lines += ["Where it goes, seconds (measured apart, in one step):", ""]
    lines += [f"| | {' | '.join(KINDS)} | other | data |", f"|---|{'---|' * (len(KINDS) + 2)}", *shares]
    lines += [
        "",
        "What bounds it; matrix products: " + ", ".join(f"{r / 1e9:.0f} GFLOP/s in {p}" for p, r in peaks.items()),
    ]
    lines += ["", "| | TFLOP a step | GFLOP/s | of matrix products' |", "|---|---|---|---|", *bounds]
    publish(lines, arguments.output)


class Clock:
    """Reads wall-clock or CPU seconds, after the device has finished."""

    def __init__(self, device: torch.device, kind: str, threads: int):
        self.device, self.kind, self.threads = device, kind, threads

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if self.kind == "wall" else time.process_time() / self.threads


def describe(device: torch.device, arguments: argparse.Namespace) -> str:
    """The machine and the command."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
        flags = next((line for line in lines if line.startswith("flags")), "")
        features = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()]
        machine = f"{processor()} ({' '.join(features) or 'no AVX-512'})"
    load = f", load average {os.getloadavg()[0]:.1f}"
    return f"{machine}, PyTorch {torch.__version__}, batch {arguments.batch}, {arguments.threads} threads{load}"


def measure(
    network: str,
    options: tuple[str, bool] | None,
    resources: Path,
    device: torch.device,
    clock: Clock,
    arguments: argparse.Namespace,
) -> tuple[float, float, dict[str, float], float, int]:
    """Median seconds per step, peak memory in GB, seconds by kind of work, seconds to load a batch, operations."""
    precision, compiled = options or ("fp32", False)
    experiment = load_experiment(
        [
            f"exp.config_path={ROOT}/config/experiments/{network}.yaml",
            f"exp.resources={resources}",
            "generator.init_from=null",
            "data.sub_batch_size=null",
            "train.balance_step=null",
            f"train.precision={precision}",
            f"train.compile={str(compiled).lower()}",
            *(["~losses.generator.utmos"] if network == "finally_stage3" else []),
        ]
    )
    prepare_pytorch(experiment, device)
    torch.set_num_threads(arguments.threads)
    dataset = datasets_registry[experiment.data.train.name](**experiment.data.train.args)
    began = time.perf_counter()
    batch = collate([dataset[(0, i % len(dataset))] for i in range(arguments.batch)])
    data = time.perf_counter() - began
    batch = batch.to(device)
    trainer = trainers_registry[experiment.trainer](experiment, Group(device), set(dataset[(0, 0)]))
    if options is None:
        free_memory_by_default()
        step = Straightforward(trainer, resources / "weights" / "wavlm-large", experiment).step
    else:
        step = lambda given: trainer.train_step(given)  # noqa: E731
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = [timed(step, trainer, batch, clock) for _ in range(arguments.repeats + (4 if compiled else 1))]
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    shares, operations = {}, 0
    if options is not None and not compiled:  # hooks would change a compiled network
        with FlopCounterMode(display=False, custom_mapping=LINEAR) as counter:
            timed(step, trainer, batch, clock)
        operations = counter.get_total_flops()
        shares = seconds_by_kind(lambda: timed(step, trainer, batch, clock), device)
    return statistics.median(seconds[-arguments.repeats :]), peak, shares, data, operations


def seconds_by_kind(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of a step in each of KINDS, forward and backward, and in "other".

    A backward function counts as the forward operation of the same sequence number.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    step()
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        step()
        total = time.perf_counter() - began
    kinds: dict[int, str | None] = {}  # sequence number -> kind of its last forward operation
    seconds: dict[str | None, float] = defaultdict(float)
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    for event in sorted(events, key=lambda event: event.time_range.start):
        outermost = _ancestors(event)[-1]
        if outermost.name.startswith("autograd::engine::evaluate_function"):
            kind = kinds.get(outermost.sequence_nr)
        else:
            kind = next((each.name for each in _ancestors(event) if each.name in KINDS), None)
            kinds[event.sequence_nr] = kind
        seconds[kind] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    shares = {kind: seconds[kind] for kind in KINDS}
    return shares | {"other": total - sum(shares.values())}


def _ancestors(event: FunctionEvent) -> list[FunctionEvent]:
    """The event, and those that it is part of, from the inside out."""
    found = [event]
    while found[-1].cpu_parent is not None:
        found.append(found[-1].cpu_parent)
    return found


def product_rate(device: torch.device, precision: str, clock: Clock) -> float:
    """Operations per second of a product of two 4096 x 4096 matrices, by oneDNN on a CPU; the best of five."""
    size = 4096
    matrix = torch.randn(size, size, device=device, dtype=torch.float32 if precision == "fp32" else torch.bfloat16)
    product = torch.matmul
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        product = functools.partial(torch.ops.mkldnn._linear_pointwise, B=None, attr="none", scalars=[], algorithm="")
    seconds = []
    for _ in range(5):
        began = clock()
        product(matrix, matrix)
        seconds.append(clock() - began)
    return 2 * size**3 / min(seconds)


def free_memory_by_default() -> None:
    """Undo `keep_freed_memory`: the thresholds at which glibc arrives after large blocks were freed."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 << 20)
        mallopt(-1, 64 << 20)


def timed(step: Callable[[Batch], object], trainer: BaseTrainer, batch: Batch, clock: Clock) -> float:
    """Seconds of one step."""
    (fresh,) = batch.split(None)
    began = clock()
    trainer.begin(0, 0)
    step(fresh)
    return clock() - began


class PlainWavLM(nn.Module):
    """transformers' WavLM with the interface that training uses."""

    normalize, hop, receptive_field = True, 320, 400

    def __init__(self, folder: Path):
        from transformers import WavLMModel

        super().__init__()
        self.model = WavLMModel.from_pretrained(folder, local_files_only=True).eval()

    def normed(self, wav: Tensor) -> Tensor:
        return (wav - wav.mean(-1, keepdim=True)) / (wav.var(-1, keepdim=True, correction=0) + 1e-7).sqrt()

    def last_hidden_state(self, wav: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(self.normed(wav)).last_hidden_state.transpose(1, 2)

    def conv_features(self, wav: Tensor, layer_norm: bool = True) -> Tensor:
        features = self.model.feature_extractor(wav)
        if layer_norm:
            features = self.model.feature_projection.layer_norm(features.transpose(1, 2)).transpose(1, 2)
        return features


class Straightforward:
    """The direct form of a step, with the networks and losses of a trainer."""

    def __init__(self, trainer: BaseTrainer, wavlm: Path, experiment: Experiment):
        self.trainer = trainer
        if trainer.wavlm is not None:
            trainer.wavlm = PlainWavLM(wavlm).to(trainer.device)
        self.updates = experiment.discriminators.updates_per_step
        self.generator_optimizer = torch.optim.AdamW(trainer.generator.parameters(), lr=2e-4)
        self.discriminators = list(trainer.discriminators.values())
        for layer in trainer.discriminators.modules():
            vars(layer).pop("forward", None)  # PyTorch's convolutions instead of polyphase ones
        if self.discriminators:
            self.discriminator_optimizer = torch.optim.AdamW(trainer.discriminators.parameters(), lr=2e-4)

    def step(self, batch: Batch) -> dict[str, float]:
        wav, losses = batch["wav"], {}
        wav_hat = self.trainer.synthesize_wavs(batch)
        if self.discriminators:
            for _ in range(self.updates):
                self.discriminator_optimizer.zero_grad()
                real, fake = self.discriminate(wav), self.discriminate(wav_hat.detach())
                loss, *_ = self.trainer.discriminator_criteria({"logits_real": real[0], "logits_fake": fake[0]})
                loss.backward()
                self.discriminator_optimizer.step()
                losses["discriminator"] = loss.item()
        self.generator_optimizer.zero_grad()
        inputs = {"wav": wav, "wav_hat": wav_hat, "sample_rate": self.trainer.output_rate, "wavlm": self.trainer.wavlm}
        if "mel_for_loss" in batch:
            inputs["mel_for_loss"] = batch["mel_for_loss"]
        if self.discriminators:
            inputs["logits_real"], inputs["fmaps_real"] = self.discriminate(wav)
            inputs["logits_fake"], inputs["fmaps_fake"] = self.discriminate(wav_hat)
        loss, values, _ = self.trainer.generator_criteria(inputs)
        loss.backward()
        self.generator_optimizer.step()
        return losses | dict(enumerate(values.tolist()))

    def discriminate(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        outputs = [discriminator(wav) for discriminator in self.discriminators]
        return [logit for logits, _ in outputs for logit in logits], [one for _, maps in outputs for one in maps]


if __name__ == "__main__":
    main()
