"""Speed of decoding an hour of MP3, FLAC and WAV, and the memory it takes: a table.

    python benchmarks/audio.py [--minutes 60] [--repeats 3] [--baseline COMMIT] [--output FILE.md]

Each file is read block by block, as `finallyse enhance` does, in a process of its own. The baseline is the package of
an earlier commit, checked out to a temporary folder; the two take turns. Ratios are of the medians.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile as sf

from finallyse.hardware import processor
from support import ROOT
from support.speech import read_speech
from support.timing import parser_of, publish

RATE = 44100
PROGRAM = """
import json, resource, sys, time
from finallyse.audio.blocks import BlockReader
BlockReader(sys.argv[2]).close()  # what is loaded once does not count
began, samples = time.perf_counter(), 0
with BlockReader(sys.argv[1]) as reader:
    for block in reader:
        samples += block.shape[1]
seconds = time.perf_counter() - began
own, others = (resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([seconds, samples, own / 1024]))
"""


def main() -> None:
    """Measure and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=int, default=60, help="length of the recording")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each")
    parser.add_argument("--baseline", metavar="COMMIT", help="commit of the package to compare with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as name:
        folder = Path(name)
        packages = {"now": ROOT / "src"}
        if arguments.baseline:
            packages["before"] = folder / "before" / "src"
            archive = subprocess.run(["git", "archive", arguments.baseline, "src"], cwd=ROOT, capture_output=True)
            if archive.returncode:
                parser.error(f"argument --baseline: {archive.stderr.decode().strip()}")
            (folder / "before").mkdir()
            subprocess.run(["tar", "-x", "-C", folder / "before"], input=archive.stdout, check=True)
        lines = [processor(), "", *table(folder, packages, arguments.minutes, arguments.repeats)]
    publish(lines, arguments.output)


def table(folder: Path, packages: dict[str, Path], minutes: int, repeats: int) -> list[str]:
    """The table's lines."""
    speech = read_speech(60, RATE)
    stereo = np.stack([speech, 0.5 * speech], 1).astype(np.float32)
    lines = [
        f"An hour is {minutes} minutes here." if minutes != 60 else "One hour, stereo, 44.1 kHz.",
        "",
        "| format | decoding, s | times real time | resident, MB | " + "ratio to before |" * (len(packages) - 1),
        "|---|---|---|---|" + "---|" * (len(packages) - 1),
    ]
    for suffix, format in ((".mp3", "MP3"), (".flac", "FLAC"), (".wav", "WAV")):
        path, short = folder / f"long{suffix}", folder / f"short{suffix}"
        for target, count in ((path, minutes), (short, 1)):
            with sf.SoundFile(target, "w", RATE, 2, format=format) as file:
                for _ in range(count):
                    file.write(stereo)
        found: dict[str, list[list[float]]] = {name: [] for name in packages}
        for _ in range(repeats):
            for name, package in packages.items():
                found[name].append(measure(package, path, short))
        assert len({round(run[1] / RATE) for runs in found.values() for run in runs}) == 1, "lengths differ"
        seconds = {name: statistics.median(run[0] for run in runs) for name, runs in found.items()}
        memory = max(run[2] for run in found["now"])
        row = f"| {format} | {seconds['now']:.2f} | {60 * minutes / seconds['now']:.0f} | {memory:.0f} |"
        lines.append(row + (f" {seconds['now'] / seconds['before']:.2f} |" if "before" in seconds else ""))
        path.unlink()
    return lines


def measure(package: Path, path: Path, short: Path) -> list[float]:
    """Seconds, samples, and MB of one run."""
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(short)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{path.name} with {package}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
