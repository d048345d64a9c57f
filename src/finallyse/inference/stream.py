"""Enhancing while the sound comes in: samples are pushed in, and come back a stated time later.

    stream = finallyse.Stream(finallyse.load(), sample_rate=16000)
    for block in microphone:                        # of any length
        play(stream.push(block))                    # what is ready, perhaps nothing
    play(stream.flush())                            # the rest

The networks are not causal, and keep no state between calls. So a window is computed for every `hop` of new output:

    |<------- past ------->|<- hop ->|<- look-ahead ->|<- mirrored ->|
    begins with a cell     kept      known            up to whole cells

Windows begin at multiples of the network's `alignment`, where its strides fall on the same samples as in the whole
signal, so that with enough past and look-ahead they give the same output. With less look-ahead, the end of a window is
the end of what is known. A network that is given zeros there takes them for the end of the speech; the last moments to
and fro are nearer to what will come. docs/howto/stream.md has the measurements.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from finallyse.audio.resample import Resampler, delay
from finallyse.errors import UserError
from finallyse.inference.signals import as_floats, whole_rate
from finallyse.inference.windows import fit, length_at

if TYPE_CHECKING:
    from finallyse.inference.enhancer import Enhancer

MIRROR_S = 0.128
FADE_S = 0.008  # between the outputs of two windows, within the look-ahead


class Stream:
    """Enhances one signal of any length while it comes in, with a bounded latency.

    Its output is the same however the signal is cut into blocks, and within -60 dB of `model.enhance(signal,
    sample_rate, rate)` with the default look-ahead and the network that comes with the package.

    Args:
        model: from `finallyse.load`: a network that takes waveforms without WavLM.
        block: s; each forward pass makes a multiple of it, so few that no more than `repeats` allows is computed.
        lookahead: s that are heard after a sample before it is enhanced. None: what the network needs for the output of
            the whole signal, `model.reach_ahead`. Less costs quality (docs/howto/stream.md).
        sample_rate: of what is pushed, Hz; None: that of the network. Another one adds the delay of the resamplers.
        rate: of the output, Hz; None: `model.rate_for(sample_rate)`.
        peak: the largest magnitude that the whole signal will have, for networks that were trained at a fixed peak; the
            output is that of `model.enhance` if it is right.
        repeats: how often a sample is computed on the average, at most: more give a lower latency, and need a faster
            machine. None: `model.repeats`, 27 for the network that comes with the package, 7 for others.

    Attributes:
        latency: s; the output for a moment is returned at the latest when so much after it has been pushed. The time
            that computing takes comes on top of it.
        lookahead, hop: s, its parts, apart from those of the resamplers.
        sample_rate, rate: Hz.

    Raises:
        UserError: for options out of range, and for networks that need the whole recording.
    """

    def __init__(
        self,
        model: Enhancer,
        block: float = 0.02,
        *,
        lookahead: float | None = None,
        sample_rate: float | None = None,
        rate: float | None = None,
        peak: float | None = None,
        repeats: float | None = None,
    ):
        if model.input_kind == "wav+ssl":
            raise UserError(
                "this network hears through WavLM, which attends to half a minute at once: it cannot enhance a stream; "
                "enhance recordings with it, or stream with another, such as 'small'"
            )
        lookahead = model.reach_ahead / model.input_rate if lookahead is None else lookahead
        repeats = model.repeats if repeats is None else repeats
        for name, value, least, most in (
            ("block", block, 0.001, 5),
            ("lookahead", lookahead, 0, 5),
            ("repeats", repeats, 1.5, 1000),
        ):
            if not least <= value <= most:
                raise UserError(f"{name}={value}: must be between {least:g} and {most:g}")
        self._gain = _gain(model.peak, peak)
        self.model = model
        self.sample_rate = model.input_rate if sample_rate is None else whole_rate("sample_rate", sample_rate)
        self.rate = model.rate_for(self.sample_rate) if rate is None else whole_rate("rate", rate)

        self._ahead = round(lookahead * model.input_rate)
        self._past = max(model.reach_back, self._ahead)
        step = max(1, round(block * model.input_rate))
        # A window is as long as past, hop and look-ahead, and a cell: half of one on either side, on the average.
        self._hop = step * math.ceil((self._past + model.alignment + self._ahead) / (repeats - 1) / step)
        self._fade = min(round(FADE_S * model.input_rate), self._ahead) * model.factor

        self.lookahead, self.hop = self._ahead / model.input_rate, self._hop / model.input_rate
        resampling = delay(self.sample_rate, model.input_rate) + delay(model.output_rate, self.rate)
        self.latency = self.lookahead + self.hop + resampling
        self._channels: int | None = None
        self._flat = False
        self._ended = False
        self._pushed = self._given = 0  # samples, of the input at its rate and of the output at its rate

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push(self, samples: ArrayLike) -> np.ndarray:
        """Take the next samples, and return those of the output that are ready.

        Args:
            samples: [n] or [C, n], any n, in the same form each time; values as in `Enhancer.enhance`.

        Returns:
            float32 [n'] or [C, n'], where n' may be 0.

        Raises:
            UserError: for another form than before, values that are not finite, and a stream that has ended.
        """
        if self._ended:
            raise UserError("this stream has ended; make another one for another signal")
        samples = samples if hasattr(samples, "shape") else np.asarray(samples)
        if len(samples.shape) not in (1, 2) or 0 in samples.shape[:-1]:
            raise UserError(f"samples must be [n] or [C, n], not {list(samples.shape)}")
        flat, channels = len(samples.shape) == 1, 1 if len(samples.shape) == 1 else samples.shape[0]
        if self._channels is None:
            self._start_with(channels, flat)
        elif (flat, channels) != (self._flat, self._channels):
            form = "[n]" if self._flat else f"[{self._channels}, n]"
            raise UserError(f"this stream is of samples {form}, not {list(samples.shape)}")
        if samples.shape[-1] == 0:
            return self._formed(np.zeros((channels, 0), np.float32))
        wav = np.atleast_2d(as_floats(samples))
        self._pushed += wav.shape[1]
        self._hear(self._resample_in(wav))
        return self._formed(self._resample_out(self._advance()))

    def flush(self) -> np.ndarray:
        """End the signal, and return the rest of the output.

        With what `push` has returned it is as long as that of `Enhancer.enhance`: the samples pushed * rate /
        sample_rate, rounded half up.
        """
        if self._ended:
            raise UserError("this stream has ended; make another one for another signal")
        self._ended = True
        if not self._pushed:
            return self._formed(np.zeros((self._channels or 1, 0), np.float32))
        nothing = np.zeros((self._channels, 0), np.float32)
        self._hear(self._resample_in(nothing, last=True))
        length = length_at(self._pushed, self.sample_rate, self.model.input_rate)
        self._heard = fit(self._heard, max(length, self._done) - self._start)  # a resampler may be a sample off
        rest = self._resample_out(self._advance(last=True), last=True)
        whole = length_at(self._pushed, self.sample_rate, self.rate)
        rest = self._formed(fit(rest, whole - self._given + rest.shape[1]))
        self.close()
        return rest

    def close(self) -> None:
        """End the stream without the rest of its output."""
        self._ended = True
        self._heard = self._tail = None

    def _start_with(self, channels: int, flat: bool) -> None:
        self._channels, self._flat = channels, flat
        self._resample_in = Resampler(self.sample_rate, self.model.input_rate, channels)
        self._resampler_out = Resampler(self.model.output_rate, self.rate, channels)
        # What is still needed of the signal for the network, from its sample `_start` on; samples before `_done` are
        # enhanced, and what the last window has made of those after it is in `_tail`.
        self._heard, self._start, self._done = np.zeros((channels, 0), np.float32), 0, 0
        self._tail = np.zeros((channels, 0), np.float32)

    def _formed(self, wav: np.ndarray) -> np.ndarray:
        return wav[0] if self._flat or self._channels is None else wav

    def _resample_out(self, wav: np.ndarray, last: bool = False) -> np.ndarray:
        wav = self._resampler_out(wav, last=last)
        self._given += wav.shape[1]
        return wav

    def _hear(self, wav: np.ndarray) -> None:
        self._heard = np.concatenate([self._heard, wav * self._gain], axis=1)

    def _advance(self, last: bool = False) -> np.ndarray:
        """The output [C, n] at `output_rate` that what is known allows; with `last`, all of it."""
        known = self._start + self._heard.shape[1]
        made = [np.zeros((self._channels, 0), np.float32)]
        while (stop := self._done + self._hop + self._ahead) <= known:
            made.append(self._enhance(self._done + self._hop, stop))
        if last and self._done < known:
            made.append(self._enhance(known, known, whole=True))
        return np.concatenate(made, axis=1)

    def _enhance(self, end: int, stop: int, whole: bool = False) -> np.ndarray:
        """The output from `_done` to `end` by a window to `stop`, which with `whole` is the end of the signal."""
        model, begin = self.model, self._begin(self._done)
        wav = self._heard[:, begin - self._start : stop - self._start]
        if not whole:
            wav = mirrored(wav, -wav.shape[1] % model.alignment, round(MIRROR_S * model.input_rate))
        blocks = model.render_windows(lambda a, b: wav[:, a:b], wav.shape[1], self._channels)
        output = np.concatenate(list(blocks), axis=1) / self._gain
        first, middle = (self._done - begin) * model.factor, (end - begin) * model.factor
        piece = output[:, first:middle].copy()
        count = min(self._tail.shape[1], piece.shape[1])
        if count:
            rising = ((np.arange(count) + 0.5) / count).astype(np.float32)
            before = self._tail[:, :count]
            piece[:, :count] = before + (piece[:, :count] - before) * rising
        self._tail = output[:, middle : middle + self._fade].copy()
        self._done = end
        keep = self._begin(end)
        self._heard, self._start = self._heard[:, keep - self._start :], keep
        return piece

    def _begin(self, sample: int) -> int:
        """Where the window begins whose output is kept from `sample` on."""
        return max(0, (sample - self._past) // self.model.alignment * self.model.alignment)


def _gain(level: float | None, peak: float | None) -> np.float32:
    """The factor that brings a signal of this peak to the level that the network was trained at (None: any)."""
    if peak is not None and not 0 < peak < math.inf:
        raise UserError(f"peak={peak}: must be a positive number, the largest magnitude of the whole signal")
    if level is None:
        if peak is not None:
            raise UserError("peak: this network was trained at any level, so that it needs none; leave it out")
        return np.float32(1)
    if peak is None:
        raise UserError(
            f"this network was trained on signals with a peak of {level:g}, to which a stream cannot be scaled before "
            "its end; say which peak it will have (peak=0.5, --peak 0.5), or take another network, such as 'small'"
        )
    return np.float32(level / peak)


def mirrored(wav: np.ndarray, count: int, length: int) -> np.ndarray:
    """Continue a signal by `count` samples with its last `length` to and fro: [C, n] -> [C, n + count]."""
    length = min(length, wav.shape[1] - 1)
    if length < 1:
        return fit(wav, wav.shape[1] + count)
    before = wav[:, -length - 1 : -1]
    cycle = np.concatenate([before[:, ::-1], before], axis=1)
    return np.concatenate([wav, cycle[:, np.arange(count) % (2 * length)]], axis=1)


def reach(model: Enhancer, wav: np.ndarray, level_db: float = -60.0, step: float = 0.032) -> tuple[float, float]:
    """How much before and after a moment changes a network's output at it by more than `level_db`: (past, future) in s.

    The signal is cut at moments on the network's grid, and the output compared with that for the whole of it: the
    differences are those of the worst `step` of all cuts, relative to the power of the output.

    Args:
        wav: float32 [T] at `input_rate` of what the network is for: speech with noise. A third of it is the longest
            reach that can be seen.
    """
    grid, factor = model.grid, model.factor

    def output(part: np.ndarray) -> np.ndarray:
        return np.concatenate(list(model.render_windows(lambda a, b: part[None, a:b], len(part), 1)), axis=1)[0]

    wav = wav[: len(wav) // grid * grid]
    size = round(step * model.output_rate)
    most = len(wav) // 3 // grid * grid  # the longest reach that can be seen
    if most < grid:
        raise UserError(f"wav: at least {4 * grid / model.input_rate:g} s are needed to see how far a network reaches")
    whole = output(wav)
    past, future = np.zeros(most * factor // size), np.zeros(most * factor // size)
    for cut in range(most, len(wav) - most + 1, grid):
        at, count = cut * factor, len(past) * size
        after = output(wav[cut:])[:count] - whole[at : at + count]
        past = np.maximum(past, np.square(after).reshape(-1, size).mean(1))
        before = (output(fit(wav[:cut], len(wav))) - whole)[at - count : at][::-1]
        future = np.maximum(future, np.square(before).reshape(-1, size).mean(1))
    least = np.square(whole).mean() * 10 ** (level_db / 10)
    return tuple(float(np.flatnonzero(np.append(True, found > least))[-1] * step) for found in (past, future))
