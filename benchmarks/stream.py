"""Enhancing while the sound comes in: latency, work, quality and lag by look-ahead and block, on one thread: tables.

    python benchmarks/stream.py [--checkpoint NAME|FILE] [--clips 4] [--seconds 20] [--output FILE.md]

Reach: how much before and after a moment changes the network's output at it, on noisy speech.
Quality: the streamed output against that for the whole recording (dB of the difference), and against the clean speech,
on the example of noisy speech and on embedded speech with the example's noise at 5 dB. Work: CPU time per second.
Lag: `finallyse enhance --live` is fed through a pipe at the pace of a microphone, and the time from a moment's last
sample going in to its enhanced one coming out is taken. A free core is needed, or priority (`chrt -r 5 python ...`);
about 5 minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the libraries that read it

import argparse
import subprocess
import sys
import threading
import time

import numpy as np
import torch

from finallyse.audio.io import read
from finallyse.audio.resample import resample
from finallyse.inference.enhancer import Enhancer, tune_process
from finallyse.inference.stream import Stream, reach
from finallyse.metrics import Utterance, metrics_registry
from finallyse.pretrained import checkpoint_file
from support import ROOT
from support.speech import clips
from support.timing import conditions, parser_of, publish

RATE = 16000
EXAMPLE = ROOT / "resources" / "demo" / "example"
SNR_DB = 5.0
METRICS = ("wb_pesq", "si_sdr")
LOOKAHEADS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, None)  # s; None: what the network says it needs
BLOCKS = (0.02, 0.06, 0.12, 0.24)
FED_S = 0.02  # how much goes into the pipe at a time


def main() -> None:
    """Measure, and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--checkpoint", help="name or file of the network (default: small)")
    parser.add_argument("--clips", type=int, default=4, help="noisy recordings")
    parser.add_argument("--seconds", type=float, default=20, help="length of the sound for the lag, in s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tune_process()
    enhancer = Enhancer.from_checkpoint(checkpoint_file(arguments.checkpoint), device="cpu")
    pairs = recordings(arguments.clips)
    lines = [conditions(), "", *reach_table(enhancer, pairs[0][0]), "", *quality_table(enhancer, pairs), ""]
    lines += [*block_table(enhancer, pairs[:1]), "", *lag_table(arguments, pairs[0][0])]
    publish(lines, arguments.output)


def recordings(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(noisy, clean) at 16 kHz: the example, and embedded speech with the example's noise."""
    clean, noisy = (read(EXAMPLE / f"{name}.flac")[0] for name in ("clean", "noisy"))
    noise, pairs = noisy - clean, [(noisy, clean)]
    for path in clips()[:: max(1, len(clips()) // max(1, count - 1))][: count - 1]:
        wav = resample(*read(path), RATE)
        added = np.resize(noise, len(wav))
        added *= np.sqrt(np.mean(wav**2) / np.mean(added**2)) * 10 ** (-SNR_DB / 20)
        pairs.append((wav + added, wav))
    return pairs


def streamed(enhancer: Enhancer, wav: np.ndarray, **options: float) -> tuple[np.ndarray, float, Stream]:
    """The output, the seconds of CPU time that it took, and the stream."""
    stream = Stream(enhancer, **options)
    started = time.process_time()
    made = [stream.push(wav[start : start + 320]) for start in range(0, len(wav), 320)]
    made.append(stream.flush())
    return np.concatenate(made), time.process_time() - started, stream


def difference_db(wav: np.ndarray, reference: np.ndarray) -> float:
    """Power of the difference relative to the reference's."""
    return float(10 * np.log10(np.mean((wav - reference) ** 2) / np.mean(reference**2) + 1e-30))


def reach_table(enhancer: Enhancer, wav: np.ndarray) -> list[str]:
    """How far the network reaches by level, up to a third of 16 s."""
    wav = np.resize(wav, 16 * RATE)
    lines = ["| changes the output by more than | what is cut off before, s | after, s |", "|---|---|---|"]
    for level in (-20, -40, -60, -80):
        past, future = reach(enhancer, wav, level)
        lines.append(f"| {level} dB | {past:.2f} | {future:.2f} |")
    return lines


def quality_table(enhancer: Enhancer, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Latency, work and quality by look-ahead."""
    lines = [
        f"| look-ahead, s | step, s | latency, s | real-time factor | from the whole, dB | {' | '.join(METRICS)} |",
        f"|---|---|---|---|---|{'---|' * len(METRICS)}",
    ]
    offline = [enhancer.enhance(noisy, RATE) for noisy, _ in pairs]
    seconds = sum(len(noisy) for noisy, _ in pairs) / RATE

    def scores(wavs: list[np.ndarray]) -> str:
        means = []
        for name in METRICS:
            metric = metrics_registry[name]()
            scored = [
                metric.score(Utterance(wav, RATE, clean, RATE))[name]
                for wav, (_, clean) in zip(wavs, pairs, strict=True)
            ]
            means.append(f"{np.mean(scored):.2f}")
        return " | ".join(means)

    for lookahead in LOOKAHEADS:
        made = [streamed(enhancer, noisy, lookahead=lookahead) for noisy, _ in pairs]
        stream, work = made[0][2], sum(work for _, work, _ in made)
        difference = np.mean([difference_db(wav, whole) for (wav, _, _), whole in zip(made, offline, strict=True)])
        times = f"{stream.lookahead:g} | {stream.hop:g} | {stream.latency:.2f} | {work / seconds:.2f}"
        lines.append(f"| {times} | {difference:.1f} | {scores([wav for wav, _, _ in made])} |")
    lines.append(f"| the whole recording | | | | | {scores(offline)} |")
    lines.append(f"| the input | | | | | {scores([noisy for noisy, _ in pairs])} |")
    return lines


def block_table(enhancer: Enhancer, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Latency and work by block, with the look-ahead of --live and that of the class."""
    lines = ["| block, s | look-ahead, s | step, s | latency, s | real-time factor |", "|---|---|---|---|---|"]
    wav = pairs[0][0]
    for lookahead in (0.04, None):
        for block in BLOCKS:
            _, work, stream = streamed(enhancer, wav, lookahead=lookahead, block=block)
            factor = work / (len(wav) / RATE)
            lines.append(f"| {block:g} | {stream.lookahead:g} | {stream.hop:g} | {stream.latency:.2f} | {factor:.2f} |")
    return lines


def lag_table(arguments: argparse.Namespace, wav: np.ndarray) -> list[str]:
    """Percentiles of the lag of a process that is fed at the pace of a microphone."""
    lines = [
        "| finallyse enhance --live | latency, ms | lag, ms: median | 95 % | 99 % | most |",
        "|---|---|---|---|---|---|",
    ]
    for words in ([], ["--lookahead", "0.02"], ["--lookahead", "0.08"], ["--lookahead", "0.136"]):
        lag, latency = measure_lag(arguments, np.resize(wav, round(arguments.seconds * RATE)), words)
        found = " | ".join(f"{value:.0f}" for value in np.percentile(1e3 * lag, [50, 95, 99, 100]))
        lines.append(f"| {' '.join(words) or 'as it is'} | {latency} | {found} |")
    return lines


def measure_lag(arguments: argparse.Namespace, wav: np.ndarray, words: list[str]) -> tuple[np.ndarray, str]:
    """Lags in s of the first sample of each block of `FED_S`, and the latency in ms as the command tells it."""
    command = [sys.executable, "-m", "finallyse.cli", "enhance", "--live", "--threads", "1", "--device", "cpu", *words]
    if arguments.checkpoint:
        command += ["--checkpoint", arguments.checkpoint]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    told = process.stderr.readline().decode()  # the network is loaded
    size = 2 * round(FED_S * RATE)
    content = np.rint(np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()
    went, came = [], []

    def feed() -> None:
        begun = time.perf_counter()
        for index, start in enumerate(range(0, len(content), size)):
            time.sleep(max(0.0, begun + (index + 1) * FED_S - time.perf_counter()))
            went.append(time.perf_counter())
            process.stdin.write(content[start : start + size])
            process.stdin.flush()
        process.stdin.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    done = 0
    while block := os.read(process.stdout.fileno(), 1 << 16):
        done += len(block)
        came += [time.perf_counter()] * (done // size - len(came))
    feeder.join()
    assert process.wait() == 0 and done == len(content), process.stderr.read()
    for pipe in (process.stdout, process.stderr):
        pipe.close()
    # The last ones come out at the end of the input, before their time.
    count = len(came) - round(2 / FED_S)
    # A block's first sample was heard FED_S before the block went in.
    return np.array(came[:count]) - np.array(went[:count]) + FED_S, told.partition("latency ")[2].split()[0]


if __name__ == "__main__":
    main()
