"""Reading and writing audio files.

`read` is for prepared files: a segment of a WAV (or FLAC) without decoding the rest. `decode` is for whatever a user
has: WAV of any kind, FLAC, Ogg, MP3, M4A, raw G.722, the sound track of a video. Samples are float32 in [-1, 1]; files
that cannot be read, are cut short, hold no samples or hold NaN raise a :class:`UserError` with their path.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile as sf

from finallyse import atomic
from finallyse.errors import UserError

PathLike = str | os.PathLike


def read(path: PathLike, start: int = 0, frames: int = -1) -> tuple[np.ndarray, int]:
    """A range of a file that libsndfile can read and seek in.

    path: WAV or FLAC file.    start: first sample.    frames: how many; -1 reads to the end.
    Returns float32 [T] (mono) or [T, C], and the sample rate in Hz. Fewer samples than asked for is an error.
    """
    with _as_user_error(path), Path(path).open("rb", buffering=0) as file:
        if plain := _plain_wav(file):
            rate, channels, dtype, length = plain
            wanted = _check_range(path, start, frames, length)
            file.seek(44 + start * channels * dtype.itemsize)
            wav = np.frombuffer(file.read(wanted * channels * dtype.itemsize), dtype).astype(np.float32)
            wav *= np.float32(1 / 32768)
            wav = wav if channels == 1 else wav[: len(wav) // channels * channels].reshape(-1, channels)
        else:
            file.seek(0)
            with sf.SoundFile(file.fileno(), closefd=False) as sound:
                rate = sound.samplerate
                wanted = _check_range(path, start, frames, sound.frames)
                sound.seek(start)
                wav = sound.read(wanted, dtype="float32")
    if len(wav) != wanted:
        raise UserError(f"{path}: cut short: {len(wav)} of the {wanted} samples from {start} on could be read")
    if wanted == 0:
        raise UserError(f"{path}: holds no samples")
    return wav, rate


def _plain_wav(file: BinaryIO) -> tuple[int, int, np.dtype, int] | None:
    """Rate, channels, sample type and length of a 16-bit WAV with nothing but the 44-byte header; None for others.

    `write_wav` writes such files. Reading them without libsndfile takes a fifth of the time.
    """
    header = file.read(44)
    if len(header) < 44 or header[:4] != b"RIFF" or header[8:16] != b"WAVEfmt " or header[36:40] != b"data":
        return None
    size, coding, channels, rate, _, _, bits, _, data = struct.unpack("<IHHIIHH4sI", header[16:44])
    if (size, coding, bits) != (16, 1, 16) or channels == 0:
        return None
    return rate, channels, np.dtype("<i2"), data // (2 * channels)


def _check_range(path: PathLike, start: int, frames: int, length: int) -> int:
    """The number of samples to read from a file of `length` samples."""
    wanted = length - start if frames < 0 else frames
    if start < 0 or wanted < 0 or start + wanted > length:
        raise UserError(
            f"{path}: samples {start} to {start + wanted} were asked for, but the file holds {length}; "
            "it is not the file that its manifest describes: prepare the corpus again"
        )
    return wanted


def decode(path: PathLike) -> tuple[np.ndarray, int]:
    """All of a file in any format that libsndfile or FFmpeg knows, video sound tracks included.

    Returns float32 [C, T] and the sample rate in Hz. Encoder delay that the container declares is removed.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: {'is not a file' if Path(path).exists() else 'no such file'}")
    if Path(path).stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    wav, rate = _decode_with_soundfile(path) or _decode_with_ffmpeg(path)
    if wav.shape[1] == 0:
        raise UserError(f"{path}: holds no samples")
    if not np.isfinite(wav).all():
        raise UserError(f"{path}: holds samples that are not finite numbers")
    return wav, rate


def _decode_with_soundfile(path: PathLike) -> tuple[np.ndarray, int] | None:
    """[C, T] and rate, or None where libsndfile does not know the format."""
    # An open file, not a name: libsndfile then goes by the content, and takes no ".raw" or ".g722" for raw samples.
    with Path(path).open("rb") as stream, _as_user_error(path):
        try:
            file = sf.SoundFile(stream.fileno(), closefd=False)
        except sf.LibsndfileError:
            return None
        with file:
            promised = file.frames
            wav = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
            # libsndfile fixes the length in the header of a truncated WAV; its log keeps the original.
            mended = file.format in ("WAV", "WAVEX", "AIFF") and _data_is_cut_short(file.extra_info)
        if len(wav) < promised or mended:
            raise UserError(f"{path}: cut short: it holds less than its header promises ({len(wav)} samples left)")
    return np.ascontiguousarray(wav.T), rate


