"""Speech and its mel spectrograms, for vocoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finallyse.audio.mel import LogMel
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import PEAK, ManifestDataset, Task, tensor
from finallyse.errors import UserError


@datasets_registry.register("mel_dataset")
class MelDataset(ManifestDataset):
    """Speech with the log-mel spectrograms of HiFi-GAN's input and of its mel loss (arXiv 2010.05646).

    Args:
        manifest: CSV of prepared speech, or a list of them; one that is listed twice is used twice per epoch.
        segment: samples per item, a multiple of `hop`; null: whole recordings, cut to a multiple of `hop`.
        sample_rate: sample rate of the manifest's recordings, Hz.
        peak: peak to which the whole recording is normalised; silence is unchanged.
        seed: seed of the segments.
        mels_folder: precomputed log-mels `<name>.npy` [n_mels, F] of the whole recordings (of an acoustic model that
            the vocoder is tuned to), used as `mel`; the item is then not normalised. Segments begin at a frame.
        n_fft, hop, win: length, hop and window of the STFT of `mel`, samples.
        n_mels: number of mel bands of `mel`.
        fmin, fmax: lowest and highest frequency of `mel`, Hz.
        fmax_loss: highest frequency of `mel_for_loss`, Hz; null: half the sample rate.

    Items: wav [T] and input_wav (the same), mel [n_mels, T/hop], mel_for_loss [n_mels, T/hop], name. Recordings shorter
    than `segment` are padded with zeros.
    """

    @classmethod
    def task_of(cls, **args) -> Task:
        return Task("vocoder: speech from its log-mel spectrogram", "", "")

    def __init__(
        self,
        manifest: str | list[str],
        segment: int | None = 8192,
        sample_rate: int = 16000,
        peak: float = PEAK,
        seed: int = 0,
        mels_folder: str | None = None,
        n_fft: int = 1024,
        hop: int = 256,
        win: int = 1024,
        n_mels: int = 80,
        fmin: float = 0.0,
        fmax: float = 8000.0,
        fmax_loss: float | None = None,
    ):
        super().__init__(manifest, sample_rate, segment, seed)
        if segment is not None and segment % hop:
            raise UserError(f"mel_dataset: segment={segment} must be a multiple of hop={hop}")
        self.peak, self.hop, self.n_mels = peak, hop, n_mels
        self.mels_folder = None if mels_folder is None else Path(mels_folder)
        peaks = self.manifest.peaks
        if mels_folder is None and not (np.isfinite(peaks) & (peaks >= 0)).all():
            raise UserError(
                f"{self.manifest.file}: does not give every recording's `peak`, by which it is normalised; "
                "prepare its corpus again"
            )
        self.mel = LogMel(sample_rate, n_fft, hop, win, n_mels, fmin, fmax)
        self.mel_for_loss = LogMel(sample_rate, n_fft, hop, win, n_mels, fmin, fmax_loss)

    @classmethod
    def level_of(cls, peak: float = PEAK, mels_folder: str | None = None, **_others) -> dict[str, float] | None:
        return {"peak": peak} if mels_folder is None else None

    def item(self, epoch: int, index: int) -> dict:
        path, name = self.manifest.path(index), self.manifest.name(index)
        start, frames = self.place(epoch, index, multiple=1 if self.mels_folder is None else self.hop)
        length = self.segment or max(self.hop, frames // self.hop * self.hop)
        wav = self.read(path, start, frames, length)
        if self.mels_folder is None:
            largest = float(self.manifest.peaks[index])
            wav = wav if largest == 0 else wav * np.float32(self.peak / largest)
        wav = tensor(wav, path)
        mel_for_loss = self.mel_for_loss(wav[None])[0]
        if self.mels_folder is not None:
            mel = self._ready_made(name, start // self.hop, length // self.hop)
        elif self.mel.fmax == self.mel_for_loss.fmax:
            mel = mel_for_loss
        else:
            mel = self.mel(wav[None])[0]
        return {"input_wav": wav, "wav": wav, "mel": mel, "mel_for_loss": mel_for_loss, "name": name}

    def _ready_made(self, name: str, start: int, frames: int) -> torch.Tensor:
        """Frames of a precomputed mel, [n_mels, frames]; the last frame is repeated past the end."""
        path = self.mels_folder / f"{name}.npy"
        try:
            mel = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as the mel of {name} ({error})") from error
        if mel.ndim != 2 or mel.shape[0] != self.n_mels or mel.shape[1] <= start:
            raise UserError(f"{path}: has shape {list(mel.shape)}, expected [{self.n_mels}, more than {start} frames]")
        mel = np.asarray(mel[:, start : start + frames], dtype=np.float32)
        if not np.isfinite(mel).all():
            raise UserError(f"{path}: holds values that are not finite")
        return torch.from_numpy(np.pad(mel, ((0, 0), (0, frames - mel.shape[1])), mode="edge"))
