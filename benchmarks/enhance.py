"""Speed of `finallyse enhance` with a full-size network, and its memory by length of the recording: tables.

    python benchmarks/enhance.py [--seconds 30] [--minutes 60] [--seams] [--checkpoint CKPT] [--output FILE.md]

Speed: FINALLY at 16 kHz with the published sizes and random weights, two threads. WavLM is left out: both sides use
precomputed features. The baseline is one forward pass of the unfolded network over the whole signal, in float32.
Memory: largest resident size of the command on a recording of one minute and of `--minutes`, with a HiFi++ of the
demo's size. Two free cores are needed; about 10 minutes.
Seams (--seams): difference between the output in windows and in one piece on two minutes of speech, for FINALLY at 16
kHz and WavLM-large with random weights, or for a given checkpoint.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import yaml
from torch import Tensor, nn

from finallyse.hardware import processor
from finallyse.inference import renderer as renderer_module
from finallyse.inference.enhancer import Enhancer, tune_process
from finallyse.inference.renderer import WAVLM_WINDOW_S
from finallyse.models import models_registry
from finallyse.models.checkpoint import save_checkpoint
from support import ROOT
from support.networks import WAVLM_LARGE, write_wavlm
from support.speech import read_speech
from support.timing import parser_of, publish

RATE = 16000


def main() -> None:
    """Measure, each in a separate process, and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="length of the signal for measuring speed, in s")
    parser.add_argument("--minutes", type=int, default=60, help="length of the long recording")
    parser.add_argument("--seams", action="store_true", help="also measure the effect of windows; takes minutes more")
    parser.add_argument("--checkpoint", type=Path, help="for --seams: instead of a network with random weights")
    parser.add_argument("--wavlm", type=Path, help="folder of WavLM for that checkpoint")
    parser.add_argument("--measure", choices=("plain", "fp32", "bf16"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(speed(arguments.measure, arguments.seconds))
        return
    lines = [processor(), "", *speed_table(arguments.seconds), "", *memory_table(arguments.minutes)]
    if arguments.seams:
        with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
            checkpoint = arguments.checkpoint or write_random_checkpoint(Path(folder))
            lines += ["", *seam_table(checkpoint, arguments.wavlm)]
    publish(lines, arguments.output)


# --- speed ------------------------------------------------------------------------------------------------------------


def speed_table(seconds: float) -> list[str]:
    """Real-time factors of the plain forward pass and of the enhancer."""
    factor, peak = {}, {}
    for kind in ("plain", "fp32", "bf16"):
        command = [sys.executable, __file__, "--measure", kind, "--seconds", str(seconds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        factor[kind], peak[kind] = map(float, done.stdout.split())
    lines = [
        f"| finally_gen, 16 kHz, {seconds:g} s, 2 threads | s per s of audio | times plain | memory, GB | goal |",
        "|---|---|---|---|---|",
    ]
    names = {"plain": "plain forward pass, fp32", "fp32": "enhancer, fp32", "bf16": "enhancer, bf16"}
    for kind, name in names.items():
        ratio, goal = factor["plain"] / factor[kind], "" if kind == "plain" else "1.3"
        lines.append(f"| {name} | {factor[kind]:.3f} | {ratio:.2f} | {peak[kind]:.1f} | {goal} |")
    return lines


def speed(kind: str, seconds: float) -> str:
    """`factor peak`: seconds of work per second of audio, the best of two, and the largest resident size in GB."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    generator = models_registry["finally_gen"]().eval()
    wav = read_speech(RATE, seconds)
    if kind == "plain":
        features = Features(generator.ssl_dim).last_hidden_state(torch.from_numpy(wav)[None])

        def work() -> None:
            with torch.inference_mode():
                generator(torch.from_numpy(wav)[None, None], features)
    else:
        tune_process()
        enhancer = Enhancer(generator, Features(generator.ssl_dim), device="cpu", precision=kind)

        def work() -> None:
            enhancer.enhance(wav, RATE, RATE)

    times = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return f"{min(times) / seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}"


class Features(nn.Module):
    """Replaces WavLM: features of the same shape, at no cost."""

    hop, receptive_field = 320, 400

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def last_hidden_state(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> [B, dim, frames]."""
        frames = (wav.shape[-1] - self.receptive_field) // self.hop + 1
        return torch.randn(len(wav), self.dim, frames, generator=torch.Generator().manual_seed(0))


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_table(minutes: int) -> list[str]:
    """Largest resident sizes of the command on a short and a long recording."""
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    args = demo["networks"]["hifipp_denoise"]["override"]["generator"]["args"]
    torch.manual_seed(0)
    state = models_registry["a2a_hifi++_gen"](**args).state_dict()
    config = {"generator": {"name": "a2a_hifi++_gen", "args": args}}
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
        checkpoint = Path(folder) / "small.ckpt"
        save_checkpoint(checkpoint, network="small", config=config, step=0, generator=state, discriminators={})
        rows = {length: run_command(Path(folder), checkpoint, length) for length in (1, minutes)}
    lines = ["| finallyse enhance, HiFi++ of the demo | memory, MB | real-time factor | goal |", "|---|---|---|---|"]
    for length, (memory, factor) in rows.items():
        lines.append(f"| {length} min | {memory:.0f} | {factor:.4f} | |")
    return [*lines, f"| ratio of memory | {rows[minutes][0] / rows[1][0]:.2f} | | at most 1.3 |"]


def run_command(folder: Path, checkpoint: Path, minutes: int) -> tuple[float, float]:
    """(MB, seconds per second) of `finallyse enhance` on a recording of `minutes`."""
    source = folder / f"{minutes}.wav"
    minute = read_speech(RATE, 60)
    with sf.SoundFile(source, "w", RATE, 1) as file:
        for _ in range(minutes):
            file.write(minute)
    code = (
        "import resource, sys; from finallyse.cli import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    arguments = ["enhance", source, folder / f"out{minutes}.wav", "--checkpoint", checkpoint, "--threads", 2]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.split()[-1]) / 1e3, (time.perf_counter() - started) / (60 * minutes)


# --- seams ------------------------------------------------------------------------------------------------------------


def write_random_checkpoint(folder: Path) -> Path:
    """FINALLY at 16 kHz with WavLM-large, with the published sizes and random weights."""
    write_wavlm(folder / "wavlm", **WAVLM_LARGE)
    torch.manual_seed(0)
    save_checkpoint(
        folder / "finally_gen.ckpt",
        network="finally_gen",
        config={"generator": {"name": "finally_gen"}, "wavlm": str(folder / "wavlm")},
        step=0,
        generator=models_registry["finally_gen"]().state_dict(),
        discriminators={},
    )
    return folder / "finally_gen.ckpt"


def seam_table(checkpoint: Path, wavlm: Path | None) -> list[str]:
    """Levels of the difference between the output in windows and in one piece: overall, and in the worst 0.1 s."""
    tune_process()
    torch.set_num_threads(2)
    wav = read_speech(RATE, 120)
    outputs = []
    for whole in (False, True):
        renderer_module.WAVLM_WINDOW_S = 1e6 if whole else WAVLM_WINDOW_S
        options = {"window_s": 1e6} if whole else {}
        enhancer = Enhancer.from_checkpoint(checkpoint, wavlm=wavlm, device="cpu", **options)
        outputs.append(enhancer.enhance(wav, RATE, enhancer.output_rate))
    power = np.square(outputs[1]).mean()
    error = np.square(outputs[0] - outputs[1]).reshape(1200, -1).mean(1)
    return [
        f"| {checkpoint.name}: in windows, against one piece of 120 s | dB |",
        "|---|---|",
        f"| difference | {10 * np.log10(error.mean() / power + 1e-30):.1f} |",
        f"| worst tenth of a second | {10 * np.log10(error.max() / power + 1e-30):.1f} |",
    ]


if __name__ == "__main__":
    main()
