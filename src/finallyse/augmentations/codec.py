"""Lossy codecs: encoding and decoding in memory."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import soundfile as sf

from finallyse.audio.resample import resample
from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation, fit, interval, realign
from finallyse.errors import UserError, nearest

# Layer III of MPEG-2, which is used at 16 kHz
MP3_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MP3_RATE = 16_000
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
OPUS_RATE = 48_000


@augmentations_registry.register("codec")
class Codec(Augmentation):
    """A round trip through a lossy codec, drawn evenly from `formats`.

    Args:
        formats: any of mp3 (LAME), vorbis (libvorbis) and opus (libopus).
        mp3_kbps: [min, max] constant bit rate, kbit/s. MP3 is coded at 16 kHz, where such low rates exist: one of
            LAME's rates 8, 16, 24, 32, ... within the limits is drawn (4 to 16 means 8 or 16).
        vorbis_quality: [min, max] quality, between 0 and 1; 0 is about 30 kbit/s at 16 kHz.
        opus_kbps: [min, max] bit rate, kbit/s.

    The delays of encoder and decoder are removed: for MP3 and Opus from the encoder's stated padding, with each packet
    passed to the decoder immediately; Vorbis has none.
    """

    name = "codec"

    def __init__(
        self,
        formats: list[str] = ("mp3", "vorbis", "opus"),
        mp3_kbps: list[float] = (4, 16),
        vorbis_quality: list[float] = (0, 0.3),
        opus_kbps: list[float] = (6, 16),
    ):
        known = ("mp3", "vorbis", "opus")
        for format in formats:
            if format not in known:
                raise UserError(f"codec: unknown format {format!r}; {nearest(format, known)}")
        if not formats:
            raise UserError("codec: formats is empty; name at least one of mp3, vorbis, opus")
        self.formats = tuple(formats)
        low, high = interval(mp3_kbps, "codec: mp3_kbps", 0, 320)
        self.mp3_kbps = [kbps for kbps in MP3_KBPS if low <= kbps <= high]
        if "mp3" in formats and not self.mp3_kbps:
            raise UserError(f"codec: mp3_kbps: none of LAME's rates {MP3_KBPS} lies within {low:g} and {high:g}")
        self.vorbis_quality = interval(vorbis_quality, "codec: vorbis_quality", 0, 1)
        self.opus_kbps = interval(opus_kbps, "codec: opus_kbps", 6, 256)

    def draw(self, rng: np.random.Generator) -> dict:
        """`format`, and `kbps` (mp3, opus) or `quality` (vorbis)."""
        format = self.formats[rng.integers(len(self.formats))]
        if format == "mp3":
            return {"format": format, "kbps": self.mp3_kbps[rng.integers(len(self.mp3_kbps))]}
        if format == "opus":
            return {"format": format, "kbps": float(rng.uniform(*self.opus_kbps))}
        return {"format": format, "quality": float(rng.uniform(*self.vorbis_quality))}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        length = len(wav)
        wav = fit(wav, max(length, sample_rate // 50))  # at least one codec frame
        if params["format"] == "vorbis":
            return fit(_vorbis(wav, sample_rate, params["quality"]), length)
        if params["format"] == "mp3":
            rate, coded = MP3_RATE, resample(wav, sample_rate, MP3_RATE)
            decoded = _mp3(coded, params["kbps"])
        else:
            rate = sample_rate if sample_rate in OPUS_RATES else OPUS_RATE
            coded = resample(wav, sample_rate, rate)
            decoded, rate = _opus(coded, rate, params["kbps"]), OPUS_RATE
        decoded = fit(resample(decoded, rate, sample_rate), len(wav))
        # Opus' delay differs by a sample between its two coding modes, which it selects by the bit rate.
        return (realign(decoded, wav, sample_rate) if params["format"] == "opus" else decoded)[:length]


def _vorbis(wav: np.ndarray, sample_rate: int, quality: float) -> np.ndarray:
    file = io.BytesIO()
    sf.write(file, wav, sample_rate, format="OGG", subtype="VORBIS", compression_level=1 - quality)
    file.seek(0)
    return sf.read(file, dtype="float32")[0]


def _mp3(wav: np.ndarray, kbps: int) -> np.ndarray:
    import av

    # One of LAME's ten quality levels; the default, 2, takes twice the time.
    encoder = av.CodecContext.create("libmp3lame", "w")
    encoder.sample_rate, encoder.format, encoder.bit_rate = MP3_RATE, "fltp", round(1000 * kbps)
    encoder.options = {"compression_level": "7"}
    return _round_trip(wav, encoder, av.CodecContext.create("mp3float", "r"))


def _opus(wav: np.ndarray, sample_rate: int, kbps: float) -> np.ndarray:
    """wav at `sample_rate`, result at OPUS_RATE."""
    import av

    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.bit_rate = sample_rate, "flt", round(1000 * kbps)
    encoder.options = {"application": "audio", "compression_level": "3"}
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate, decoder.layout = OPUS_RATE, "mono"
    return _round_trip(wav, encoder, decoder)


def _round_trip(wav: np.ndarray, encoder, decoder) -> np.ndarray:
    """Encode float32 [T] and decode each packet as it arrives; returns float32 [T'] without the encoder's delay."""
    import av

    encoder.layout, encoder.time_base = "mono", Fraction(1, encoder.sample_rate)
    encoder.open()
    if encoder.extradata:
        decoder.extradata = encoder.extradata  # Opus: the number of samples to skip
    frame = av.AudioFrame.from_ndarray(wav[None], format=encoder.format.name, layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = encoder.sample_rate, encoder.time_base, 0
    queue = av.AudioFifo()
    queue.write(frame)
    blocks = []

    def pass_on(packets) -> None:
        for packet in packets:
            blocks.extend(decoded.to_ndarray().reshape(-1) for decoded in decoder.decode(packet))

    while (piece := queue.read(encoder.frame_size, partial=True)) is not None:
        pass_on(encoder.encode(piece))
    pass_on(encoder.encode(None))
    blocks.extend(decoded.to_ndarray().reshape(-1) for decoded in decoder.decode(None))
    out = np.concatenate(blocks)
    return out.astype(np.float32) / 32768 if out.dtype == np.int16 else out
