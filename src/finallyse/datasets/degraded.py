"""Clean speech, degraded by augmentations as it is read: what FINALLY is trained on (arXiv 2410.05920)."""

from __future__ import annotations

import numpy as np

from finallyse.audio.resample import resample
from finallyse.augmentations import Chain
from finallyse.augmentations.base import fit
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import ManifestDataset, tensor
from finallyse.errors import UserError

WAVLM_HOP = 320  # samples at 16 kHz between WavLM's frames


@datasets_registry.register("augmented_libritts-r")
class AugmentedLibriTTS(ManifestDataset):
    """LibriTTS-R, degraded: a short segment to enhance, in a long context that WavLM sees.

    manifest: CSV of prepared speech.    augmentations: list of {name, probability, args}.    segment: samples to
    enhance; null: whole recordings, which are then their own context.    context: samples that are degraded as a whole
    and that the segment is cut from.    sample_rate: Hz.    seed: of segments and degradations.

    Items: input_wav [segment] (degraded), wav [segment] (clean), context_wav [context] (degraded; input_wav is its part
    from `start` on), start (samples, a multiple of 320: WavLM's frame start / 320 begins there), name. Levels are as
    they are, clamped to [-1, 1]. A recording shorter than the context is followed by zeros, which are degraded with it;
    the segment lies in the recording wherever that is long enough.
    """

    def __init__(
        self,
        manifest: str,
        augmentations: list[dict],
        segment: int | None = 8192,
        context: int = 65536,
        sample_rate: int = 16000,
        seed: int = 0,
    ):
        super().__init__(manifest, sample_rate, None if segment is None else context, seed)
        if segment is not None and not 1 <= segment <= context:
            raise UserError(f"augmented_libritts-r: segment={segment} must lie within 1 and context={context}")
        self.cut, self.chain = segment, Chain(augmentations)

    def item(self, epoch: int, index: int) -> dict:
        path = self.manifest.path(index)
        start, frames = self.place(epoch, index)
        clean = self.read(path, start, frames, self.segment)
        degraded = self.chain.apply(clean, self.input_rate, self.chain.draw(self.seed, epoch, index), str(path))
        degraded = np.clip(degraded, -1, 1)
        cut, begin = len(clean), 0
        if self.cut is not None:
            cut = self.cut
            places = max(0, frames - cut) // WAVLM_HOP + 1
            begin = WAVLM_HOP * int(self.rng(epoch, index, "cut").integers(places))
        context = tensor(degraded, path)
        return {
            "input_wav": context[begin : begin + cut],
            "wav": tensor(clean[begin : begin + cut], path),
            "context_wav": context,
            "start": begin,
            "name": self.manifest.name(index),
        }


@datasets_registry.register("augmented_daps")
class AugmentedDaps(ManifestDataset):
    """DAPS, degraded at 48 kHz; the input is then brought to 16 kHz.

    manifest: CSV of prepared speech at `output_rate`.    augmentations: list of {name, probability, args}, with noises
    and impulse responses at `output_rate`.    segment: samples of the target, a multiple of output_rate / input_rate;
    null: whole recordings, of which there are as many as the manifest has.    virtual_len: items of an epoch; each is
    a segment from anywhere in the corpus, every place being as likely.    silence_ratio: up to this share of a segment
    is silence around the speech, the amount and its place being random.    input_rate, output_rate: Hz.
    seed: of segments, silences and degradations.

    Items: input_wav [segment * input_rate / output_rate] (degraded), wav [segment] (clean), name. Levels are as they
    are, clamped to [-1, 1]. A recording shorter than a segment is followed by zeros.
    """

    def __init__(
        self,
        manifest: str,
        augmentations: list[dict],
        segment: int | None = 24576,
        virtual_len: int = 100_000,
        silence_ratio: float = 0.0,
        input_rate: int = 16000,
        output_rate: int = 48000,
        seed: int = 0,
    ):
        super().__init__(manifest, output_rate, segment, seed)
        self.input_rate = input_rate
        if output_rate % input_rate:
            raise UserError(f"augmented_daps: output_rate={output_rate} is not a multiple of input_rate={input_rate}")
        self.factor = output_rate // input_rate
        if segment is not None and segment % self.factor:
            raise UserError(f"augmented_daps: segment={segment} must be a multiple of {self.factor}")
        if virtual_len < 1:
            raise UserError(f"augmented_daps: virtual_len={virtual_len}: must be at least 1")
        if not 0 <= silence_ratio < 1:
            raise UserError(f"augmented_daps: silence_ratio={silence_ratio}: must lie within 0 and 1, 1 excluded")
        self.virtual_len, self.silence_ratio, self.chain = virtual_len, silence_ratio, Chain(augmentations)
        # Where each recording's possible places end, all recordings in a row.
        places = np.maximum(self.manifest.samples - (segment or 1), 0) + 1
        self.ends = np.cumsum(places)

    def __len__(self) -> int:
        return len(self.manifest) if self.segment is None else self.virtual_len

    def item(self, epoch: int, index: int) -> dict:
        row, clean = self._whole(index) if self.segment is None else self._segment(epoch, index)
        path = self.manifest.path(row)
        degraded = self.chain.apply(clean, self.output_rate, self.chain.draw(self.seed, epoch, index), str(path))
        degraded = fit(resample(degraded, self.output_rate, self.input_rate), len(clean) // self.factor)
        return {
            "input_wav": tensor(np.clip(degraded, -1, 1), path),
            "wav": tensor(clean, path),
            "name": self.manifest.name(row),
        }

    def _whole(self, index: int) -> tuple[int, np.ndarray]:
        length = -(-int(self.manifest.samples[index]) // self.factor) * self.factor
        return index, self.read(self.manifest.path(index), 0, -1, length)

    def _segment(self, epoch: int, index: int) -> tuple[int, np.ndarray]:
        rng = self.rng(epoch, index, "segment")
        place = int(rng.integers(self.ends[-1]))
        row = int(np.searchsorted(self.ends, place, side="right"))
        start = int(self.ends[row]) - 1 - place
        silence = int(rng.uniform(0, self.silence_ratio) * self.segment)
        before = int(rng.integers(silence + 1))
        frames = min(self.segment - silence, int(self.manifest.samples[row]) - start)
        wav = np.zeros(self.segment, np.float32)
        wav[before : before + frames] = self.read(self.manifest.path(row), start, frames)
        return row, wav
