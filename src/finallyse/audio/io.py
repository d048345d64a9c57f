"""Reading and writing audio files.

`read` is for prepared files: a segment of a WAV (or FLAC) without decoding the rest. `decode` is for whatever a user
has: WAV of any kind, FLAC, Ogg, MP3, M4A, raw G.722, the sound track of a video. Samples are float32 in [-1, 1]; files
that cannot be read, are cut short, or have no samples or NaN raise a :class:`UserError` with their path.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile as sf

from finallyse import atomic
from finallyse.audio.blocks import BlockReader
from finallyse.errors import UserError

PathLike = str | os.PathLike


def read(path: PathLike, start: int = 0, frames: int = -1) -> tuple[np.ndarray, int]:
    """A range of a file that libsndfile can read and seek in.

    Args:
        path: WAV or FLAC file.
        start: first sample.
        frames: number of samples; -1 reads to the end.

    Returns:
        float32 [T] (mono) or [T, C], and the sample rate in Hz.

    Raises:
        UserError: for an unreadable file, and for one with fewer samples than requested.
    """
    try:
        with Path(path).open("rb", buffering=0) as file:
            wav, rate, wanted = _read_range(path, file, start, frames)
    except sf.LibsndfileError as error:
        raise UserError(f"{path}: cannot be read ({error.error_string})") from error
    except OSError as error:  # a loader process keeps only the text of errors that it does not know
        raise UserError(f"{path}: {error.strerror or error}") from error
    if len(wav) != wanted:
        raise UserError(f"{path}: truncated: {len(wav)} of the {wanted} samples from {start} on could be read")
    if wanted == 0:
        raise UserError(f"{path}: has no samples")
    return wav, rate


def _read_range(path: PathLike, file: BinaryIO, start: int, frames: int) -> tuple[np.ndarray, int, int]:
    """The samples, their rate, and how many there should be."""
    if plain := _plain_wav(file):
        rate, channels, dtype, length = plain
        wanted = _check_range(path, start, frames, length)
        file.seek(44 + start * channels * dtype.itemsize)
        wav = np.frombuffer(file.read(wanted * channels * dtype.itemsize), dtype).astype(np.float32)
        wav *= np.float32(1 / 32768)
        return wav if channels == 1 else wav[: len(wav) // channels * channels].reshape(-1, channels), rate, wanted
    file.seek(0)
    with sf.SoundFile(file.fileno(), closefd=False) as sound:
        wanted = _check_range(path, start, frames, sound.frames)
        sound.seek(start)
        return sound.read(wanted, dtype="float32"), sound.samplerate, wanted


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
            f"{path}: samples {start} to {start + wanted} were requested, but the file has {length}; "
            "it is not the file that its manifest describes: prepare the corpus again"
        )
    return wanted


def decode(path: PathLike, accept_cut: bool = False) -> tuple[np.ndarray, int]:
    """All of a file in any format that FFmpeg or libsndfile supports, video sound tracks included.

    Returns float32 [C, T], with channels in the order of WAV, and the sample rate in Hz. Encoder delay declared by the
    container is removed. accept_cut: take what there is of a file that is cut short or damaged, with a warning.
    """
    with BlockReader(path, accept_cut=accept_cut) as reader:
        return np.concatenate(list(reader), axis=1), reader.rate


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

    The same samples always give the same bytes. Nothing is ever clipped.

    Args:
        path: the file.
        wav: float [T] or [C, T].
        sample_rate: Hz.
        subtype: 16-bit integers or 32-bit floats.
        overload: if samples exceed the range of 16 bits, raise, or scale the whole file down to a peak of 1.

    Returns:
        The gain that was applied, 1.0 unless scaled.
    """
    wav = np.atleast_2d(np.asarray(wav, dtype=np.float32))
    if not np.isfinite(wav).all():
        raise UserError(f"{path}: not written: the signal contains samples that are not finite numbers")
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
        raise UserError(f"{path}: not written: {length} samples are too many for a WAV")
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", header_format, channels, sample_rate, sample_rate * block, block, bits)
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt
    if header_format == 3:
        chunks += b"fact" + struct.pack("<II", 4, length)
    chunks += b"data" + struct.pack("<I", len(data))
    atomic.write_bytes(path, b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(data)) + b"WAVE" + chunks, data)
    return gain
