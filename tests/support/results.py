"""A small results folder like that of the workflow, for the tests of the report.

The speech is from the embedded corpus. Its degraded and "enhanced" versions are computed without networks (noise that
decreases and a low-pass that opens from stage to stage) and measured by the real metrics.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from finallyse.audio.io import read, write_wav
from finallyse.audio.resample import resample
from finallyse.config import complete_experiment, merge, read_yaml
from finallyse.metrics import MetricSet, Utterance, summarise
from finallyse.models.checkpoint import save_checkpoint
from finallyse.schema import read_schema
from support import ROOT

NETWORKS = [
    "hifigan",
    "hifipp_bwe1",
    "hifipp_denoise",
    "finally_stage1",
    "finally_stage2",
    "finally_stage3",
]
RECIPES = {  # the recipes to compare with, as options of `collect`
    "paper": ROOT / "resources" / "paper",
    "experiments": ROOT / "config" / "experiments",
    "schema": ROOT / "config" / "schema.json",
}
METRICS = ["wb_pesq", "si_sdr", "lsd", "level", "wv-mos"]  # wv-mos: its weights are missing
STEPS = 120
SECONDS = 3


_built: dict[str, Path] = {}


def results_once(tmp_path_factory: pytest.TempPathFactory, clips: list[Path]) -> Path:
    """Results of all of NETWORKS on four clips, built once per session; tests that change them use a copy."""
    if "results" not in _built:
        _built["results"] = build(tmp_path_factory.mktemp("run"), ROOT, clips[::14])
    return _built["results"]


def page_once(results: Path) -> Path:
    """The report of `results`, with one network without results."""
    if "page" not in _built:
        from finallyse.report.collect import collect
        from finallyse.report.html import Options, write

        report = collect(results, [*NETWORKS, "hifipp_bwe2"], **RECIPES, title="A test run")
        write(report, results.parent / "report.html", Options())
        _built["page"] = results.parent / "report.html"
    return _built["page"]


def build(folder: Path, root: Path, clips: list[Path], networks: list[str] = NETWORKS) -> Path:
    """Write results of `networks` on `clips` under `folder`; returns the results folder."""
    results, resources = folder / "results", folder / "resources"
    speech = {clip.stem: resample(read(clip)[0], read(clip)[1], 48_000)[: 48_000 * SECONDS] for clip in clips}
    metric_set = MetricSet(METRICS, resources=str(resources), device="cpu")
    wavlm = resources / "weights" / "wavlm-large"
    wavlm.mkdir(parents=True)
    (wavlm / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 32}))
    for order, network in enumerate(networks):
        rng = np.random.default_rng(order)
        config = _config(root / "config" / "experiments" / f"{network}.yaml", network, results, resources)
        _write_yaml(results / "configs" / f"{network}.yaml", config)
        _write_manifest(Path(config["data"]["train"]["args"]["manifest"]), len(clips))
        save_checkpoint(
            results / f"{network}.ckpt",
            network=network,
            config=config,
            step=STEPS,
            generator={"conv_pre.weight": torch.zeros(40 + order, 80, 7), "conv_pre.bias": torch.zeros(40 + order)},
            discriminators={},
            devices={"A CPU of the test": 20, "2 x a GPU of the test": STEPS - 20},
        )
        _write_history(results / "state" / network, config, rng)
        rows = []
        for name, clean in speech.items():
            signals = _signals(network, clean, rng)
            for kind, (wav, rate) in signals.items():
                path = results / "enhanced" / network / kind / f"{name}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_wav(path, wav, rate, overload="scale")
            reference = signals["reference"]
            measured = {
                prefix: metric_set.score(Utterance(*signals[kind], *reference))
                for kind, prefix in (("noisy", "noisy_"), ("enhanced", ""))
                if kind in signals
            }
            rows.append((name, len(clean) / 48_000, measured))
        _write_metrics(results / "metrics", network, rows, metric_set)
        _write_benchmark(
            results / "benchmarks" / "train_network" / f"{network}.tsv", 20.0 + 7 * order, 900.0 + 50 * order
        )
        _write_benchmark(results / "benchmarks" / "evaluate" / f"{network}.tsv", 3.0 + order, 350.0)
    _write_benchmark(results / "benchmarks" / "pack_demo.tsv", 4.2, None)
    return results


def _config(recipe: Path, network: str, results: Path, resources: Path) -> dict:
    """The complete experiment of a recipe, small."""
    small = {
        "exp": {"run_name": network, "results": str(results), "resources": str(resources)},
        "train": {"steps": STEPS},
        "data": {"batch_size": 4},
    }
    return complete_experiment(merge(read_yaml(recipe), small), str(recipe), read_schema(RECIPES["schema"]))


def _write_yaml(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def _write_manifest(path: Path, files: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"wav/{i}.wav,72000,16000,speaker{i % 2},train,0.9,0" for i in range(files)]
    path.write_text("\n".join(["path,samples,rate,speaker,split,peak,source_checksum", *lines]) + "\n")


def _signals(network: str, clean: np.ndarray, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, int]]:
    """Input, output and reference of an utterance [T] at 48 kHz, each with its rate."""
    at_16k = resample(clean, 48_000, 16_000)
    if network == "hifigan":
        return {"enhanced": (_noisy(at_16k, 18, rng), 16_000), "reference": (at_16k, 16_000)}
    if network.startswith("hifipp_bwe"):
        cut = int(network.removeprefix("hifipp_bwe")) * 2000
        band = {rate: resample(resample(at_16k, 16_000, rate), rate, 16_000) for rate in (cut, 3 * cut)}
        length = min(len(at_16k), *(len(wav) for wav in band.values()))
        return {
            "noisy": (band[cut][:length], 16_000),
            "enhanced": (band[3 * cut][:length], 16_000),
            "reference": (at_16k[:length], 16_000),
        }
    noisy = _noisy(at_16k, 6, rng)
    snr = {"hifipp_denoise": 14, "finally_stage1": 10, "finally_stage2": 14}.get(network, 22)
    if network.startswith("finally_stage3"):
        return {"noisy": (noisy, 16_000), "enhanced": (_noisy(clean, snr, rng), 48_000), "reference": (clean, 48_000)}
    return {"noisy": (noisy, 16_000), "enhanced": (_noisy(at_16k, snr, rng), 16_000), "reference": (at_16k, 16_000)}


def _noisy(wav: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    noise = np.cumsum(rng.standard_normal(len(wav))) * 0.02 + rng.standard_normal(len(wav))
    noise *= np.sqrt(np.mean(wav**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return (wav + noise).astype(np.float32)


def _write_history(folder: Path, config: dict, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    names = ["generator", *config["losses"]["generator"], "grad_norm_generator"]
    if config["losses"].get("discriminator"):
        names += ["discriminator", *config["losses"]["discriminator"], "grad_norm_discriminator"]
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        balance = [f"grad_wav_{loss}" for loss in config["losses"]["generator"]]
        writer.writerow(["step", *names, "lr_generator", "seconds", *balance])
        for step in range(2, STEPS + 1, 2):
            falling = [(k + 1) * 3 * np.exp(-step / 40) + 0.4 + 0.15 * rng.random() for k in range(len(names))]
            pulls = [1000.0 * step / 10**k if step in (2, 60, 120) else "" for k in range(len(balance))]
            writer.writerow([step, *(f"{v:.5f}" for v in falling), f"{2e-4 * 0.999**step:.8f}", "0.25", *pulls])
    with (folder / "validation.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "wb_pesq", "stoi", "items", "seconds"])
        for step in (40, 80, 120):
            writer.writerow([step, f"{1.1 + step / 200:.4f}", f"{0.6 + step / 600:.4f}", 2, 1.5])


def _write_metrics(folder: Path, network: str, rows: list, metric_set: MetricSet) -> None:
    """Both tables with the columns that scripts/evaluate.py writes."""
    folder.mkdir(parents=True, exist_ok=True)
    columns, prefixes = metric_set.columns(), list(rows[0][2])
    with (folder / f"{network}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["utterance", "seconds", "length_difference_s", *(p + c for p in prefixes for c in columns), "unscored"]
        )
        for name, seconds, scores in rows:
            values = [scores[p].values.get(c, "") for p in prefixes for c in columns]
            writer.writerow([name, seconds, 0.0, *values, ""])
    with (folder / f"{network}.summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        cells = ["mean", "ci95", "n", "unscored", "reasons"]
        others = [p for p in prefixes if p]
        writer.writerow(
            ["metric", *cells, "missing", *(p + c for p in others for c in cells), "unit", "better", "needs", "paper"]
        )
        summaries = {p: summarise([scores[p] for *_, scores in rows], columns) for p in prefixes}
        for name, metric in metric_set.metrics.items():
            for column in metric.columns:
                line = [column, *_cells(summaries[""][column]), metric_set.missing.get(name, "")]
                for prefix in others:
                    line += _cells(summaries[prefix][column])
                writer.writerow([*line, metric.unit, metric.better, str(metric.needs), metric.needs.paper])


def _cells(summary) -> list:
    blank = [""] * 2 if summary.n == 0 else [summary.mean, summary.ci95]
    return [*blank, summary.n, summary.unscored, summary.reasons_text]


def _write_benchmark(path: Path, seconds: float, memory_mb: float | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    memory = "-" if memory_mb is None else f"{memory_mb:.2f}"
    path.write_text(
        "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
        + "\t".join([f"{seconds:.4f}", f"0:00:{int(seconds):02d}", *[memory] * 4, "0.00", "1.00", "98.00"])
        + f"\t{seconds * 0.9:.2f}\n"
    )
