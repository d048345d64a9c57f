"""Enhances the validation set of an experiment with its checkpoint, and scores the result."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from finallyse.audio.io import write_wav
from finallyse.datasets import datasets_registry
from finallyse.errors import UserError
from finallyse.inference.enhancer import Enhancer
from finallyse.metrics import MetricSet, Scores, Utterance
from finallyse.models.checkpoint import load_checkpoint
from finallyse.options import Experiment
from finallyse.progress import Progress

log = logging.getLogger(__name__)


def enhance_validation(experiment: Experiment, path: Path, folder: Path) -> tuple[MetricSet, list[Scores]]:
    """Enhance every utterance of `experiment.data.validation` and write `folder`/{enhanced,reference,noisy}/<name>.wav.

    enhanced/ and reference/ are at the network's rate, noisy/ at the input's; all are WAVs of 32-bit floats, so that
    nothing is clipped or rounded before scoring. If the dataset has no target, there is no reference/; a vocoder,
    whose input is the target's mel spectrogram, has no noisy/. The folder is created atomically, at the end.

    Returns:
        The metrics of `experiment.metrics` and each utterance's scores.

    Raises:
        UserError: for a checkpoint of another network, and for a dataset that does not match the network.
    """
    dataset = datasets_registry[experiment.data.validation.name](**experiment.data.validation.args)
    checkpoint = load_checkpoint(path)
    name = checkpoint.config["generator"]["name"]
    if name != experiment.generator.name:
        wanted = experiment.generator.name
        raise UserError(f"{path}: contains a {name}, the experiment is for {wanted}; check exp.run_name")
    enhancer = Enhancer.from_checkpoint(checkpoint, wavlm=experiment.wavlm, device=experiment.exp.device)
    if dataset.input_rate != enhancer.input_rate:
        raise UserError(
            f"data.validation gives {dataset.input_rate} Hz, the network of {path} takes {enhancer.input_rate} Hz"
        )
    metrics = MetricSet(experiment.metrics, experiment.exp.resources, enhancer.device.type)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    scores, written = [], set()
    progress = Progress(f"inference {experiment.exp.run_name}", len(dataset), "utterances", every_s=10)
    for index in range(len(dataset)):
        item = dataset[index]
        name = str(item["name"])
        if name in written:
            raise UserError(f"data.validation: two utterances are called {name!r}")
        written.add(name)
        enhanced = enhance_item(enhancer, item)
        _write(part / "enhanced" / f"{name}.wav", enhanced, enhancer.output_rate)
        reference = item.get("wav")
        if reference is not None:
            reference = np.asarray(reference)
            _write(part / "reference" / f"{name}.wav", reference, dataset.output_rate)
        if enhancer.input_kind != "mel":
            _write(part / "noisy" / f"{name}.wav", np.asarray(item["input_wav"]), dataset.input_rate)
        if metrics.metrics:
            scores.append(metrics.score(Utterance(enhanced, enhancer.output_rate, reference, dataset.output_rate)))
        progress.add(1)
    progress.close()
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return metrics, scores


def enhance_item(enhancer: Enhancer, item: dict) -> np.ndarray:
    """The network's output for an item of a dataset, float32 [T] at its output rate."""
    if enhancer.input_kind == "mel" and "mel" in item:  # it may be precomputed, not that of `wav`
        return enhancer.render_mel(np.asarray(item["mel"], np.float32), enhancer.generator.hop)
    return enhancer.render_whole(np.asarray(item["input_wav"], np.float32)[None])[0]


def _write(path: Path, wav: np.ndarray, sample_rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, wav, sample_rate, subtype="FLOAT")
