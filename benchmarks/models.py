"""Speed of the networks compared with straightforward implementations: tables.

    python benchmarks/models.py [--output FILE.md] [--repeats 7] [--threads 2]

Two threads; the variants run in turn in one process; medians of elapsed times. Weights are random, sizes are the
published
ones: folded and unfolded inference, the SpectralUNet's padding to a multiple and the published one to a power of two
(with the change of the output), mel bases built once and at every call, WavLM and transformers' implementation.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import finallyse.audio.torchaudio_shim  # noqa: F401  before transformers, which imports torchaudio
from finallyse.audio import mel as mel_module
from finallyse.audio import stft as stft_module
from finallyse.audio.mel import LogMel
from finallyse.models import models_registry
from finallyse.models.norms import fold, set_weight
from finallyse.models.wavlm import WavLM
from support.networks import WAVLM_LARGE, write_wavlm
from support.speech import read_speech
from support.timing import conditions, medians, parser_of, publish

RATE = 16000


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="runs of each, of which the median counts")
    parser.add_argument("--threads", type=int, default=2, help="1: CPU time is measured, for use on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [conditions()]
    with torch.inference_mode():
        for table in (padding, mel_bases, wavlm, folding):
            lines += ["", *table(arguments.repeats)]
    publish(lines, arguments.output)


def build(name: str, **args) -> nn.Module:
    """A network of published size in eval mode with weights from N(0, 0.85 / sqrt(fan in)), large enough to matter."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network = models_registry[name](**args).eval()
        for layer in network.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)) and hasattr(layer, "parametrizations"):
                shape = layer.weight.shape
                transposed = isinstance(layer, nn.ConvTranspose1d)
                fan_in = shape[0] * shape[2] // layer.stride[0] if transposed else math.prod(shape[1:])
                set_weight(layer, 0.85 / fan_in**0.5 * torch.randn(shape))
    return network


def inputs(network: nn.Module, samples: int) -> tuple:
    """Arguments of a network for a clip."""
    wav = 0.1 * torch.randn(1, 1, samples)
    return {
        "mel": (torch.randn(1, 80, samples // 256) - 5,),
        "wav": (wav,),
        "wav+ssl": (wav, torch.randn(1, 1024, samples // 320)),
    }[network.input_kind]


def folding(repeats: int) -> list[str]:
    """Folded and unfolded inference."""
    lines = ["| network, 2 s clip | unfolded, s | folded, s | layers folded | folded is |", "|---|---|---|---|---|"]
    variants = [(name, {}) for name, network in models_registry.items() if hasattr(network, "input_kind")]
    variants.append(("finally_gen", {"use_upsamplewaveunet": True}))
    for name, args in variants:
        plain, folded = build(name, **args), build(name, **args)
        count = fold(folded)
        x = inputs(plain, 2 * RATE)
        result = medians(repeats, plain=lambda: plain(*x), folded=lambda: folded(*x))  # noqa: B023
        label = f"{name} at 48 kHz" if args else name
        ratio = result["plain"] / result["folded"]
        lines.append(f"| {label} | {result['plain']:.3f} | {result['folded']:.3f} | {count} | {ratio:.2f} x as fast |")
    return lines


def padding(repeats: int) -> list[str]:
    """The SpectralUNet's two paddings: time for 5 s, and difference of the outputs on 5 s of speech."""
    lines = [
        "| SpectralUNet of, 5 s clip | power_of_two, s | multiple, s | multiple is (goal: 1.3) | output differs by |",
        "|---|---|---|---|---|",
    ]
    wav = torch.from_numpy(read_speech(RATE, 5))[None, None]
    for name in ("a2a_hifi++_gen", "finally_gen"):
        multiple, published = build(name), build(name, time_padding="power_of_two")
        fold(multiple)
        fold(published)
        mel = LogMel()(wav)
        result = medians(
            repeats,
            published=lambda: published.spectralunet(mel),  # noqa: B023
            multiple=lambda: multiple.spectralunet(mel),  # noqa: B023
        )
        difference = multiple.spectralunet(mel) - published.spectralunet(mel)
        error = (difference.square().mean(1) / published.spectralunet(mel).square().mean()).sqrt()[0]
        near = error[-16:].square().mean().sqrt()
        touched = int((error > 1e-3).nonzero().min()) if (error > 1e-3).any() else len(error)
        ratio = result["published"] / result["multiple"]
        lines.append(
            f"| {name} | {result['published']:.3f} | {result['multiple']:.3f} | {ratio:.2f} x as fast | "
            f"{100 * near:.1f} % RMS in the last 16 frames, more than 0.1 % in the last {len(error) - touched} "
            f"of {len(error)} |"
        )
    return lines


def mel_bases(repeats: int) -> list[str]:
    """Mel bases cached and built at every call."""
    mel, wav = LogMel(), 0.1 * torch.randn(1, 8192)

    def rebuilt():
        mel_module._filterbanks.clear()
        stft_module._windows.clear()
        mel(wav)

    result = medians(10 * repeats, rebuilt=rebuilt, kept=lambda: mel(wav))
    ratio = result["rebuilt"] / result["kept"]
    return [
        "| log-mel of 8192 samples | ms |",
        "|---|---|",
        f"| bases built at every call | {1e3 * result['rebuilt']:.2f} |",
        f"| bases kept | {1e3 * result['kept']:.2f}, {ratio:.1f} x as fast |",
    ]


def wavlm(repeats: int) -> list[str]:
    """WavLM-large, random weights, last hidden state of two contexts of 65 536 samples."""
    with torch.inference_mode(False), tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
        theirs = write_wavlm(Path(folder), **WAVLM_LARGE)
        ours = WavLM(folder)
    wav = torch.randn(2, 65536)
    normed = (wav - wav.mean(1, keepdim=True)) / wav.std(1, keepdim=True, correction=0)
    difference = theirs(normed).last_hidden_state.transpose(1, 2) - ours.last_hidden_state(wav)

    def low(function: Callable[[], object]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            function()

    result = medians(
        repeats,
        theirs=lambda: theirs(normed),
        ours=lambda: ours.last_hidden_state(wav),
        ours_low=lambda: low(lambda: ours.last_hidden_state(wav)),
    )
    ratio = result["theirs"] / result["ours"]
    return [
        "| WavLM-large, 2 x 65 536 samples | transformers, s | here, s | here is |",
        "|---|---|---|---|",
        f"| float32 | {result['theirs']:.2f} | {result['ours']:.2f} | {ratio:.2f} x as fast |",
        f"| bfloat16 autocast | not run: 48 s on a CPU without AMX | {result['ours_low']:.2f} | |",
        "",
        f"Largest difference between the two in float32: {difference.abs().max():.1e}",
    ]


if __name__ == "__main__":
    main()
