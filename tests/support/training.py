"""Small experiments on a few embedded clips, prepared as by the workflow, for the tests of training."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch

from finallyse.audio.io import read, write_wav
from finallyse.audio.resample import resample
from finallyse.audio.torchaudio_shim import torchaudio  # noqa: F401  transformers imports it
from finallyse.corpora.manifest import COLUMNS, write_csv
from support import NETWORKS, ROOT
from support.networks import SMALL_WAVLM, write_wavlm

ONE_OF_EACH_TRAINER = tuple(n for n in NETWORKS if n not in ("hifipp_bwe2", "hifipp_bwe4", "hifipp_denoise"))
CLIPS = {"train": ("alpha_01", "joe_01", "kumo_04", "nezumi_01", "tebukuro_04"), "validation": ("alpha_07",)}


def prepare_resources(folder: Path) -> Path:
    """The part of a resources folder that training reads, from a few clips, with a small random WavLM."""
    rng = np.random.default_rng(0)
    for rate in (16000, 48000):
        for corpus in ("vctk", "libritts-r", "daps"):
            for split, names in CLIPS.items():
                write_corpus(folder, corpus, rate, split, {name: clip(name, rate) for name in names})
        for split, names in {"train": CLIPS["train"], "validation": CLIPS["validation"], "test": ("joe_07",)}.items():
            clean = {name: clip(name, rate) for name in names}
            noisy = {name: wav + 0.01 * rng.standard_normal(len(wav)) for name, wav in clean.items()}
            write_corpus(folder, "voicebank", rate, split, clean, noisy)
        write_corpus(folder, "dns5-noise", rate, "train", {"white": 0.1 * rng.standard_normal(rate)})
        decay = np.exp(-np.arange(rate // 10) / (0.02 * rate))
        write_corpus(folder, "dns5-rooms", rate, "train", {"room": 0.3 * decay * rng.standard_normal(rate // 10)})
        write_corpus(folder, "micirp", rate, "train", {"microphone": np.array([0.9, 0.3, -0.1])})
    write_wavlm(folder / "weights" / "wavlm-large", **SMALL_WAVLM)
    return folder


@cache
def clip(name: str, rate: int) -> np.ndarray:
    wav, own_rate = read(ROOT / "resources" / "demo" / "speech" / f"{name}.flac")
    return 0.9 * resample(wav[: 3 * own_rate], own_rate, rate)


def write_corpus(folder: Path, corpus: str, rate: int, split: str, wavs: Mapping, noisy: Mapping | None = None) -> None:
    prepared, rows = folder / "prepared" / corpus / str(rate), []
    for name, wav in wavs.items():
        row = {"path": f"wav/{name}.wav", "samples": len(wav), "rate": rate, "speaker": name.split("_")[0]}
        (prepared / "wav").mkdir(parents=True, exist_ok=True)
        gain = write_wav(prepared / row["path"], wav, rate, overload="scale")
        peak = gain * float(np.abs(wav).max())
        row |= {"split": split, "peak": peak, "source_checksum": "0" * 64, "gain": gain}
        if noisy:
            row["noisy_path"] = f"wav/{name}_noisy.wav"
            write_wav(prepared / row["noisy_path"], noisy[name], rate, overload="scale")
        rows.append(row | {"offset": 0})
    write_csv(prepared / f"{split}.csv", (*COLUMNS, "offset", *(["noisy_path"] if noisy else [])), rows)


@cache
def _experiments(overlay: str) -> dict:
    from finallyse.config import load_pipeline
    from finallyse.schema import build_schema

    files = [ROOT / "config" / "config.yaml", ROOT / overlay]
    overrides = {"results": "RESULTS", "resources": "RESOURCES"}
    return load_pipeline(files, overrides, build_schema())["experiments"]


def experiment(network: str, resources: Path, results: Path, overlay: str = "tests/data/small.yaml", **changes) -> dict:
    """A small experiment of a network, by its recipe or by another `overlay` such as the demo's.

    changes: dotted options with `__` for the dots.
    """
    text = (
        json.dumps(_experiments(overlay)[network]).replace("RESULTS", str(results)).replace("RESOURCES", str(resources))
    )
    made = copy.deepcopy(json.loads(text))
    small = {"data__batch_size": 2, "data__sub_batch_size": None, "data__num_workers": 0, "exp__threads": 1}
    small |= {
        "metrics": ["si_sdr"],
        "train__val_items": 1,
        "train__val_step": None,
        "train__best": None,
        "train__balance_step": None,
        "generator__init_from": None,
        "discriminators__init_from": None,
    }
    for key, value in (small | changes).items():
        *path, last = key.split("__")
        inside = made
        for step in path:
            inside = inside[step]
        assert last in inside, key
        inside[last] = value
    data = made["data"]["train"]["args"]
    data["segment"] //= 2 if network.startswith("finally") else 4
    if "context" in data:
        data["context"] //= 4
    for part in made["discriminators"]["parts"].values():
        if "filters" in part["args"]:
            part["args"]["filters"] = 4
    return made


def write_yaml(settings: Mapping, path: Path) -> Path:
    """Write an experiment to a file for scripts/train.py."""
    from omegaconf import OmegaConf

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    return path


def history(results: Path, network: str) -> list[dict[str, float]]:
    """The rows of history.csv, each with its non-empty columns, without times."""
    with (results / "state" / network / "history.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(file)]


def checkpoint(results: Path, network: str) -> dict:
    """All weights of a checkpoint, flat."""
    loaded = torch.load(results / f"{network}.ckpt", weights_only=True)
    weights = {f"generator.{name}": value for name, value in loaded["generator"].items()}
    for part, state in loaded["discriminators"].items():
        weights |= {f"{part}.{name}": value for name, value in state.items()}
    return weights


def assert_same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Assert that all weights are equal, bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} weights differ, e.g. {different[0]}"