def _data_is_cut_short(log: str) -> bool:
    """Whether libsndfile's log of a WAV says that the data chunk is shorter than its header.

    Headers of streams, whose length was unknown when they were written (0, or nearly 2**31 or 2**32), are not wrong.
    """
    for line in log.splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in ("data", "SSND") and "should be" in rest:
            stated = rest.split("(")[0].strip()
            return stated.isdigit() and 0 < int(stated) < 0x7FFF0000
    return False


def _decode_with_ffmpeg(path: PathLike) -> tuple[np.ndarray, int]:
    """[C, T] and rate of the first sound track."""
    import av  # 40 MB of shared libraries that most loader workers never need

    av.logging.set_level(av.logging.PANIC)
    blocks: list[np.ndarray] = []
    rate = channels = None
    try:
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UserError(f"{path}: has no sound track")
            for frame in container.decode(container.streams.audio[0]):
                block = _planes(frame)
                if rate is None:
                    rate, channels = frame.sample_rate, len(block)
                if (frame.sample_rate, len(block)) != (rate, channels):
                    raise UserError(f"{path}: its sample rate or number of channels changes midway; split the file")
                blocks.append(block)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from error
    if not blocks:
        raise UserError(f"{path}: holds no samples")
    return np.concatenate(blocks, axis=1), rate


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


@contextlib.contextmanager
def _as_user_error(path: PathLike) -> Iterator[None]:
    """Convert errors of libsndfile and of the file system to one line with the path."""
    try:
        yield
    except sf.LibsndfileError as error:
        if not Path(path).exists():
            raise UserError(f"{path}: no such file") from error
        raise UserError(f"{path}: cannot be read ({error.error_string})") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def mono(wav: np.ndarray) -> np.ndarray:
    """The mean over channels: [C, T] -> [T]."""
    return wav[0] if len(wav) == 1 else wav.mean(axis=0, dtype=np.float32)


def write_wav(
    path: PathLike,
    wav: np.ndarray,
    sample_rate: int,
    subtype: Literal["PCM_16", "FLOAT"] = "PCM_16",
    overload: Literal["error", "scale"] = "error",
) -> float:
    """Write a WAV atomically.

    wav: float [T] or [C, T].    sample_rate: Hz.    subtype: 16-bit integers or 32-bit floats.
    overload: what to do with samples beyond [-1, 1], which 16 bits cannot hold: raise, or scale the whole file down to
    a peak of 1. Nothing is ever clipped.
    Returns the gain that was applied (1.0 unless scaled). The same samples always give the same bytes.
    """
    wav = np.atleast_2d(np.asarray(wav, dtype=np.float32))
    if not np.isfinite(wav).all():
        raise UserError(f"{path}: not written: the signal holds samples that are not finite numbers")
    gain = 1.0
    if subtype == "PCM_16":
        peak = float(np.abs(wav).max(initial=0.0))
        if peak > 1.0:
            if overload == "error":
                raise UserError(
                    f"{path}: not written: the signal's peak is {peak:.3f}, 16 bits end at 1.0; scale it down"
                )
            gain = 1.0 / peak
        # 1.0 itself becomes 32767, the largest 16-bit number, half a step from where it belongs.
        samples = np.minimum(np.rint(wav * np.float32(32768 * gain)), 32767).astype("<i2")
        header_format, bits = 1, 16
    elif subtype == "FLOAT":
        samples, header_format, bits = wav.astype("<f4"), 3, 32
    else:
        raise UserError(f"{path}: unknown subtype {subtype!r}; known: PCM_16, FLOAT")
    channels, length = samples.shape
    data = np.ascontiguousarray(samples.T).tobytes()
    if len(data) > 0xFFFF0000:
        raise UserError(f"{path}: not written: {length} samples are more than a WAV can hold")
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", header_format, channels, sample_rate, sample_rate * block, block, bits)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
    if header_format == 3:
        chunks += b"fact" + struct.pack("<II", 4, length)
    chunks += b"data" + struct.pack("<I", len(data))
    atomic.write_bytes(path, b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(data)) + b"WAVE" + chunks, data)
    return gain
