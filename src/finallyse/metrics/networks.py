"""Metrics that are PyTorch networks trained on listeners' scores; they need no reference."""

from __future__ import annotations

import contextlib
import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finallyse.errors import UserError
from finallyse.hardware import choose_device
from finallyse.metrics import metrics_registry
from finallyse.metrics.base import Metric, Needs, Unscored, Utterance, pieces

if TYPE_CHECKING:
    import torch

RATE = 16000
# Attention grows with the square of the length: a longer file is cut into equal pieces, scored by their mean.
LIMIT_S = 120


def read_wav2vec2_mos(path: Path) -> dict:
    """State of a `Wav2Vec2Mos` from the published Lightning checkpoint, under the current names of transformers.

    Raises UserError for any other file.
    """
    import torch

    from finallyse.models.tensors import load_tensors

    checkpoint = load_tensors(path, "wav2vec2 MOS checkpoint of Zenodo record 6201162", foreign=True)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not (isinstance(state, dict) and all(isinstance(n, str) and torch.is_tensor(t) for n, t in state.items())):
        raise UserError(f"{path}: not the wav2vec2 MOS checkpoint of Zenodo record 6201162: it holds no weights")
    state = {name.removeprefix("model."): value for name, value in state.items()}
    # weight norm of the positional convolution, before and after torch.nn.utils.parametrizations
    position = "encoder.encoder.pos_conv_embed.conv."
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if position + old in state:
            state[f"{position}parametrizations.weight.{new}"] = state.pop(position + old)
    return state


def wav2vec2_mos_network():
    """wav2vec2-base and the head of WV-MOS, with random weights; in evaluation mode.

    [B, T] at 16 kHz, zero mean and unit variance -> [B]: mean over frames of Linear(768, 128), ReLU, Linear(128, 1).
    """
    from torch import nn

    from finallyse.audio.torchaudio_shim import torchaudio  # noqa: F401  transformers imports torchaudio

    # isort: split
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    class Wav2Vec2Mos(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Wav2Vec2Model(Wav2Vec2Config())
            self.dense = nn.Sequential(nn.Linear(768, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 1))

        def forward(self, wav):
            return self.dense(self.encoder(wav).last_hidden_state).mean(dim=(1, 2))

    return Wav2Vec2Mos().eval()


@functools.lru_cache(maxsize=1)
def _wav2vec2_mos(path: Path, device: torch.device):
    network = wav2vec2_mos_network()
    try:
        network.load_state_dict(read_wav2vec2_mos(path), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path}: not the weights of wav2vec2-base with the WV-MOS head ({first})") from error
    return network.to(device)


class _Wav2Vec2Mos(Metric):
    unit = "MOS"

    def prepare(self, wav: np.ndarray) -> np.ndarray:
        """Process the signal before it is normalised to zero mean and unit variance."""
        return wav

    def score(self, utterance: Utterance) -> dict[str, float]:
        import torch

        wav = self.prepare(utterance.signal(RATE))
        if len(wav) < 400:
            raise Unscored("shorter than 25 ms, too short for wav2vec2")
        network = _wav2vec2_mos(self.weights, choose_device(self.device))
        scores, lengths = [], []
        for piece in pieces(len(wav), LIMIT_S * RATE):
            x = wav[piece]
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-7)
            with torch.inference_mode():
                scores.append(network(torch.from_numpy(x)[None].to(choose_device(self.device))).item())
            lengths.append(len(x))
        return {self.name: float(np.average(scores, weights=lengths))}


_WV_MOS = {
    "reference": False,
    "rate": RATE,
    "weights": "weights/wav2vec2-mos/wav2vec2.ckpt",
    "source": "Zenodo record 6201162",
}


@metrics_registry.register("wv-mos")
class WvMos(_Wav2Vec2Mos):
    """WV-MOS: wav2vec2-base fine-tuned on listeners' scores."""

    columns = {"wv-mos": "WV-MOS"}
    rank = 6
    needs = Needs(paper="HiFi++, arXiv 2203.13086, section 4", **_WV_MOS)


@metrics_registry.register("mosnet")
class MosNet(_Wav2Vec2Mos):
    """The same network on peak-normalised audio, as HiFi++ reports it.

    The network's own normalisation to unit variance undoes the gain, so that it differs from wv-mos only where the
    signal is so faint that the 1e-7 added to the variance counts.
    """

    columns = {"mosnet": "MOSNet"}
    needs = Needs(paper="HiFi++, arXiv 2203.13086, section 4 (MOSNet)", **_WV_MOS)

    def prepare(self, wav: np.ndarray) -> np.ndarray:
        return wav / np.abs(wav).max()


@functools.lru_cache(maxsize=1)
def _distillmos(device: torch.device):
    from finallyse.audio.torchaudio_shim import torchaudio  # noqa: F401  distillmos imports torchaudio

    with contextlib.redirect_stdout(io.StringIO()):  # it prints the path of its weights
        from distillmos import ConvTransformerSQAModel

        return ConvTransformerSQAModel().eval().to(device)


@metrics_registry.register("distillmos")
class DistillMos(Metric):
    """DistillMOS (7.68 s windows; PyPI distillmos, which ships its weights)."""

    columns = {"distillmos": "DistillMOS"}
    rank = 4
    unit = "MOS"
    needs = Needs(reference=False, rate=RATE, paper="Stahl and Gamper, ICASSP 2025, arXiv 2502.05356")

    def score(self, utterance: Utterance) -> dict[str, float]:
        import torch

        wav = utterance.signal(RATE)
        network = _distillmos(choose_device(self.device))
        scores, lengths = [], []
        for piece in pieces(len(wav), LIMIT_S * RATE):
            x = torch.from_numpy(wav[piece].copy())[None].to(choose_device(self.device))
            with torch.inference_mode():
                scores.append(network(x).item())
            lengths.append(x.shape[-1])
        return {"distillmos": float(np.average(scores, weights=lengths))}


@functools.lru_cache(maxsize=1)
def _utmosv2(path: Path, device: torch.device):
    from finallyse.models.utmosv2 import load_utmosv2

    return load_utmosv2(path).to(device)


@metrics_registry.register("utmos")
class Utmos(Metric):
    """UTMOSv2: the mean over five draws of its crops, as in its paper, from a fixed seed: two runs agree.

    Not comparable with UTMOS of 2022. The published package may also cut out silence first; this does not.
    """

    columns = {"utmos": "UTMOSv2"}
    rank = 5
    unit = "MOS"
    needs = Needs(
        reference=False,
        rate=RATE,
        paper="UTMOSv2, arXiv 2409.09305",
        weights="weights/utmosv2/fold0_s42_best_model.pth",
        source="huggingface.co/sarulab-speech/UTMOSv2",
    )
    seed, draws = 42, 5

    def score(self, utterance: Utterance) -> dict[str, float]:
        import torch

        wav = torch.from_numpy(utterance.signal(RATE).copy())[None].to(choose_device(self.device))
        network = _utmosv2(self.weights, choose_device(self.device))
        rng = np.random.RandomState(self.seed)
        with torch.inference_mode():
            scores = [network(wav, network.draw(rng, *wav.shape)).item() for _ in range(self.draws)]
        return {"utmos": float(np.mean(scores))}
