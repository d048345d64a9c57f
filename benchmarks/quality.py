"""How good enhanced speech is: our network, published peers and the unprocessed input, on held-out recordings: tables.

    pip install --no-deps -r requirements-bench.txt                   # the peers; one that is missing is named as such
    snakemake --cores 2 --configfile config/small.yaml data           # the recordings
    python benchmarks/quality.py [--checkpoint NAME|FILE] [--models ours gtcrn ...] [--count 60] [--real DIR]
    python benchmarks/quality.py --quick                              # does it run? needs no data; numbers mean nothing

Sets: mixtures of speech (Picovoice) and noise (ESC-10, Moodist) that no training used, at -5 to 20 dB, listed in
`quality.mixtures.csv` beside the table; VoiceBank-DEMAND's test set and, without references, 36 recordings that users
of an assistant made on their own devices (Precise community data), where they are prepared; other real recordings
without a reference, given by --real. DIR holds recordings, or a folder `input` of them beside folders with others'
outputs of the same names, or several such folders. The samples that the authors of FINALLY published are such a DIR.
To fetch both:

    snakemake --cores 1 --configfile config/small.yaml resources/prepared/precise-community/16000/test.csv
    snakemake --cores 1 --configfile config/small.yaml \\
        resources/unpacked/finally-demo/.unpacked/12d95a1d775d40b42c7c93af36a5f4669436c9b4.tar.gz.txt

All networks are given 16 kHz and compared at 16 kHz, on one thread, with the delay of their outputs removed. Scores are
kept in `quality.scores.csv` beside the table: a rerun scores only what has changed. About 40 minutes of a core.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import importlib.metadata
import inspect
import math
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the libraries that read it

import jinja2
import numpy as np
import pandas
import torch
from markupsafe import Markup

from finallyse import atomic
from finallyse.audio.io import decode, mono, read, write_wav
from finallyse.audio.resample import resample
from finallyse.augmentations.noise import Noise
from finallyse.corpora.manifest import COLUMNS as MANIFEST_COLUMNS
from finallyse.corpora.manifest import Manifest, write_csv
from finallyse.errors import UserError
from finallyse.hardware import processor
from finallyse.inference.enhancer import Enhancer, tune_process
from finallyse.inference.stream import Stream
from finallyse.metrics import MetricSet, Scores, Unscored, Utterance, label_of, metrics_registry, summarise
from finallyse.metrics.evaluate import files_by_name
from finallyse.models.checkpoint import load_checkpoint
from finallyse.pretrained import checkpoint_file
from finallyse.progress import Progress
from finallyse.report import html as report_html
from finallyse.report.figures import Interval, with_interval
from finallyse.report.listen import Sounds, player
from finallyse.report.paired import paired_change
from peers import PEERS, RATE, NotInstalled

ROOT = Path(__file__).resolve().parents[1]
SPEECH, NOISES = "picovoice-intents", ("esc-10", "moodist")
MIXTURES = "held-out speech (Picovoice’s intents) and noise (half ESC-10’s fold 5, half Moodist’s places and transport)"
QUICK_MIXTURES = "the embedded speech and synthetic noise"
REDISTRIBUTABLE = "esc-10"  # the page's noises
COMMUNITY, COMMUNITY_PER_FOLDER, COMMUNITY_LEAST_S = "precise-community", 4, 2.0
SNR_DB = (-5.0, 20.0)
PEAK = 0.99
SEED = 20
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 are spread evenly, however many there are
METRICS = ["wb_pesq", "estoi", "si_sdr", "dnsmos", "distillmos"]
QUICK_METRICS = METRICS[:3]
SCORERS = {
    "wb_pesq": "pesq",
    "estoi": "pystoi",
    "si_sdr": "finallyse",
    "dnsmos": "speechmos",
    "distillmos": "distillmos",
}
UNREPORTED = "dnsmos_p808"
INPUT, CLEAN = "input", "clean speech"
# folders of FINALLY's published samples -> what they hold
PUBLISHED_OUTPUTS = {
    ("real_data", "output"): "FINALLY (authors' output)",
    ("ours_vs_hifigan2", "ours"): "FINALLY (authors' output)",
    ("ours_vs_hifigan2", "hifigan2"): "HiFi-GAN-2 (authors' output)",
    ("ours_vs_universe", "ours"): "FINALLY (authors' output)",
    ("ours_vs_universe", "universe"): "UNIVERSE (authors' output)",
    ("ours_vs_universe", "gt"): CLEAN,
}
EXAMPLES, EXAMPLE_S = 6, 6.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table, the list of mixtures, the scores and the page."""
    options = parse(arguments)
    try:
        if options.quick:
            with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
                quick_resources(Path(folder))
                run(options, Path(folder), QUICK_METRICS)
        else:
            run(options, options.resources, METRICS)
    except UserError as error:
        sys.exit(f"error: {error}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", type=Path, default=ROOT / "resources", help="folder with prepared/")
    parser.add_argument("--checkpoint", help="our network: a file, or the name of a built-in one (the default)")
    parser.add_argument("--models", nargs="+", choices=["ours", *PEERS], default=["ours", *PEERS], metavar="NAME")
    parser.add_argument("--count", type=int, help="number of mixtures (60)")
    parser.add_argument("--real", type=Path, help="folder of real recordings (FINALLY's samples, if unpacked)")
    parser.add_argument("--esc10-authors", type=Path, help="README.md of ESC-10 (that of the unpacked archive)")
    parser.add_argument("--output", type=Path, help="table (benchmarks/results/quality.md)")
    parser.add_argument("--page", type=Path, help="page to listen to (the table's name with .html)")
    parser.add_argument("--quick", action="store_true", help="a few short mixtures, fast metrics: does it run?")
    options = parser.parse_args(arguments)
    if options.count is not None and options.count < 2:
        parser.error("--count: at least 2")
    options.count = options.count or (4 if options.quick else 60)
    folder = ROOT / ("results" if options.quick else "benchmarks/results")
    options.output = options.output or folder / "quality.md"
    options.page = options.page or options.output.with_suffix(".html")
    return options


