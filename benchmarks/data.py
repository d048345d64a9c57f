"""Speed and memory of preparing and loading data: a table.

    python benchmarks/data.py [--speech DIR] [--output FILE.md]

One thread throughout. Times are that thread's CPU times, which on an idle machine equal elapsed times, since all files
are in memory, and on a busy machine are still the cost of the work. The corpus is the embedded speech; noises and
impulse responses are synthetic. Degraded items are those of config/experiments/finally_stage1.yaml: contexts of 65 536
samples at 16 kHz, all augmentations with their probabilities. Items of stage 3 are degraded in the same way at 48 kHz.
"""

import contextlib
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import soundfile as sf
import torch
import yaml

from finallyse.audio.io import read
from finallyse.audio.resample import resample
from finallyse.augmentations import Chain
from finallyse.corpora.manifest import COLUMNS, write_csv
from finallyse.corpora.prepare import prepare
from finallyse.datasets import datasets_registry
from finallyse.hardware import processor
from support import ROOT
from support.speech import SPEECH, clips
from support.timing import parser_of, publish

RECIPE = ROOT / "config" / "experiments" / "finally_stage1.yaml"
CONTEXT = 65536


def main() -> None:
    """Run all measurements and print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--speech", type=Path, default=SPEECH, help="folder of speech")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
        rows = measure(arguments.speech, Path(folder))
    lines = [processor(), "", "| measured, one core | value | goal |", "|---|---|---|"]
    lines += [f"| {what} | {value:,.0f} {unit} | {goal} |" for what, value, unit, goal in rows]
    publish(lines, arguments.output)


def measure(speech: Path, folder: Path) -> list[tuple[str, float, str, str]]:
    """(what, value, unit, goal) of every measurement; `folder` is scratch."""
    rows = []
    make_sources(speech, folder / "sources")
    for corpus, to_rate in itertools.product(("libritts-r", "dns5-noise", "dns5-rooms", "micirp"), (16000, 48000)):
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(corpus, folder / "sources" / corpus, folder / corpus / str(to_rate), to_rate, jobs=1)
        if (corpus, to_rate) == ("libritts-r", 16000):
            speed = audio_seconds(folder / "sources" / corpus) / (time.process_time() - began)
            rows.append(("preparation, FLAC 48 kHz -> PCM 16 kHz", speed, "x real time", ">= 500"))

    manifest = str(folder / "libritts-r" / "16000" / "train.csv")
    augmentations = recipe(folder, 16000)
    plain = datasets_registry["augmented_libritts-r"](manifest=manifest, augmentations=[], segment=8192, context=8192)
    rows.append(
        ("a training segment of 8192 samples", rate(lambda i: plain[(0, i % len(plain))]), "items/s", ">= 5000")
    )
    pairs = datasets_registry["vctk"](manifest=manifest, input_freq=2000)
    rows.append(("the same, its highs removed (vctk)", rate(lambda i: pairs[(0, i % len(pairs))]), "items/s", ""))
    mels = datasets_registry["mel_dataset"](manifest=manifest)
    rows.append(("the same, with its mels (mel_dataset)", rate(lambda i: mels[(0, i % len(mels))]), "items/s", ""))

    wavs = sorted((folder / "libritts-r" / "16000" / "wav").rglob("*.wav"))
    wav = np.concatenate([read(path)[0] for path in wavs[:20]])
    wav = np.ascontiguousarray(wav[:CONTEXT])
    chain = Chain(augmentations)
    degrade = rate(lambda i: chain.apply(wav, 16000, chain.draw(0, 0, i)), least=200)
    rows.append((f"{CONTEXT} samples, all augmentations with their probabilities", degrade, "items/s", ">= 50"))
    for augmentation in augmentations:
        alone = Chain([{**augmentation, "probability": 1.0}])
        name = augmentation["name"]
        if "manifest" in augmentation.get("args", {}):
            name += f" ({Path(augmentation['args']['manifest']).parts[-3]})"
        speed = rate(lambda i, alone=alone: alone.apply(wav, 16000, alone.draw(0, 0, i)))
        rows.append((f"- {name} alone", speed, "items/s", ""))

    daps = {"manifest": str(folder / "libritts-r" / "48000" / "train.csv"), "augmentations": recipe(folder, 48000)}
    for what, context in (("a context of 196608 samples", 196608), ("its segment of 24576 samples alone", None)):
        dataset = datasets_registry["augmented_daps"](**daps, segment=24576, context=context)
        speed = rate(lambda i, dataset=dataset: dataset[(0, i)], least=100)
        rows.append((f"an item of stage 3, {what} at 48 kHz degraded", speed, "items/s", ""))

    rows.append(("memory of a loader worker, 100 000 recordings", worker_memory(folder, augmentations), "MB", "< 400"))
    return rows


def make_sources(speech: Path, folder: Path) -> None:
    """FLAC at 48 kHz, noises, rooms and microphones, as in published corpora."""
    for corpus in ("libritts-r", "dns5-noise", "dns5-rooms", "micirp"):
        (folder / corpus).mkdir(parents=True)
    for number, path in enumerate(clips(speech)):
        wav, from_rate = read(path)
        sf.write(folder / "libritts-r" / f"{number:03d}.flac", resample(wav, from_rate, 48000), 48000)
    rng = np.random.default_rng(0)
    for number in range(10):
        noise = rng.standard_normal(48000 * 10)
        noise = np.fft.irfft(np.fft.rfft(noise) / np.arange(1, len(noise) // 2 + 2) ** rng.uniform(0, 1), len(noise))
        sf.write(folder / "dns5-noise" / f"{number}.wav", 0.3 * noise / np.abs(noise).max(), 48000)
        room = rng.standard_normal(48000) * 10 ** (-3 * np.arange(48000) / 48000 / rng.uniform(0.2, 0.8)) * 0.05
        room[200] = 1
        sf.write(folder / "dns5-rooms" / f"{number}.wav", 0.9 * room, 48000)
        microphone = rng.standard_normal(2048) * np.exp(-np.arange(2048) / 100) * 0.1
        microphone[0] = 1
        sf.write(folder / "micirp" / f"{number}.wav", 0.9 * microphone, 48000)


def recipe(folder: Path, sample_rate: int) -> list[dict]:
    """The augmentations of the experiment, on the corpora in `folder` at `sample_rate` Hz."""
    augmentations = yaml.safe_load(RECIPE.read_text())["data"]["train"]["args"]["augmentations"]
    for augmentation in augmentations:
        if "manifest" in augmentation.get("args", {}):
            corpus = Path(augmentation["args"]["manifest"]).parts[-3]
            augmentation["args"]["manifest"] = str(folder / corpus / str(sample_rate) / "train.csv")
    return augmentations


def audio_seconds(folder: Path) -> float:
    """Length of all recordings in a folder."""
    return sum(sf.info(path).duration for path in folder.iterdir())


def rate(work: Callable[[int], object], least: int = 50, seconds: float = 2.0) -> float:
    """Calls per second after a warm-up, the best of three runs, since other programs can only slow it down."""
    work(0)
    best = 0.0
    for _ in range(3):
        began, count = time.process_time(), 0
        while count < least or time.process_time() - began < seconds / 3:
            work(count)
            count += 1
        best = max(best, count / (time.process_time() - began))
    return best


class Memory(torch.utils.data.Dataset):
    """A dataset that returns the resident memory of the loading process, in MB, instead of its items."""

    def __init__(self, dataset: torch.utils.data.Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> float:
        self.dataset[key]
        resident = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        return float(resident.split()[1]) / 1000


def worker_memory(folder: Path, augmentations: list[dict]) -> float:
    """Total resident memory of a loader worker in MB, after 100 degraded items of 100 000 recordings."""
    small = folder / "libritts-r" / "16000" / "train.csv"
    rows = small.read_text().splitlines()[1:]
    values = [dict(zip(COLUMNS, row.split(","), strict=True)) for row in rows]
    big = folder / "libritts-r" / "16000" / "big.csv"
    longer = "./" * 20  # paths as long as those of LibriTTS-R
    many = (values[i % len(values)] for i in range(100_000))
    write_csv(big, COLUMNS, ({**row, "path": longer + row["path"]} for row in many))
    dataset = datasets_registry["augmented_libritts-r"](manifest=str(big), augmentations=augmentations)
    keys = [[(0, 997 * i)] for i in range(100)]
    loader = torch.utils.data.DataLoader(Memory(dataset), batch_sampler=keys, num_workers=1)
    return max(float(value) for batch in loader for value in batch)


if __name__ == "__main__":
    main()
