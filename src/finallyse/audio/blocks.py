"""Decoding in constant memory, block by block: for recordings of hours, and for `finallyse.audio.io.decode`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf

from finallyse.audio import headers
from finallyse.audio.channels import native_order
from finallyse.audio.ffmpeg import DecoderCrash, Decoding, DecodingError
from finallyse.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 1 << 16  # samples per channel
TOLERANCE_S = 0.1  # headers may be off by so much
# libsndfile reads these, and MP3s whose header is right, faster than FFmpeg, and the same samples. Of everything else
# FFmpeg knows more: the order of channels, the rest of a chained Ogg, the end of an MP3 without a header.
PLAIN_FORMATS = {"WAV", "WAVEX", "FLAC"}
PLAIN_SUBTYPES = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of frames of a FLAC that states none is larger


class BlockReader:
    """An open recording of any format that FFmpeg or libsndfile supports, video sound tracks included.

    Iterating yields float32 [C, n] blocks, once. The recording ends where decoding ends; if its header states more, or
    parts are damaged, it is cut short.

    Args:
        path: the file; of several sound tracks, the default one is read, or the first.
        name: its name in messages; None: its path.
        accept_cut: take what there is of a recording that is cut short or damaged, with a warning.

    Attributes:
        rate: Hz.
        channels: number of channels.
        speakers: FFmpeg's names of the channels, in the order of WAV where they are speakers; () if unknown.
        tags: title, artist, comment and so on, by FFmpeg's names in lower case.
        frames: number of samples per channel as far as the header tells; None if it does not.

    Raises:
        UserError: with the name, for a file that cannot be read, is cut short by 0.1 s or more (unless `accept_cut`),
            or has no samples or samples that are not finite.
    """

    def __init__(self, path: str | os.PathLike, name: str | None = None, accept_cut: bool = False):
        self.path, self.name, self.accept_cut = Path(path), name or str(path), accept_cut
        if not self.path.is_file():
            raise UserError(f"{self.name}: {'is not a file' if self.path.exists() else 'no such file'}")
        try:
            if self.path.stat().st_size == 0:
                raise UserError(f"{self.name}: the file is empty (0 bytes)")
            self._length = headers.length(self.path)
        except OSError as error:
            raise UserError(f"{self.name}: {error.strerror or error}") from error
        self._file = self._decoding = None
        self.speakers: tuple[str, ...] = ()
        self.tags: dict[str, str] = {}
        if not self._open_soundfile():
            self._open_ffmpeg()
        if self.rate <= 0 or self.channels <= 0:
            self.close()
            raise UserError(f"{self.name}: its header gives {self.rate} Hz and {self.channels} channels")

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
        if self._decoding:
            self._decoding.close()

    def __iter__(self) -> Iterator[np.ndarray]:
        done = 0
        for block in self._soundfile_blocks() if self._file else self._ffmpeg_blocks():
            if not np.isfinite(block).all():
                raise UserError(f"{self.name}: contains samples that are not finite numbers")
            done += block.shape[1]
            yield block
        if done == 0:
            raise UserError(f"{self.name}: has no samples")
        self._check_end(done / self.rate)

    def _open_soundfile(self, any_format: bool = False) -> bool:
        # An open file, not a name: libsndfile then judges by the content; it takes ".raw" or ".g722" for raw samples.
        with self.path.open("rb") as stream:
            try:
                file = sf.SoundFile(os.dup(stream.fileno()), closefd=True)
            except sf.LibsndfileError:
                return False
        plain = file.format in PLAIN_FORMATS and file.subtype in PLAIN_SUBTYPES and file.channels <= 2
        plain = plain or (file.format == "MP3" and self._length.whole)
        if self.accept_cut and file.format in ("FLAC", "MP3"):  # FFmpeg goes on after damage
            plain = False
        if not any_format and not (plain and 0 < file.frames < UNKNOWN_FRAMES):
            file.close()
            return False
        self._file = file
        self.rate, self.channels, self.frames = file.samplerate, file.channels, file.frames
        self.tags = {key: value for key, value in file.copy_metadata().items() if value}
        return True

    def _soundfile_blocks(self) -> Iterator[np.ndarray]:
        done = 0
        try:
            while len(block := self._file.read(BLOCK, dtype="float32", always_2d=True)):
                done += len(block)
                yield np.ascontiguousarray(block.T)
        except sf.LibsndfileError as error:
            text = f"cut short or damaged: cannot be read after {done / self.rate:.2f} s ({error.error_string})"
            self._tell(text, True)

    def _open_ffmpeg(self) -> None:
        try:
            self._decoding = Decoding(self.path)
        except DecodingError as error:
            if not isinstance(error, DecoderCrash) and self._open_soundfile(any_format=True):
                return  # a format that FFmpeg does not know
            raise UserError(f"{self.name}: {error}") from error
        opened = self._decoding.opened
        self.rate, self.tags = opened.rate, opened.tags
        self.channels = len(opened.channels)
        self.frames = round(opened.seconds * opened.rate) if opened.seconds else None
        self._order, self.speakers = native_order(opened.channels)

    def _ffmpeg_blocks(self) -> Iterator[np.ndarray]:
        try:
            for content in self._decoding.blocks():
                block = np.frombuffer(content, np.float32).reshape(-1, self.channels).T
                yield np.ascontiguousarray(block if self._order is None else block[self._order])
        except DecodingError as error:
            raise UserError(f"{self.name}: {error}") from error

    def _check_end(self, seconds: float) -> None:
        """Raise, or warn, if the recording should be longer than the `seconds` that were decoded."""
        if self._length.missing_s is None:
            self._tell("its end is missing; how much cannot be told", True)
            return
        missing = self._length.missing_s
        if self._length.seconds:
            missing = max(missing, self._length.seconds - seconds)
        if self._file and self.frames < UNKNOWN_FRAMES:
            missing = max(missing, self.frames / self.rate - seconds)
        ended = self._decoding and self._decoding.ended
        if ended and ended.stated_s:
            # Tracks need not be equally long: what counts is whether the file as a whole ends too early.
            missing = max(missing, ended.stated_s - max(seconds, ended.reached_s))
        if missing > 0.5 / self.rate:
            whole = seconds + missing
            text = f"cut short: {missing:.2f} s of {whole:.2f} s are missing ({missing / whole:.0%})"
            self._tell(text, missing >= TOLERANCE_S)
        if ended and ended.damaged_s:
            amount = "its end" if np.isinf(ended.damaged_s) else f"{ended.damaged_s:.2f} s"
            text = f"cut short or damaged: {amount} cannot be decoded, from {ended.damaged_at_s:.2f} s on"
            self._tell(text, ended.damaged_s >= TOLERANCE_S)

    def _tell(self, text: str, severe: bool) -> None:
        if severe and not self.accept_cut:
            raise UserError(f"{self.name}: {text}; to take what there is, say --accept-cut")
        log.warning("%s: %s", self.name, text)