def run(options: argparse.Namespace, resources: Path, metrics: Sequence[str]) -> None:
    """Everything, with the recordings of `resources`."""
    torch.set_num_threads(1)
    tune_process()
    systems = load_systems(options.models, options.checkpoint)
    mixtures = plan_mixtures(resources, options.count)
    what = QUICK_MIXTURES if options.quick else MIXTURES
    sets = [mixture_set(mixtures, resources, what), *voicebank_set(resources), *community_set(resources)]
    if not options.quick or options.real:
        sets += real_sets(options.real or find_published_samples(resources))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_csv(options.output.with_suffix(".mixtures.csv"), list(asdict(mixtures[0])), map(asdict, mixtures))
    scorer = Scorer(metrics, options.output.with_suffix(".scores.csv"))
    examples = choose_examples(mixtures)
    results = [measure(test_set, systems, scorer, {mixture.name for mixture in examples}) for test_set in sets]
    lines = [*heading(options, systems), *(line for result in results for line in set_tables(result, systems))]
    lines += cost_table(results, systems)
    atomic.write_bytes(options.output, ("\n".join(lines) + "\n").encode())
    page = write_page(options, resources, results[0], examples, systems)
    print("\n".join(lines))
    print("\n<!-- quality: made by benchmarks/quality.py -->")
    print("\n".join(short_table(results[0], systems)))
    print("<!-- /quality -->\n")
    print(f"{options.output}; {options.page}: {page / 1e6:.1f} MB")


# --- networks ---------------------------------------------------------------------------------------------------------


@dataclass
class System:
    """One network to measure, or the reason why it cannot be.

    Attributes:
        enhance: float32 [T] at 16 kHz -> float32 [T].    reset: called before each recording, outside of its time.
        kind: its colour on the page.
        about: version, paper and licence.    latency: in ms, with `latency_source`.
    """

    name: str
    title: str
    kind: str = "peer"
    enhance: Callable[[np.ndarray], np.ndarray] | None = None
    reset: Callable[[], None] = lambda: None
    parameters: int | None = None
    counted: str = ""
    latency: str = "–"
    latency_source: str = ""
    about: str = ""
    absent: str | None = None


def load_systems(names: Sequence[str], checkpoint: str | None) -> list[System]:
    """The networks of these names; those that are not installed say so."""
    return [our_system(checkpoint) if name == "ours" else peer_system(name) for name in names]


