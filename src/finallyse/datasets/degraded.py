"""Clean speech, degraded on the fly by augmentations: FINALLY's training data (arXiv 2410.05920)."""

from __future__ import annotations

import numpy as np

from finallyse.audio.resample import resample
from finallyse.augmentations import Chain
from finallyse.augmentations.base import fit, interval
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import ManifestDataset, Task, evenly_spread, tensor
from finallyse.errors import UserError

WAVLM_HOP = 320  # samples at 16 kHz between WavLM's frames


class DegradedDataset(ManifestDataset):
    """Clean recordings as target; as input the same, degraded in a context and resampled to `input_rate`.

    augmentations: list of {name, probability, args}.    segment: samples of the target; None: whole recordings.
    context: samples degraded as a whole, including the segment; None: the segment alone.
    input_rate, output_rate: Hz; the recordings are at `output_rate`.
    level_db: [min, max] largest magnitude of the input, dBFS, to which input and target are scaled by the same factor;
    None: levels are as recorded, clamped to [-1, 1].
    """

    def __init__(
        self,
        manifest: str | list[str],
        augmentations: list[dict],
        segment: int | None,
        context: int | None,
        input_rate: int,
        output_rate: int,
        seed: int,
        level_db: list[float] | None = None,
    ):
        super().__init__(manifest, output_rate, segment, seed)
        self.level_db = level_db and interval(level_db, "level_db", -80, 0)
        if output_rate % input_rate:
            raise UserError(f"output_rate={output_rate} is not a multiple of input_rate={input_rate}")
        self.input_rate, self.factor = input_rate, output_rate // input_rate
        for name, samples in {"segment": segment, "context": context}.items():
            if samples is not None and samples % self.factor:
                raise UserError(f"{name}={samples} must be a multiple of output_rate / input_rate, {self.factor}")
        if segment is not None and context is not None and segment > context:
            raise UserError(f"segment={segment} is longer than context={context}, which it is cut from: shorten it")
        self.has_context, self.cut, self.chain = context is not None, segment, Chain(augmentations)
        if segment is not None and context is not None:
            self.segment = context  # samples taken from a recording

    def degraded(self, epoch: int, index: int, row: int, clean: np.ndarray, begin: int, cut: int) -> dict:
        """The item of `clean` [T], from row `row` of the manifest; its segment is clean[begin : begin + cut].

        T, begin and cut are multiples of output_rate / input_rate.
        """
        path = self.manifest.path(row)
        degraded = self.chain.apply(clean, self.output_rate, self.chain.draw(self.seed, epoch, index), str(path))
        degraded = fit(resample(degraded, self.output_rate, self.input_rate), len(clean) // self.factor)
        if self.level_db and (peak := float(np.abs(degraded).max())):
            gain = np.float32(10 ** (self.rng(epoch, index, "level").uniform(*self.level_db) / 20) / peak)
            degraded, clean = degraded * gain, clean * gain
        context, start = tensor(np.clip(degraded, -1, 1), path), begin // self.factor
        item = {
            "input_wav": context[start : start + cut // self.factor],
            "wav": tensor(clean[begin : begin + cut], path),
        }
        if self.has_context:
            item |= {"context_wav": context, "start": start}
        return item | {"name": self.manifest.name(row)}


@datasets_registry.register("augmented_libritts-r")
class AugmentedLibriTTS(DegradedDataset):
    """LibriTTS-R, degraded: a short segment to enhance, in a long context that WavLM sees.

    Args:
        manifest: CSV of prepared speech, or a list of them; one that is listed twice is used twice per epoch.
        augmentations: list of {name, probability, args}.
        segment: samples to enhance; null: whole recordings, which are then their own context.
        context: samples degraded as a whole; the segment is cut from them.
        sample_rate: sample rate of the manifest's recordings, Hz.
        seed: seed of segments and degradations.

    Items: input_wav [segment] (degraded), wav [segment] (clean), context_wav [context] (degraded; input_wav is its part
    from `start` on), start (samples, a multiple of 320: WavLM's frame start / 320 begins there), name. Levels are not
    normalised, but clamped to [-1, 1]. A recording shorter than the context is padded with zeros, which are degraded
    with it; the segment is within the recording if that is long enough.
    """

    @classmethod
    def task_of(cls, **args) -> Task:
        return Task("restoration at 16 kHz", "Noisy", "the input at 16 kHz")

    def __init__(
        self,
        manifest: str | list[str],
        augmentations: list[dict],
        segment: int | None = 8192,
        context: int = 65536,
        sample_rate: int = 16000,
        seed: int = 0,
    ):
        super().__init__(manifest, augmentations, segment, context, sample_rate, sample_rate, seed)

    def item(self, epoch: int, index: int) -> dict:
        start, frames = self.place(epoch, index)
        clean = self.read(self.manifest.path(index), start, frames, self.segment)
        cut, begin = len(clean), 0
        if self.cut is not None:
            cut = self.cut
            places = max(0, frames - cut) // WAVLM_HOP + 1
            begin = WAVLM_HOP * int(self.rng(epoch, index, "cut").integers(places))
        return self.degraded(epoch, index, index, clean, begin, cut)


@datasets_registry.register("degraded_speech")
class DegradedSpeech(DegradedDataset):
    """Recordings of one or several corpora, degraded: for networks that clean speech at its own rate.

    Args:
        manifest: CSV of prepared speech, or a list of them; one that is listed twice is used twice per epoch.
        augmentations: list of {name, probability, args}.
        segment: samples per item; null: whole recordings.
        context: samples degraded as a whole, from which the segment is cut, so that reverberation includes sound before
            the segment; null: the segment is degraded alone.
        level_db: [min, max] largest magnitude of the input, dBFS, to which input and target are scaled together; null:
            as recorded, clamped to [-1, 1].
        limit: number of recordings, evenly spread over the list; null: all.
        sample_rate: sample rate of the manifests' recordings, Hz.
        seed: seed of segments, degradations and levels.

    Items: input_wav [segment] (degraded), wav [segment] (clean), name. Recordings shorter than the segment are padded
    with zeros before they are degraded.
    """

    @classmethod
    def task_of(cls, **args) -> Task:
        return Task("speech enhancement", "Noisy", "the input, degraded")

    def __init__(
        self,
        manifest: str | list[str],
        augmentations: list[dict],
        segment: int | None = 32768,
        context: int | None = None,
        level_db: list[float] | None = None,
        limit: int | None = None,
        sample_rate: int = 16000,
        seed: int = 0,
    ):
        super().__init__(manifest, augmentations, segment, context, sample_rate, sample_rate, seed, level_db)
        self.has_context = False  # it is not part of the items
        self.chosen = evenly_spread(len(self.manifest), limit)

    def __len__(self) -> int:
        return len(self.chosen)

    def item(self, epoch: int, index: int) -> dict:
        row = int(self.chosen[index])
        start, frames = self.place(epoch, row)
        clean = self.read(self.manifest.path(row), start, frames, self.segment)
        cut = len(clean) if self.cut is None else self.cut
        begin = int(self.rng(epoch, row, "cut").integers(max(0, min(frames, len(clean)) - cut) + 1))
        return self.degraded(epoch, row, row, clean, begin, cut)


@datasets_registry.register("augmented_daps")
class AugmentedDaps(DegradedDataset):
    """DAPS, degraded at 48 kHz; the input is then resampled to 16 kHz.

    Args:
        manifest: CSV of prepared speech at `output_rate`, or a list of them; one that is listed twice is drawn twice as
            often.
        augmentations: list of {name, probability, args}, with noises and impulse responses at `output_rate`.
        segment: samples of the target; null: whole recordings, one item per row of the manifest, which are then their
            own context.
        context: samples degraded as a whole, from which the segment is cut, so that noise follows the level of seconds
            of speech, reverberation includes sound before the segment, and WavLM sees more than the segment; null: the
            segment is degraded alone, and items have neither `context_wav` nor `start`.
        virtual_len: items per epoch; each is a segment from a uniformly random position in the corpus.
        silence_ratio: up to this share of a segment is silence around its speech, of random length and position; the
            context's speech continues before and after, as around two pauses.
        input_rate, output_rate: rate of the input and the target, Hz; segment and context are multiples of
            output_rate / input_rate.
        seed: seed of segments, silences and degradations.

    Items: input_wav [segment * input_rate / output_rate] (degraded), wav [segment] (clean), context_wav [context *
    input_rate / output_rate] (degraded; input_wav is its part from `start` on), start (samples at input_rate, a
    multiple of 320: WavLM's frame start / 320 begins there), name. Levels are not normalised, but clamped to [-1, 1].
    The context is at a random position around the segment, within the recording as far as steps of 320 samples allow; a
    recording shorter than segment or context is padded with zeros, which are degraded with it.
    """

    @classmethod
    def task_of(cls, **args) -> Task:
        return Task("restoration from 16 to 48 kHz", "Noisy", "the input at 16 kHz")

    def __init__(
        self,
        manifest: str | list[str],
        augmentations: list[dict],
        segment: int | None = 24576,
        context: int | None = 196608,
        virtual_len: int = 100_000,
        silence_ratio: float = 0.0,
        input_rate: int = 16000,
        output_rate: int = 48000,
        seed: int = 0,
    ):
        super().__init__(manifest, augmentations, segment, context, input_rate, output_rate, seed)
        if virtual_len < 1:
            raise UserError(f"augmented_daps: virtual_len={virtual_len}: must be at least 1")
        if not 0 <= silence_ratio < 1:
            raise UserError(f"augmented_daps: silence_ratio={silence_ratio}: must lie within 0 and 1, 1 excluded")
        self.virtual_len, self.silence_ratio = virtual_len, silence_ratio
        # End of each recording's possible positions, all recordings concatenated.
        places = np.maximum(self.manifest.samples - (segment or 1), 0) + 1
        self.ends = np.cumsum(places)

    def __len__(self) -> int:
        return len(self.manifest) if self.cut is None else self.virtual_len

    def item(self, epoch: int, index: int) -> dict:
        if self.cut is None:
            length = -(-int(self.manifest.samples[index]) // self.factor) * self.factor
            clean = self.read(self.manifest.path(index), 0, -1, length)
            return self.degraded(epoch, index, index, clean, 0, length)
        row, clean, begin = self._excerpt(epoch, index)
        return self.degraded(epoch, index, row, clean, begin, self.cut)

    def _excerpt(self, epoch: int, index: int) -> tuple[int, np.ndarray, int]:
        """The item's row of the manifest, its clean context (or segment alone) [T], and where the segment begins."""
        rng = self.rng(epoch, index, "segment")
        place = int(rng.integers(self.ends[-1]))
        row = int(np.searchsorted(self.ends, place, side="right"))
        start, samples = int(self.ends[row]) - 1 - place, int(self.manifest.samples[row])
        silence = int(rng.uniform(0, self.silence_ratio) * self.cut)
        before = int(rng.integers(silence + 1))
        frames = min(self.cut - silence, samples - start)  # of the segment's speech
        begin = self._begin(epoch, index, start, samples + silence)
        length = self.segment - silence
        speech = self.read(self.manifest.path(row), start - begin, min(length, samples - start + begin), length)
        wav = np.zeros(self.segment, np.float32)
        wav[:begin] = speech[:begin]
        wav[begin + before : begin + before + frames] = speech[begin : begin + frames]
        wav[begin + self.cut :] = speech[begin + frames :][: self.segment - begin - self.cut]
        return row, wav, begin

    def _begin(self, epoch: int, index: int, start: int, samples: int) -> int:
        """Start within its context of a segment that starts at `start` of `samples`; on the grid of WavLM's frames."""
        hop = WAVLM_HOP * self.factor
        last = min(start, self.segment - self.cut) // hop
        # from here on the context ends within the recording, if that is long enough
        first = min(max(0, -(-(start + self.segment - samples) // hop)), last)
        return hop * int(self.rng(epoch, index, "cut").integers(first, last + 1))
