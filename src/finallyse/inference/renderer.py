"""A network over signals of any length: in windows that overlap, in constant memory, by whatever runs the network.

`Renderer` is what enhancing recordings, with PyTorch (`Enhancer`) or without it (`OnnxEnhancer`), and validating a
training have in common. It needs NumPy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from finallyse.errors import UserError
from finallyse.inference.windows import CONTEXT_S, FADE_S, GRID, WINDOW_S, Window, fit, join, plan

# WavLM's attention sees a whole window: 25 to 40 s, with at least 5 s on either side of the part that is kept.
WAVLM_CONTEXT_S = 5.0
WAVLM_WINDOW_S = 40.0
WAVLM_FADE = 16  # frames of 20 ms

Read = Callable[[int, int], np.ndarray]


class Model(Protocol):
    """What a renderer knows of a network; see `finallyse.models.base.Generator`."""

    input_kind: str
    input_rate: int
    output_rate: int
    alignment: int
    reach_back: int
    reach_ahead: int
    repeats: int


class Conditioner(Protocol):
    """What a renderer knows of WavLM, in samples: the distance of its frames, and what a frame sees."""

    hop: int
    receptive_field: int


class Renderer:
    """Runs a network over waveforms or spectrograms of any length. A subclass says how it is called (`generate`).

    The network only ever sees whole multiples of its `alignment`, as in training: the end of a signal is filled up with
    zeros, and the output for them is cut off.

    Args:
        model: the network.
        wavlm: the WavLM that conditions it, if its `input_kind` is "wav+ssl".
        window_s: window length in seconds, with which memory grows; None: 20.48, or the least that the network allows.
        batch: windows per forward pass.

    Attributes: `input_rate`, `output_rate` (Hz) of the network.
    Raises UserError for windows that are too short.
    """

    def __init__(self, model: Model, wavlm: Conditioner | None, window_s: float | None = None, batch: int = 1):
        self.batch = batch
        self.input_kind = model.input_kind
        self.wavlm = wavlm if self.input_kind == "wav+ssl" else None
        self.input_rate, self.output_rate = model.input_rate, model.output_rate
        self.factor = self.output_rate // self.input_rate
        self.alignment = model.alignment
        self.reach_back, self.reach_ahead, self.repeats = model.reach_back, model.reach_ahead, model.repeats
        self.grid = math.lcm(GRID, self.alignment, self.wavlm.hop if self.wavlm else 1)
        context = max(CONTEXT_S * self.input_rate, self.reach_back, self.reach_ahead)
        self.context = math.ceil(context / self.grid) * self.grid
        shortest = (2 * self.context + self.grid) / self.input_rate
        if window_s is None:
            window_s = max(WINDOW_S, shortest)
        if not shortest <= window_s < math.inf:
            raise UserError(f"--chunk {window_s:g}: must be seconds, at least {shortest:g}")
        self.window = int(window_s * self.input_rate)

    def generate(
        self, wav: np.ndarray | None, ssl: np.ndarray | None = None, mel: np.ndarray | None = None
    ) -> np.ndarray:
        """One forward pass, all arrays float32: wav [B, n], with WavLM's features [B, D, N] if the network takes them,
        or log-mel [B, M, F] in place of wav -> waveforms [B, T], of which what exceeds the input's length is cut off.
        """
        raise NotImplementedError

    def hidden_state(self, wav: np.ndarray) -> np.ndarray:
        """WavLM's last hidden state: wav float32 [B, n] -> [B, D, N]."""
        raise NotImplementedError

    def render_whole(self, wav: np.ndarray) -> np.ndarray:
        """float32 [C, T] at `input_rate` -> float32 [C, T'] at `output_rate`."""
        blocks = self.render_windows(lambda start, stop: wav[:, start:stop], wav.shape[1], len(wav))
        return np.concatenate(list(blocks), axis=1)

    def render_mel(self, mel: np.ndarray, hop: int) -> np.ndarray:
        """The waveform float32 [T] of a log-mel spectrogram [M, F] of `hop` samples per frame, for a network that takes
        one."""
        grid = math.lcm(self.grid, hop) // hop
        windows = plan(mel.shape[-1], self.window // hop, math.ceil(self.context / hop), grid)
        pieces = (self.generate(None, mel=mel[None, :, start:stop])[0] for start, stop in windows)
        scaled = [(start * hop, stop * hop) for start, stop in windows]
        return np.concatenate(list(join(scaled, pieces, int(FADE_S * self.output_rate))))

    def render_windows(self, read: Read, length: int, channels: int) -> Iterator[np.ndarray]:
        """Consecutive [channels, n] at `output_rate`, in constant memory.

        Args:
            read: (start, stop) -> float32 [channels, stop - start]; called with increasing starts.
            length: samples at `input_rate`.
        """
        windows = plan(length + -length % self.alignment, self.window, self.context, self.grid)
        scaled = [(start * self.factor, min(stop, length) * self.factor) for start, stop in windows]
        fade = int(FADE_S * self.output_rate)
        return join(scaled, self._pieces(windows, read, length, channels), fade)

    def _pieces(self, windows: list[Window], read: Read, length: int, channels: int) -> Iterator[np.ndarray]:
        """Each window's output [C, n * factor]."""
        features = Features(self, read, length, channels) if self.wavlm else None

        def inputs() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
            for start, stop in windows:
                wav = fit(read(start, min(stop, length)), stop - start)
                ssl = features.of(start, stop) if features else [None] * channels
                yield from zip(wav, ssl, strict=True)

        remaining, rows = inputs(), []
        while batch := list(itertools.islice(remaining, self.batch)):
            wav = np.stack([wav for wav, _ in batch])
            ssl = np.stack([ssl for _, ssl in batch]) if features else None
            rows += list(self.generate(wav, ssl)[:, : wav.shape[-1] * self.factor])
            while len(rows) >= channels:
                yield np.stack(rows[:channels])
                del rows[:channels]


class Features:
    """WavLM's features of a long signal, computed on demand in separate windows, with increasing starts."""

    def __init__(self, renderer: Renderer, read: Read, length: int, channels: int):
        self.renderer, self.read, self.channels = renderer, read, channels
        wavlm, rate = renderer.wavlm, renderer.input_rate
        self.hop, self.sees = wavlm.hop, wavlm.receptive_field
        context = int(WAVLM_CONTEXT_S * rate) // self.hop * self.hop
        windows = plan(length, int(WAVLM_WINDOW_S * rate), context, self.hop)
        frames = [(start // self.hop, start // self.hop + self.count(stop - start)) for start, stop in windows]
        self.stream = join(frames, map(self._compute, windows), WAVLM_FADE)
        self.first, self.held = 0, None

    def count(self, samples: int) -> int:
        """Number of WavLM frames for a number of samples."""
        return max(1, (samples - self.sees) // self.hop + 1)

    def _compute(self, window: Window) -> np.ndarray:
        wav = self.read(*window)
        wav = fit(wav, max(wav.shape[-1], self.sees))
        return np.concatenate([self.renderer.hidden_state(np.ascontiguousarray(row[None])) for row in wav])

    def of(self, start: int, stop: int) -> np.ndarray:
        """Features [C, D, N] of the samples from start (a multiple of the hop) to stop; beyond the end of the signal,
        the last ones again."""
        first = start // self.hop
        last = first + self.count(stop - start)
        parts = [] if self.held is None else [self.held[..., first - self.first :]]
        self.first = first if self.held is not None else 0
        have = self.first + sum(part.shape[-1] for part in parts)
        while have < last and (part := next(self.stream, None)) is not None:
            parts.append(part)
            have += part.shape[-1]
        if have < last:
            parts.append(np.repeat(parts[-1][..., -1:], last - have, axis=-1))
        self.held = np.concatenate(parts, axis=-1)
        return self.held[..., first - self.first : last - self.first]