def our_system(checkpoint: str | None) -> System:
    """A checkpoint of this package, or the built-in network. A checkpoint that is named must be there."""
    try:
        path = checkpoint_file(checkpoint)
    except UserError as error:
        if checkpoint is not None:
            raise
        return System("ours", "finallyse", "enhanced", absent=str(error).rpartition("/")[2])
    loaded = load_checkpoint(path)
    enhancer = Enhancer.from_checkpoint(loaded, device="cpu")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    latency, latency_source = streaming(enhancer)
    return System(
        "ours",
        f"finallyse {path.stem}",
        "enhanced",
        enhance=lambda wav: enhancer.enhance(wav, RATE, RATE),
        parameters=sum(parameter.numel() for parameter in enhancer.generator.parameters()),
        counted="norms folded in",
        latency=latency,
        latency_source=latency_source,
        about=f"{loaded.step:,} steps, SHA-256 {digest}…",
    )


def streaming(enhancer: Enhancer) -> tuple[str, str]:
    """The latency of a stream whose output is that for the whole recording, in ms, and how that is known."""
    try:
        stream = Stream(enhancer, peak=enhancer.peak)
    except UserError as error:
        return "not streaming", str(error)
    return (
        f"{1e3 * stream.latency:.0f}",
        f"`finallyse.Stream`: looks {stream.lookahead:g} s ahead, in steps of {stream.hop:g} s; docs/howto/stream.md "
        "has less, for less quality",
    )


def peer_system(name: str) -> System:
    """A peer of benchmarks/peers.py."""
    kind = PEERS[name]
    try:
        peer = kind()
    except NotInstalled as reason:
        return System(name, kind.title, absent=str(reason))
    return System(
        name,
        kind.title,
        enhance=peer.enhance,
        reset=peer.reset,
        parameters=peer.parameters,
        counted=peer.counted,
        latency=f"{peer.latency_ms:g}",
        latency_source=peer.latency_source,
        about=f"{peer.version} ({peer.licence}); {peer.paper}",
    )


# --- recordings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """One held-out mixture, as listed beside the results; paths are relative to the folder of resources.

    start: of the excerpt of noise, as a share of its possible positions.    gain: of the mixture and of its clean
    speech, so that neither exceeds a peak of 0.99.    seed: of the whole list.
    """

    name: str
    speech: str
    noise: str
    start: float
    snr_db: float
    gain: float
    seed: int


@dataclass
class Clip:
    """One recording at 16 kHz: float32 [T]; its clean reference, if any; others' outputs by title, with their rates."""

    name: str
    noisy: np.ndarray
    clean: np.ndarray | None = None
    others: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)


@dataclass
class TestSet:
    """Recordings that are measured together; `clips` are read one at a time."""

    title: str
    note: str
    count: int
    clips: Callable[[], object]
    others: list[str]
    has_reference: bool


