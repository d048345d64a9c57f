"""Speed of scripts/evaluate.py on two cores compared with one: a table.

    python benchmarks/evaluate.py [--utterances 824] [--speech DIR] [--output FILE.md]

Utterances of 3 s cut from the embedded speech, with noise, scored by wb_pesq, stoi, si_sdr and dnsmos; elapsed time of
the whole command. Two free cores are needed; about 15 minutes.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf

from finallyse.hardware import processor
from support import ROOT
from support.speech import SPEECH, read_speech
from support.timing import parser_of, publish

RATE, SECONDS = 16000, 3
METRICS = ["wb_pesq", "stoi", "si_sdr", "dnsmos"]


def main() -> None:
    """Measure and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--utterances", type=int, default=824)
    parser.add_argument("--speech", type=Path, default=SPEECH, help="folder of speech")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
        make_utterances(arguments.speech, Path(folder), arguments.utterances)
        seconds = {jobs: evaluate(Path(folder), jobs) for jobs in (1, 2)}
    lines = [
        processor(),
        "",
        f"| {arguments.utterances} utterances of {SECONDS} s: {', '.join(METRICS)} | value | goal |",
        "|---|---|---|",
        f"| one process, s | {seconds[1]:.1f} | |",
        f"| two processes, s | {seconds[2]:.1f} | |",
        f"| ratio | {seconds[1] / seconds[2]:.2f} | 1.7 |",
    ]
    publish(lines, arguments.output)


def make_utterances(speech: Path, folder: Path, count: int) -> None:
    """Write reference/ and enhanced/ (15 dB of noise) with `count` different utterances each."""
    wav, length = read_speech(RATE, folder=speech), SECONDS * RATE
    rng = np.random.default_rng(0)
    for role in ("reference", "enhanced"):
        (folder / role).mkdir()
    starts = itertools.cycle(range(0, len(wav) - length, length // 4))
    for index, start in enumerate(itertools.islice(starts, count)):
        clip = wav[start : start + length]
        noise = rng.standard_normal(length) * clip.std() * 10 ** (-15 / 20)
        sf.write(folder / "reference" / f"{index:04}.wav", clip, RATE)
        sf.write(folder / "enhanced" / f"{index:04}.wav", np.clip(clip + noise, -1, 1), RATE)


def evaluate(folder: Path, jobs: int) -> float:
    """Elapsed seconds of the command with `jobs` processes."""
    command = [sys.executable, ROOT / "scripts" / "evaluate.py", "--enhanced", folder / "enhanced"]
    command += ["--reference", folder / "reference", "--metrics", *METRICS, "--jobs", jobs]
    started = time.perf_counter()
    subprocess.run([*map(str, command), "--output", str(folder / f"{jobs}.csv")], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
