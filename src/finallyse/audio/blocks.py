"""Decoding in constant memory, block by block: for recordings of hours, and for `finallyse.audio.io.decode`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf

from finallyse.errors import UserError

BLOCK = 1 << 16  # samples per channel


class BlockReader:
    """An open recording of any format that libsndfile or FFmpeg supports, video sound tracks included.

    Iterating yields float32 [C, n] blocks, once.

    Args:
        path: the file; its first sound track is read.
        name: its name in messages; None: its path.

    Attributes:
        rate: Hz.
        channels: number of channels.
        frames: number of samples per channel according to the header; None if it does not state any.

    Raises:
        UserError: with the name, for a file that cannot be read, is truncated, or has no samples or samples that are
            not finite.
    """

    def __init__(self, path: str | os.PathLike, name: str | None = None):
        self.path, self.name = Path(path), name or str(path)
        if not self.path.is_file():
            raise UserError(f"{self.name}: {'is not a file' if self.path.exists() else 'no such file'}")
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
                raise UserError(f"{self.name}: contains samples that are not finite numbers")
            empty = empty and block.shape[1] == 0
            yield block
        if empty:
            raise UserError(f"{self.name}: has no samples")

    def _open_soundfile(self) -> tuple[int, int, int | None, Iterator[np.ndarray]] | None:
        # An open file, not a name: libsndfile then judges by the content; it takes ".raw" or ".g722" for raw samples.
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
        # libsndfile corrects the length in the header of a truncated WAV; its log has the original.
        corrected = file.format in ("WAV", "WAVEX", "AIFF") and _data_is_truncated(file.extra_info)
        done = 0
        try:
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                done += len(block)
                yield np.ascontiguousarray(block.T)
        except sf.LibsndfileError as error:
            raise UserError(f"{self.name}: cannot be read ({error.error_string})") from error
        if corrected or done < file.frames:
            raise UserError(f"{self.name}: truncated: the header states more than the {done} samples that are left")

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
            raise UserError(f"{self.name}: has no samples")
        planes = _planes(first)
        rate = first.sample_rate
        seconds = track.duration * track.time_base if track.duration else (container.duration or 0) / av.time_base
        return rate, len(planes), round(seconds * rate) or None, self._ffmpeg_blocks(planes, rate, frames)

    def _ffmpeg_blocks(self, first: np.ndarray, rate: int, frames: Iterator) -> Iterator[np.ndarray]:
        import av

        # FFmpeg's frames are about 1000 samples; the resampler works better on more.
        pieces, samples = [first], first.shape[1]
        while True:
            try:
                frame = next(frames, None)
            except (av.FFmpegError, OSError, ValueError) as error:
                raise UserError(f"{self.name}: cannot be decoded ({error})") from error
            if frame is None or samples >= BLOCK:
                yield np.concatenate(pieces, axis=1)
                pieces, samples = [], 0
            if frame is None:
                return
            planes = _planes(frame)
            if (frame.sample_rate, len(planes)) != (rate, len(first)):
                raise UserError(f"{self.name}: its sample rate or number of channels changes midway; split the file")
            pieces.append(planes)
            samples += planes.shape[1]


def _data_is_truncated(log: str) -> bool:
    """Whether the data chunk of a WAV is shorter than its header states, according to libsndfile's log.

    Headers of streams, whose length was unknown when they were written (0, or nearly 2**31 or 2**32), do not count.
    """
    for line in log.splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in ("data", "SSND") and "should be" in rest:
            stated = rest.split("(")[0].strip()
            return stated.isdigit() and 0 < int(stated) < 0x7FFF0000
    return False


def _planes(frame) -> np.ndarray:
    """A decoded frame as float32 [C, T] in [-1, 1]."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return (samples / np.float64(2 ** (8 * samples.itemsize - 1))).astype(np.float32)
    return samples.astype(np.float32)
