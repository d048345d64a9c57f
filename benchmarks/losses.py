"""Ranking by the PESQ loss, and times of all losses: tables.

    python benchmarks/losses.py [--speech DIR] [--output FILE.md] [--threads 2]

Ranks: clean speech of the embedded corpus at 16 kHz, degraded in the ways and strengths below, compared with ITU's PESQ
(package pesq). Times: two threads, medians; each loss, forward and backward, for two generated clips of 8192 samples.
The PESQ loss is compared, in the same run, with the same loss filtering sample by sample, the direct form of a
recursive filter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pesq
import scipy.signal
import scipy.stats
import torch
from torch import Tensor

from finallyse.audio.io import read
from finallyse.audio.resample import resample
from finallyse.losses import losses_registry
from finallyse.losses.pesq import PESQLoss
from support.speech import SPEECH, clips
from support.timing import conditions, medians, parser_of, publish

RATE = 16000
STRENGTHS = {  # from mild to strong
    "white noise, SNR dB": (30, 20, 10, 0),
    "pink noise, SNR dB": (25, 15, 5),
    "clipping, share of peak": (0.5, 0.2, 0.05),
    "low-pass, Hz": (6000, 3400, 1500),
    "bits": (9, 7, 5),
    "reverberation, s": (0.1, 0.3, 0.8),
}


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--speech", type=Path, default=SPEECH, help="folder of clean speech")
    parser.add_argument("--threads", type=int, default=2, help="1: CPU time is measured, for use on a busy machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = [conditions(), "", *ranking(arguments.speech), "", *timing()]
    publish(lines, arguments.output)


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranking(speech: Path) -> list[str]:
    """Markdown table: mean loss and ITU PESQ of every degradation, followed by the rank correlation."""
    scores = score(degraded_clips(speech))
    lines = ["| degradation | strength | clips | PESQ loss | ITU PESQ, wideband |", "|---|---|---|---|---|"]
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            mine = [(loss, itu) for k, s, loss, itu in scores if (k, s) == (kind, strength)]
            loss, itu = np.mean(mine, axis=0)
            lines.append(f"| {kind} | {strength} | {len(mine)} | {loss:.2f} | {itu:.2f} |")
    correlation = rank_correlation(scores)
    return [
        *lines,
        "",
        f"Rank correlation (Spearman) of -loss with ITU PESQ over {len(scores)} clips: {correlation:.3f}",
    ]


def degraded_clips(
    speech: Path, count: int = 6, seconds: float = 3.0
) -> Iterator[tuple[str, float, np.ndarray, np.ndarray]]:
    """(kind, strength, clean, degraded) at 16 kHz: `count` clips of different files with every degradation."""
    paths = clips(speech)
    for number, path in enumerate(paths[:: max(1, len(paths) // count)][:count]):
        wav, rate = read(path)
        clean = resample(np.asarray(wav).reshape(-1), rate, RATE)[: int(seconds * RATE)].astype(np.float64)
        rng = np.random.default_rng(number)
        for kind, strengths in STRENGTHS.items():
            for strength in strengths:
                yield kind, strength, clean, degrade(clean, kind, strength, rng)


def degrade(clean: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A degraded copy of a clip."""
    if "noise" in kind:
        noise = rng.standard_normal(len(clean))
        if kind.startswith("pink"):
            spectrum = np.fft.rfft(noise)
            noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(clean))
        return clean + noise * np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10 ** (strength / 10))
    if kind.startswith("clipping"):
        limit = strength * np.abs(clean).max()
        return np.clip(clean, -limit, limit)
    if kind.startswith("low-pass"):
        return scipy.signal.sosfiltfilt(scipy.signal.butter(8, strength, fs=RATE, output="sos"), clean)
    if kind == "bits":
        step = 2.0 ** (1 - strength)
        return np.round(clean / step) * step
    tail = rng.standard_normal(int(strength * RATE)) * np.exp(-6.9 * np.arange(int(strength * RATE)) / RATE / strength)
    tail[0] = 0
    response = np.concatenate([[1.0], tail / np.sqrt(np.sum(tail**2)) * 0.7])
    return scipy.signal.fftconvolve(clean, response)[: len(clean)]


