"""Guards against invented speech: a generative network can score well on quality while it says other words or has
another voice than the recording.

Both compare with the clean reference. Their networks come with optional packages (requirements-guards.txt).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finallyse.errors import UserError
from finallyse.hardware import choose_device
from finallyse.metrics import metrics_registry
from finallyse.metrics.base import Metric, Needs, Unscored, Utterance

if TYPE_CHECKING:
    import torch

RATE = 16000
# Folder of a faster-whisper model, or the name of one in faster-whisper's cache: used instead of the registry's.
WHISPER = "FINALLYSE_WHISPER"


# ---------------------------------------------------------------------------------------------------------------------
# The words


def words(text: str) -> list[str]:
    """Words of a transcript as they are compared: lower case, no punctuation; `it's` is `its`, a hyphen a space."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", re.sub(r"['’]", "", text)).split()


def edits(spoken: Sequence[str], heard: Sequence[str]) -> int:
    """Least number of substitutions, deletions and insertions of words that turn `spoken` into `heard`."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(spoken, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


@functools.lru_cache(maxsize=1)
def _whisper(folder: Path):
    """The Whisper model of `folder` on one thread of the CPU: evaluation is parallel over files."""
    from faster_whisper import WhisperModel

    try:
        return WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{folder}: not a faster-whisper model ({' '.join(str(error).split())})") from error


@functools.cache
def _cached_model(name: str) -> Path | None:
    """The folder of the model `name` if faster-whisper has downloaded it before; downloads nothing."""
    try:
        from faster_whisper import download_model

        return Path(download_model(name, local_files_only=True))
    except (ImportError, ValueError, OSError):
        return None


@metrics_registry.register("wer")
class WordErrorRate(Metric):
    """Word error rate, %: substitutions, deletions and insertions per word of the reference, as Whisper hears both.

    The corpora's manifests have no texts, so the transcript of the reference stands for what was said: an output that
    sounds the same has 0 %, whatever Whisper mishears in both. Words without punctuation and case; beam search, without
    the sampled second attempts of Whisper, so that two runs agree. A multilingual model takes the reference's language.

    The model is Whisper base.en as converted for faster-whisper, which the workflow downloads, or the one that the
    environment variable FINALLYSE_WHISPER names: a folder (config.json, model.bin, tokenizer.json, vocabulary), or a
    name such as small.en if faster-whisper has it in its cache. The metric itself downloads nothing. Always on the CPU.
    """

    columns = {"wer": "WER"}
    unit = "%"
    better = "lower"
    needs = Needs(
        reference=True,
        rate=RATE,
        paper="Whisper, arXiv 2212.04356",
        weights="weights/whisper/model.bin",
        source="huggingface.co/Systran/faster-whisper-base.en",
        packages=("faster_whisper", "ctranslate2"),
    )

    def __init__(self, resources: str = "resources", device: str = "auto"):
        super().__init__(resources, device)
        self._references: dict[bytes, tuple[list[str], str]] = {}

    @property
    def weights(self) -> Path:
        """model.bin of the folder or name in FINALLYSE_WHISPER, or else of the resources."""
        chosen = os.environ.get(WHISPER)
        if not chosen:
            return super().weights
        return (Path(chosen) if Path(chosen).is_dir() else _cached_model(chosen) or Path(chosen)) / "model.bin"

    def missing(self) -> str | None:
        """Why it cannot be computed at all, or None if it can."""
        reason = super().missing()
        if self.absent():
            return reason
        tokenizer = self.weights.with_name("tokenizer.json")  # without it, faster-whisper would download one
        if not reason and tokenizer.exists():
            return None
        if chosen := os.environ.get(WHISPER):
            return (
                f"missing: {WHISPER}={chosen} is neither a folder with model.bin and tokenizer.json nor a model in "
                "faster-whisper's cache; faster_whisper.download_model(NAME) downloads one"
            )
        return reason or f"missing: needs {tokenizer} ({self.needs.source})"

    def score(self, utterance: Utterance) -> dict[str, float]:
        enhanced, reference = utterance.pair(RATE)
        key = hashlib.sha256(reference.tobytes()).digest()
        if key not in self._references:  # validations measure the same ones again and again
            self._references[key] = self._transcribe(reference, None)
        spoken, language = self._references[key]
        if not spoken:
            raise Unscored("Whisper hears no word in the reference")
        heard, _ = self._transcribe(enhanced, language)
        return {"wer": 100 * edits(spoken, heard) / len(spoken)}

    def _transcribe(self, wav: np.ndarray, language: str | None) -> tuple[list[str], str]:
        """The words in wav [T], 16 kHz, and their language; None: English for an English model, else detected."""
        segments, info = _whisper(self.weights.parent).transcribe(
            wav, language=language, beam_size=5, temperature=0.0, condition_on_previous_text=False
        )
        return words(" ".join(segment.text for segment in segments)), info.language


# ---------------------------------------------------------------------------------------------------------------------
# The voice

# The voice encoder's input: mel power spectra of frames of 25 ms every 10 ms, in pieces of 160 frames, 1.3 a second.
FRAME, HOP, BANDS = 400, 160, 40
PIECE, STEP = 160, 77
COVERAGE = 0.75  # of a piece that goes beyond the end; one that covers less is left out
LEAST_LEVEL = -30.0  # dBFS


def speech_only(wav: np.ndarray) -> np.ndarray:
    """wav [T], 16 kHz, without its longer pauses [T'], at -30 dBFS or more: Resemblyzer's `preprocess_wav`.

    WebRTC's detector decides on windows of 30 ms. A window is kept if most of the eight around it are speech, and
    so are three more on each side.
    """
    import webrtcvad

    level = 10 * np.log10(np.mean(wav.astype(np.float64) ** 2))
    wav = (wav * 10 ** (max(0.0, LEAST_LEVEL - level) / 20)).astype(np.float32)
    size = 30 * RATE // 1000
    windows = wav[: len(wav) // size * size].reshape(-1, size)
    pcm = np.round(windows.clip(-1, 1) * 32767).astype(np.int16)
    detector = webrtcvad.Vad(3)
    voiced = np.array([detector.is_speech(window.tobytes(), RATE) for window in pcm], dtype=int)
    if not voiced.any():
        return windows[:0].ravel()
    majority = np.convolve(np.pad(voiced, (3, 4)), np.ones(8), "valid") > 4
    extended = np.convolve(np.pad(majority, 3), np.ones(7), "valid") > 0
    return windows[extended].ravel()


@functools.cache
def _mel_bases() -> tuple[np.ndarray, np.ndarray]:
    """Hann window [400] and mel filterbank [40, 201]."""
    from finallyse.audio.mel import mel_filterbank

    return np.hanning(FRAME + 1)[:-1], mel_filterbank(RATE, FRAME, BANDS, 0.0, RATE / 2)


def mel_pieces(wav: np.ndarray) -> np.ndarray:
    """Pieces of 1.6 s of wav [T], 16 kHz, as mel power spectra, float32 [N, 160, 40]; zeros follow the end."""
    frames = -(-(len(wav) + 1) // HOP)
    starts = range(0, max(1, frames - PIECE + STEP + 1), STEP)
    if len(starts) > 1 and len(wav) - starts[-1] * HOP < COVERAGE * PIECE * HOP:
        starts = starts[:-1]
    padded = np.pad(wav, (FRAME // 2, FRAME // 2 + PIECE * HOP))
    window, bank = _mel_bases()
    pieces = []
    for start in starts:
        samples = padded[start * HOP :][: (PIECE - 1) * HOP + FRAME]
        spectra = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP] * window)
        pieces.append((np.abs(spectra) ** 2 @ bank.T).astype(np.float32))
    return np.stack(pieces)


@functools.lru_cache(maxsize=1)
def _voice_encoder(device: torch.device):
    """Resemblyzer's network with the weights of its package: [N, 160, 40] -> [N, 256] of unit length.

    The package itself is not imported: its other requirements do not go with current ones.
    """
    from torch import nn

    from finallyse.models.tensors import load_tensors

    class VoiceEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(BANDS, 256, num_layers=3, batch_first=True)
            self.linear = nn.Linear(256, 256)

        def forward(self, mels):
            _, (hidden, _) = self.lstm(mels)
            return nn.functional.normalize(self.linear(hidden[-1]).relu(), dim=-1)

    package = importlib.util.find_spec("resemblyzer")
    path = Path(package.submodule_search_locations[0]) / "pretrained.pt"
    state = load_tensors(path, "voice encoder")["model_state"]
    network = VoiceEncoder().eval()
    network.load_state_dict({name: state[name] for name in network.state_dict()})  # it also has the training loss's
    return network.to(device)


@metrics_registry.register("speaker_similarity")
class SpeakerSimilarity(Metric):
    """Cosine of the voices of output and reference, 0 to 1, by Resemblyzer's encoder (weights in its package).

    A voice is the mean of the encoder's vectors of pieces of 1.6 s, pauses removed, as `embed_utterance` of the package
    computes it.
    """

    columns = {"speaker_similarity": "Speaker similarity"}
    needs = Needs(
        reference=True,
        rate=RATE,
        paper="Wan et al., ICASSP 2018, arXiv 1710.10467 (the encoder); Resemblyzer 0.1.4",
        packages=("resemblyzer", "webrtcvad"),
    )
    batch = 64

    def score(self, utterance: Utterance) -> dict[str, float]:
        enhanced, reference = utterance.pair(RATE)
        voices = [self.voice(wav, role) for wav, role in ((enhanced, "enhanced"), (reference, "reference"))]
        return {"speaker_similarity": float(voices[0] @ voices[1])}

    def voice(self, wav: np.ndarray, role: str) -> np.ndarray:
        """The voice in wav [T], 16 kHz: [256], of unit length; raises Unscored if there is no speech."""
        import torch

        speech = speech_only(wav) if wav.any() else wav[:0]
        if not len(speech):
            raise Unscored(f"no speech is found in the {role}")
        device = choose_device(self.device)
        with torch.inference_mode():
            vectors = [_voice_encoder(device)(mels.to(device)).cpu() for mels in self._batches(speech)]
        mean = torch.cat(vectors).double().mean(dim=0).numpy()
        return mean / np.linalg.norm(mean)

    def _batches(self, speech: np.ndarray) -> Sequence[torch.Tensor]:
        import torch

        return torch.from_numpy(mel_pieces(speech)).split(self.batch)