def plan_mixtures(resources: Path, count: int, seed: int = SEED) -> list[Mixture]:
    """`count` mixtures whose ratios are spread evenly; a pure function of the manifests and the seed.

    The first ones are the same for any count, so that more of them are measured by a rerun.
    """
    speech = _manifest(resources, SPEECH)
    noises = {corpus: _manifest(resources, corpus) for corpus in NOISES}
    rng = np.random.default_rng(seed)
    order = {corpus: rng.permutation(len(manifest)) for corpus, manifest in {SPEECH: speech, **noises}.items()}
    mixtures = []
    for index in range(count):
        snr_db = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * (index * GOLDEN % 1)
        corpus = NOISES[index % len(NOISES)]  # each at all ratios
        said = order[SPEECH][index % len(speech)]
        heard = order[corpus][index // len(NOISES) % len(noises[corpus])]
        paths = [manifest.path(int(i)) for manifest, i in ((speech, said), (noises[corpus], heard))]
        name = f"{index:03}_{corpus}_{paths[1].stem}".replace(" ", "_")
        start = round(float(rng.random()), 6)
        files = (path.relative_to(resources).as_posix() for path in paths)
        mixture = Mixture(name, *files, start, round(snr_db, 3), 1.0, seed)
        noisy, clean = mix(mixture, resources)
        gain = min(1.0, PEAK / max(np.abs(noisy).max(), np.abs(clean).max()))
        mixtures.append(Mixture(**{**asdict(mixture), "gain": math.floor(gain * 1e6) / 1e6}))
    return mixtures


def _manifest(resources: Path, corpus: str) -> Manifest:
    """The corpus' recordings that no training uses."""
    return Manifest(resources / "prepared" / corpus / str(RATE) / "test.csv")


def mix(mixture: Mixture, resources: Path) -> tuple[np.ndarray, np.ndarray]:
    """The mixture and its clean speech, float32 [T]; the ratio is that of the training's augmentation `noise`."""
    clean, _ = read(resources / mixture.speech)
    path = resources / mixture.noise
    noise, _ = read(path)
    if not clean.any() or not noise.any():
        raise UserError(f"{mixture.name}: its speech or its noise is silent")
    corpus = Path(mixture.noise).parts[1]
    params = {"file": str(path), "samples": len(noise), "start": mixture.start, "snr_db": mixture.snr_db}
    manifest = str(resources / "prepared" / corpus / str(RATE) / "test.csv")
    noisy = Noise(manifest).apply(clean, RATE, params, mixture.speech)
    return noisy * np.float32(mixture.gain), clean * np.float32(mixture.gain)


def mixture_set(mixtures: Sequence[Mixture], resources: Path, what: str) -> TestSet:
    """The mixtures as recordings; `what` they are mixed from."""
    return TestSet(
        "Mixtures",
        f"{len(mixtures)} mixtures at −{-SNR_DB[0]:g} to {SNR_DB[1]:g} dB of {what}; seed {mixtures[0].seed}.",
        len(mixtures),
        lambda: (Clip(mixture.name, *mix(mixture, resources)) for mixture in mixtures),
        [],
        True,
    )


def voicebank_set(resources: Path) -> list[TestSet]:
    """VoiceBank-DEMAND's test set, where it is prepared."""
    path = resources / "prepared" / "voicebank" / str(RATE) / "test.csv"
    if not path.is_file():
        return []
    manifest = Manifest(path)

    def clips():
        for index in range(len(manifest)):
            yield Clip(manifest.name(index), read(manifest.noisy_path(index))[0], read(manifest.path(index))[0])

    note = f"The test set, {len(manifest)} utterances at {RATE // 1000} kHz."
    return [TestSet("VoiceBank-DEMAND", note, len(manifest), clips, [], True)]


def community_set(resources: Path, seed: int = SEED) -> list[TestSet]:
    """Recordings of users' own devices, the same number of every folder of Precise's community data, if prepared."""
    path = resources / "prepared" / COMMUNITY / str(RATE) / "test.csv"
    if not path.is_file():
        return []
    manifest = Manifest(path)
    folders: dict[Path, dict[str, Path]] = {}
    for index in map(int, np.random.default_rng(seed).permutation(len(manifest))):
        file = manifest.path(index)
        chosen = folders.setdefault(file.parent, {})
        if manifest.samples[index] >= COMMUNITY_LEAST_S * RATE and len(chosen) < COMMUNITY_PER_FOLDER:
            chosen[manifest.name(index)] = file
    files = {name: file for _, chosen in sorted(folders.items()) for name, file in chosen.items()}
    return [_recordings("Real recordings: users' own devices", files, {})]


def find_published_samples(resources: Path) -> Path | None:
    """The samples of FINALLY's authors, where they are unpacked."""
    return next((resources / "unpacked" / "finally-demo").glob("*/samples"), None)


def real_sets(folder: Path | None) -> list[TestSet]:
    """Real recordings without references, one set for each folder that holds `input`."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"--real {folder}: no such folder")
    roots = [folder] if (folder / "input").is_dir() else sorted(path.parent for path in folder.glob("*/input"))
    return [_real_set(root) for root in roots] or [_recordings("Real recordings", files_by_name(folder), {})]


def _real_set(root: Path) -> TestSet:
    files = files_by_name(root / "input")
    others = {}
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name != "input" and not path.name.startswith("."):
            others[PUBLISHED_OUTPUTS.get((root.name, path.name), path.name)] = files_by_name(path)
    return _recordings(f"Real recordings: {root.name}", files, others)


def _recordings(title: str, files: Mapping[str, Path], others: Mapping[str, Mapping[str, Path]]) -> TestSet:
    def whole(path: Path) -> tuple[np.ndarray, int]:
        wav, rate = decode(path)
        return mono(wav), rate

    def clips():
        for name, path in files.items():
            beside = {title: whole(paths[name]) for title, paths in others.items() if name in paths}
            yield Clip(name, resample(*whole(path), RATE), None, beside)

    note = f"{len(files)} recordings, measured without reference; the networks are given them at {RATE // 1000} kHz."
    return TestSet(title, note, len(files), clips, list(others), False)


def quick_resources(folder: Path) -> None:
    """Prepared corpora of the same names: three clips of the embedded speech, and coloured noise."""
    rng = np.random.default_rng(0)
    wavs: dict[str, dict[str, np.ndarray]] = {SPEECH: {}, **{corpus: {} for corpus in NOISES}}
    for path in sorted((ROOT / "resources" / "demo" / "speech").glob("*.flac"))[:3]:
        wav, rate = read(path)
        wavs[SPEECH][path.stem] = resample(wav, rate, RATE)[: 3 * RATE]
    for corpus in NOISES:
        for number in range(2):
            noise = np.cumsum(rng.standard_normal(2 * RATE) - 0.02)
            wavs[corpus][f"5-{number}-A"] = (0.3 * (noise - noise.mean()) / np.abs(noise).max()).astype(np.float32)
    for corpus, recordings in wavs.items():
        prepared, rows = folder / "prepared" / corpus / str(RATE), []
        (prepared / "wav" / "synthetic").mkdir(parents=True)
        for name, wav in recordings.items():
            path = f"wav/synthetic/{name}.wav"
            write_wav(prepared / path, wav, RATE)
            rows.append({"path": path, "samples": len(wav), "rate": RATE, "split": "test", "gain": 1.0})
        write_csv(prepared / "test.csv", MANIFEST_COLUMNS, rows)


# --- measuring --------------------------------------------------------------------------------------------------------


def scorer(name: str) -> str:
    """What a score depends on besides the signals: package and version, and the code of this project that calls it."""
    code = inspect.getsource(inspect.getmodule(metrics_registry[name]))
    return (
        f"{SCORERS[name]} {importlib.metadata.version(SCORERS[name])} {hashlib.sha256(code.encode()).hexdigest()[:8]}"
    )


class Scorer:
    """Scores signals by several metrics, and keeps every score in a CSV, which later runs read.

    Args:
        metrics: registry names.
        path: the CSV. A score is found again by the samples of both signals, the metric and its `scorer`.
    """

    columns = ("audio", "reference", "metric", "scorer", "value")

    def __init__(self, metrics: Sequence[str], path: Path):
        self.metrics = MetricSet(metrics, device="cpu")
        self.path = path
        self.versions = {name: scorer(name) for name in metrics}
        self.known: dict[tuple[str, ...], float] = {}
        self.computed = 0
        if path.is_file():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get("value"):  # the last line of a run that was killed may be cut short
                        self.known[tuple(row[column] for column in self.columns[:4])] = float(row["value"])
        else:
            write_csv(path, self.columns, [])

    def reported(self, reference: bool | None = None) -> list[str]:
        """Names of the numbers that are reported; `reference` as for `MetricSet.columns`."""
        return [column for column in self.metrics.columns(reference=reference) if column != UNREPORTED]

    def score(self, wav: np.ndarray, rate: int, reference: np.ndarray | None = None) -> Scores:
        """Scores of float32 [T] at `rate`, against a reference at 16 kHz if there is one."""
        utterance = Utterance(wav, rate, reference, RATE)
        scores = Scores()
        for name, metric in self.metrics.metrics.items():
            if metric.needs.reference and reference is None:
                continue
            compared = digest(reference, RATE) if metric.needs.reference else ""
            keys = {c: (digest(wav, rate), compared, c, self.versions[name]) for c in metric.columns}
            if not keys.keys() <= {column for column, key in keys.items() if key in self.known}:
                try:
                    values = metric.score(utterance)
                except Unscored as reason:
                    scores.reasons |= dict.fromkeys(metric.columns, str(reason))
                    continue
                self._keep({keys[column]: value for column, value in values.items()})
            scores.values |= {column: self.known[key] for column, key in keys.items()}
        return scores

    def _keep(self, values: Mapping[tuple[str, ...], float]) -> None:
        self.computed += 1
        self.known |= values
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([*key, repr(float(value))] for key, value in values.items())


def digest(wav: np.ndarray, rate: int) -> str:
    """Hash of a signal's samples and rate."""
    return hashlib.sha256(f"{rate}:".encode() + np.ascontiguousarray(wav, np.float32).tobytes()).hexdigest()[:32]


@dataclass
class Result:
    """Scores of one set: row's title -> one `Scores` for each recording that the row has.

    Attributes:
        factors: name of the network -> real-time factor of each recording.
        kept: (recording, row's title) -> signal at 16 kHz, of the recordings to listen to.
    """

    test_set: TestSet
    columns: list[str]
    scores: dict[str, dict[str, Scores]]
    factors: dict[str, list[float]]
    kept: dict[tuple[str, str], np.ndarray]


def measure(test_set: TestSet, systems: Sequence[System], scorer: Scorer, keep: set[str]) -> Result:
    """Enhance and score every recording of a set."""
    present = [system for system in systems if not system.absent]
    titles = [INPUT, *(system.title for system in present), *test_set.others]
    titles += [CLEAN] if test_set.has_reference else []
    result = Result(
        test_set,
        scorer.reported(None if test_set.has_reference else False),
        {title: {} for title in titles},
        {system.name: [] for system in present},
        {},
    )
    progress = Progress(test_set.title, test_set.count, "recordings", every_s=10)
    for clip in test_set.clips():
        rows = {INPUT: (clip.noisy, RATE)}
        for system in present:
            system.reset()
            started = time.process_time()  # of all threads; unlike the clock's time, it is the same on a busy machine
            wav = system.enhance(clip.noisy)
            result.factors[system.name].append((time.process_time() - started) / (len(wav) / RATE))
            rows[system.title] = (wav, RATE)
        rows |= clip.others
        for title, (wav, rate) in rows.items():
            result.scores[title][clip.name] = scorer.score(wav, rate, clip.clean)
        if clip.clean is not None:
            result.scores[CLEAN][clip.name] = scorer.score(clip.clean, RATE)
            rows[CLEAN] = (clip.clean, RATE)
        if clip.name in keep:
            result.kept |= {(clip.name, title): wav for title, (wav, _) in rows.items()}
        progress.add(1)
    progress.close()
    return result


# --- tables -----------------------------------------------------------------------------------------------------------


def means(result: Result, title: str) -> list[str]:
    """A row's cells: means with their 95 % intervals."""
    summaries = summarise(result.scores[title].values(), result.columns)
    cells = []
    for summary in summaries.values():
        interval = Interval(summary.mean, summary.mean - summary.ci95, summary.mean + summary.ci95)
        cells.append(with_interval(interval) + (f" (n = {summary.n})" if summary.unscored and summary.n else ""))
    return cells


def changes(result: Result, title: str) -> list[str]:
    """A row's cells: mean differences to the input, recording by recording, with their 95 % intervals."""
    given = result.scores[INPUT]
    cells = []
    for column in result.columns:
        values = [
            (scores.values.get(column, math.nan), given[name].values.get(column, math.nan))
            for name, scores in result.scores[title].items()
        ]
        change = paired_change(pandas.DataFrame(values, columns=[column, f"noisy_{column}"]), column)
        cells.append(with_interval(change.interval, signed=True) if change.pairs else "–")
    return cells


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """A Markdown table; all but the first columns are numbers."""
    rule = ["---"] * text_columns + ["--:"] * (len(header) - text_columns)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


def set_tables(result: Result, systems: Sequence[System]) -> list[str]:
    """A set's heading, its means and its changes."""
    header = ["", *map(label_of, result.columns)]
    absent = [[system.title, system.absent, *[""] * (len(result.columns) - 1)] for system in systems if system.absent]
    rows = [[title, *means(result, title)] for title in result.scores]
    changed = [[title, *changes(result, title)] for title in result.scores if title not in (INPUT, CLEAN)]
    reasons = {
        f"{label_of(column)} of {title}: {summary.reasons_text}"
        for title, scores in result.scores.items()
        for column, summary in summarise(scores.values(), result.columns).items()
        if summary.reasons
    }
    return [
        f"## {result.test_set.title}",
        "",
        result.test_set.note,
        "",
        *table(header, rows + absent),
        "",
        "Change from the input, recording by recording:",
        "",
        *table(header, changed + absent),
        "",
        *(f"Not scored: {reason}." for reason in sorted(reasons)),
        *([""] if reasons else []),
    ]


def cost_table(results: Sequence[Result], systems: Sequence[System]) -> list[str]:
    """What the networks cost, and what they are."""
    rows, notes = [], []
    for system in systems:
        if system.absent:
            rows.append([system.title, system.absent, "", "", ""])
            continue
        factor = statistics.median(results[0].factors[system.name])
        rows.append([system.title, parameters(system), f"{factor:.3f}", system.latency, system.latency_source])
        notes.append(f"- {system.title}: {system.about}. Parameters: {system.counted}.")
    return [
        "## Cost",
        "",
        "Real-time factor: processor time per second of audio, one thread, resampling included, median over the "
        "mixtures. Latency: algorithmic, of a stream.",
        "",
        *table(["", "parameters", "real-time factor", "latency, ms", "latency: how known"], rows),
        "",
        *notes,
    ]


def parameters(system: System) -> str:
    """A number of parameters: 988 k, 2.13 M."""
    count = system.parameters
    return "–" if count is None else f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def short_table(result: Result, systems: Sequence[System]) -> list[str]:
    """The table for the README: means over the mixtures, without intervals."""
    columns = [column for column in result.columns if column not in ("dnsmos_sig", "dnsmos_bak")]
    rows = []
    for title, scores in result.scores.items():
        if title == CLEAN:
            continue
        system = next((system for system in systems if system.title == title), None)
        summaries = summarise(scores.values(), columns)
        digits = {"si_sdr": 1}
        numbers = [f"{summaries[column].mean:.{digits.get(column, 2)}f}".replace("-", "−") for column in columns]
        cost = ["", ""]
        if system:
            cost = [parameters(system), f"{statistics.median(result.factors[system.name]):.3f}"]
        rows.append([title, *numbers, *cost])
    return table(["", *map(label_of, columns), "parameters", "real-time factor"], rows)


def heading(options: argparse.Namespace, systems: Sequence[System]) -> list[str]:
    """Machine, date, versions, and how to repeat it."""
    ours = next((system for system in systems if system.name == "ours"), None)
    command = "python benchmarks/quality.py"
    if options.checkpoint and ours:
        command += f" --checkpoint {Path(options.checkpoint).name}"
    if options.count != 60:
        command += f" --count {options.count}"
    if options.real:
        command += " --real DIR"
    if options.quick:
        command += " --quick"
    packages = ["torch", "onnxruntime", *dict.fromkeys(SCORERS.values())]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    lines = ["# Quality of enhanced speech", ""]
    if options.quick:
        lines += ["**A quick run on synthetic noise: the numbers mean nothing.**", ""]
    return [
        *lines,
        f"{processor()}, one thread, Python {platform.python_version()}, {versions}; "
        f"{datetime.datetime.now(datetime.UTC):%d %B %Y}.",
        "",
        f"To repeat: `pip install --no-deps -r requirements-bench.txt`, "
        f"`snakemake --cores 2 --configfile config/small.yaml data`, `{command}`; what else to fetch: `--help`.",
        "",
        "Means over the recordings ± their 95 % intervals (Student's t). DNSMOS: P.835. Higher is better throughout.",
        "",
    ]


# --- page -------------------------------------------------------------------------------------------------------------


def choose_examples(mixtures: Sequence[Mixture]) -> list[Mixture]:
    """Up to six mixtures that may be given away, at evenly spread ratios, each with another kind of noise."""
    left = [mixture for mixture in mixtures if Path(mixture.noise).parts[1] == REDISTRIBUTABLE]
    chosen: list[Mixture] = []
    for snr_db in np.linspace(*SNR_DB, EXAMPLES):
        if left:
            used = {noise_class(mixture) for mixture in chosen}
            mixture = min(left, key=lambda m: (noise_class(m) in used, abs(m.snr_db - snr_db)))
            chosen.append(mixture)
            left.remove(mixture)
    return sorted(chosen, key=lambda mixture: mixture.snr_db)


def noise_class(mixture: Mixture) -> str:
    """`Rain` for `prepared/esc-10/16000/wav/002 - Rain/5-181766-A.wav`."""
    return re.sub(r"^\d+ - ", "", Path(mixture.noise).parent.name)


def esc10_authors(resources: Path, given: Path | None) -> dict[str, tuple[str, ...]]:
    """Clip -> (title, address, author, licence, its address), from the README of ESC-10's archive."""
    path = given or next((resources / "unpacked" / "esc-10").glob("**/README.md"), None)
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"--esc10-authors {path}: no such file")
    line = re.compile(
        r"\[(\d-\d+-[A-Z])\.ogg\].*clip derived from \[(.*)\]\((https?://\S+)\) by \*(.+?)\* \(\[(.+?)\]\((\S+?)\)"
    )
    return {match[1]: match.groups()[1:] for match in line.finditer(path.read_text(encoding="utf-8"))}


