"""Audio of the report: MP3 at a constant bitrate.

MP3 is the only compressed format in which Chromium without proprietary codecs, Firefox and Safari of any age can play
and seek; a constant bitrate makes seeking exact, so that signals can be switched at the same position. At these
bitrates one hears the network, not the codec; the metrics are computed from the WAVs in results/enhanced.
"""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

KBPS = {16_000: 64, 24_000: 80, 44_100: 128, 48_000: 128}
"""Bitrate of mono speech by sample rate in Hz."""


def mp3(wav: np.ndarray, sample_rate: int) -> bytes:
    """`wav` [T] as mono MP3 at a constant bitrate. Rates that MP3 lacks are resampled to the next higher one."""
    rate = next((known for known in sorted(KBPS) if known >= sample_rate), 48_000)
    if rate != sample_rate:
        from finallyse.audio.resample import resample

        wav = resample(wav, sample_rate, rate)
    # libsndfile counts bitrates from the highest of the MPEG version (level 0) down to the lowest (level 1).
    lowest, highest = (32, 320) if rate >= 32_000 else (8, 160)
    level = (highest - KBPS[rate]) / (highest - lowest)
    encoded = io.BytesIO()
    soundfile.write(
        encoded,
        np.clip(wav, -1.0, 1.0).astype(np.float32),
        rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=level,
    )
    return encoded.getvalue()


def data_uri(mime: str, content: bytes) -> str:
    """`content` as a data: URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
