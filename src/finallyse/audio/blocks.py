"""Decoding in constant memory: what `finallyse.audio.io.decode` reads, block by block, for recordings of hours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf

from finallyse.audio.io import PathLike, _data_is_cut_short, _planes
from finallyse.errors import UserError

BLOCK = 1 << 16  # samples per channel


class BlockReader:
    """An open recording of any format that libsndfile or FFmpeg knows, video sound tracks included.

    path: the file; its first sound track is read.    name: what messages call it; None: its path.

    Attributes: `rate` (Hz), `channels`, `frames` (what the header promises; None where it says nothing).
    Iterating yields float32 [C, n] blocks, once. Raises UserError with the path for a file that cannot be read, is cut
    short, holds no samples or samples that are not finite.
    """

    def __init__(self, path: PathLike, name: str | None = None):
        self.path, self.name = Path(path), name or str(path)
        if not self.path.is_file():
            raise UserError(f"{self.name}: no such file")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.name}: the file is empty (0 bytes)")
        self._resources = contextlib.ExitStack()
        opened = self._open_soundfile() or self._open_ffmpeg()
        self.rate, self.channels, self.frames, self._blocks = opened
        if self.rate <= 0 or self.channels <= 0:
            self.close()
            raise UserError(f"{self.name}: its header gives {self.rate} Hz and {self.channels} channels")

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._resources.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        empty = True
        for block in self._blocks:
            if not np.isfinite(block).all():
                raise UserError(f"{self.name}: holds samples that are not finite numbers")
            empty = empty and block.shape[1] == 0
            yield block
        if empty:
            raise UserError(f"{self.name}: holds no samples")

    def _open_soundfile(self) -> tuple[int, int, int | None, Iterator[np.ndarray]] | None:
        # An open file, not a name: libsndfile then goes by the content, and takes no ".raw" or ".g722" for raw samples.
        try:
            stream = self._resources.enter_context(self.path.open("rb"))
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror or error}") from error
        try:
            file = self._resources.enter_context(sf.SoundFile(stream.fileno(), closefd=False))
        except sf.LibsndfileError:
            return None
        return file.samplerate, file.channels, file.frames, self._soundfile_blocks(file)

    def _soundfile_blocks(self, file: sf.SoundFile) -> Iterator[np.ndarray]:
        # libsndfile fixes the length in the header of a truncated WAV; its log keeps the original.
        mended = file.format in ("WAV", "WAVEX", "AIFF") and _data_is_cut_short(file.extra_info)
        done = 0
        try:
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                done += len(block)
                yield np.ascontiguousarray(block.T)
        except sf.LibsndfileError as error:
            raise UserError(f"{self.name}: cannot be read ({error.error_string})") from error
        if mended or done < file.frames:
            raise UserError(f"{self.name}: cut short: it holds less than its header promises ({done} samples left)")

    def _open_ffmpeg(self) -> tuple[int, int, int | None, Iterator[np.ndarray]]:
        import av  # 40 MB of shared libraries that plain WAV and FLAC files do not need

        av.logging.set_level(av.logging.PANIC)
        try:
            container = self._resources.enter_context(av.open(os.fspath(self.path), metadata_errors="ignore"))
            if not container.streams.audio:
                raise UserError(f"{self.name}: has no sound track")
            track = container.streams.audio[0]
            frames = container.decode(track)
            first = next(frames, None)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{self.name}: cannot be decoded ({error})") from error
        if first is None:
            raise UserError(f"{self.name}: holds no samples")
        planes = _planes(first)
        rate = first.sample_rate
        seconds = float(track.duration * track.time_base) if track.duration else None
        return rate, len(planes), round(seconds * rate) if seconds else None, self._ffmpeg_blocks(planes, rate, frames)

    def _ffmpeg_blocks(self, first: np.ndarray, rate: int, frames: Iterator) -> Iterator[np.ndarray]:
        import av

        held, samples = [first], first.shape[1]
        while True:
            try:
                frame = next(frames, None)
            except (av.FFmpegError, OSError, ValueError) as error:
                raise UserError(f"{self.name}: cannot be decoded ({error})") from error
            if frame is None:
                break
            planes = _planes(frame)
            if (frame.sample_rate, len(planes)) != (rate, len(first)):
                raise UserError(f"{self.name}: its sample rate or number of channels changes midway; split the file")
            held.append(planes)
            samples += planes.shape[1]
            if samples >= BLOCK:  # FFmpeg's frames are about 1000 samples; the resampler works better on more
                yield np.concatenate(held, axis=1)
                held, samples = [], 0
        if held:
            yield np.concatenate(held, axis=1)