def score(clips: Iterator[tuple[str, float, np.ndarray, np.ndarray]]) -> list[tuple[str, float, float, float]]:
    """(kind, strength, PESQ loss, ITU PESQ) of every clip."""
    loss = PESQLoss()
    scores = []
    for kind, strength, clean, degraded in clips:
        wavs = [torch.from_numpy(x.copy()).float()[None, None] for x in (clean, degraded)]
        itu = pesq.pesq(RATE, clean.astype(np.float32), degraded.astype(np.float32), "wb")
        scores.append((kind, strength, loss(*wavs, RATE).item(), itu))
    return scores


def rank_correlation(scores: list[tuple[str, float, float, float]]) -> float:
    """Spearman's rank correlation of -loss with ITU PESQ."""
    return float(scipy.stats.spearmanr([-loss for *_, loss, _ in scores], [itu for *_, itu in scores]).statistic)


# --- times ------------------------------------------------------------------------------------------------------------


class LoopPESQLoss(PESQLoss):
    """The same loss with its recursive filters as loops over samples."""

    def __init__(self):
        super().__init__()
        del self.responses
        b, a = scipy.signal.butter(5, [325, 3250], fs=RATE, btype="band")
        emphasis = ([2.740826, -5.4816519, 2.740826], [1.0, -1.9444777, 0.94597794])
        self.responses = [
            tuple(torch.tensor(np.asarray(c), dtype=torch.float32) for c in f) for f in ((b, a), emphasis)
        ]

    @staticmethod
    def filter(wav: Tensor, response: tuple[Tensor, Tensor]) -> Tensor:
        b, a = response
        order = len(a) - 1
        padded = torch.nn.functional.pad(wav, (order, 0))
        driven = torch.nn.functional.conv1d(padded[:, None], b.flip(0)[None, None])[:, 0]
        feedback = a[1:].flip(0)
        past = wav.new_zeros(len(wav), order)
        outputs = []
        for sample in driven.unbind(1):
            output = sample - (past * feedback).sum(1)
            past = torch.cat([past[:, 1:], output[:, None]], 1)
            outputs.append(output)
        return torch.stack(outputs, 1)


def timing() -> list[str]:
    """Markdown table: milliseconds of each loss, forward and backward."""
    torch.manual_seed(0)
    wav, wav_hat = 0.1 * torch.randn(2, 1, 8192), 0.1 * torch.randn(2, 1, 8192)
    maps = [[torch.randn(2, 128, 4096) for _ in range(4)] for _ in range(5)]
    given = {"wav": wav, "wav_hat": wav_hat, "sample_rate": RATE, "fmaps_real": maps, "fmaps_fake": maps}
    given |= {"logits_real": [m[0] for m in maps], "logits_fake": [m[0] for m in maps]}
    losses: dict[str, Callable] = {"pesq, sample by sample": LoopPESQLoss()}
    for name, loss in losses_registry.items():
        if name not in ("lmos", "utmos"):  # dominated by their networks: benchmarks/models.py, benchmarks/train.py
            losses[name] = loss()
    lines = ["| loss | forward and backward, ms |", "|---|---|"]
    times = {}
    for name, loss in losses.items():
        repeats = 3 if "sample" in name else 9
        times[name] = 1e3 * medians(repeats, loss=lambda loss=loss: forward_backward(loss, given))["loss"]
        lines.append(f"| {name} | {times[name]:.1f} |")
    ratio = times["pesq, sample by sample"] / times["pesq"]
    return [*lines, "", f"pesq is {ratio:.0f} times as fast as sample by sample (goal: 20)"]


def forward_backward(loss: Callable, given: dict) -> None:
    """One loss, with the gradient of the generated audio."""
    inputs = {name: given[name] for name in loss.needs}
    for name in inputs.keys() & {"wav_hat", "logits_fake", "fmaps_fake"}:
        inputs[name] = torch.utils._pytree.tree_map(lambda x: x.clone().requires_grad_(), inputs[name])
    loss(**inputs).backward()


if __name__ == "__main__":
    main()