def credit(mixture: Mixture, authors: Mapping[str, tuple[str, ...]]) -> Markup:
    """Whom an example's noise is from."""
    clip = Path(mixture.noise).stem
    link = Markup('<a href="{}" rel="noreferrer">{}</a>')
    if clip in authors:
        title, address, author, licence, terms = authors[clip]
        return Markup("{}: {} by {}, {}").format(clip, link.format(address, title), author, link.format(terms, licence))
    address = f"https://freesound.org/s/{quote(clip.split('-')[1])}/"
    return Markup("{}: {}, author and licence there").format(clip, link.format(address, address))


def write_page(
    options: argparse.Namespace,
    resources: Path,
    result: Result,
    examples: Sequence[Mixture],
    systems: Sequence[System],
) -> int:
    """Write the page to listen to; returns its size in bytes."""
    kinds = {INPUT: "noisy", CLEAN: "reference"} | {system.title: system.kind for system in systems}
    titles = [INPUT, CLEAN, *(title for title in result.scores if title not in (INPUT, CLEAN))]
    sounds, players = Sounds(EXAMPLE_S), []
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as folder:
        for mixture in examples:
            signals = []
            for number, title in enumerate(titles):
                path = Path(folder) / f"{mixture.name}.{number}.wav"
                write_wav(path, result.kept[mixture.name, title], RATE, "FLOAT")
                pesq = result.scores[title][mixture.name].values.get("wb_pesq")
                label = title.capitalize() if title in (INPUT, CLEAN) else title
                signals.append((kinds[title], label, path, f"PESQ {pesq:.2f}" if pesq else ""))
            name = f"{noise_class(mixture)}, {round(mixture.snr_db)} dB"
            players.append(player(name.replace("-", "−"), signals, sounds))
    authors = esc10_authors(resources, options.esc10_authors)
    speech = (
        "resources/demo/README.md"
        if options.quick
        else Markup('{}, Apache-2.0: <a href="{}" rel="noreferrer">speech-to-intent benchmark</a>').format(
            "Picovoice Inc.", "https://github.com/Picovoice/speech-to-intent-benchmark"
        )
    )
    columns = [column for column in result.columns if column not in ("dnsmos_sig", "dnsmos_bak")]
    picked = [result.columns.index(column) for column in columns]
    rows = [
        {"title": title, "kind": kinds.get(title, "peer"), "cells": [cells[i] for i in picked]}
        for title, cells in ((title, means(result, title)) for title in result.scores)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, report_html.FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("quality.html.j2").render(
        style=Markup((report_html.FOLDER / "style.css").read_text()),
        script=Markup((report_html.FOLDER / "player.js").read_text()),
        quick=options.quick,
        seconds=EXAMPLE_S,
        note=result.test_set.note,
        labels=list(map(label_of, columns)),
        rows=rows,
        absent=[system for system in systems if system.absent],
        players=players,
        speech=speech,
        credits=[credit(mixture, authors) for mixture in examples],
        systems=[system for system in systems if not system.absent],
    )
    options.page.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(options.page, page.encode())
    return len(page.encode())


if __name__ == "__main__":
    main()
