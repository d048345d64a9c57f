"""Small corpora for tests of datasets and augmentations: embedded speech, synthetic noises and impulse responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf

from finallyse.corpora.prepare import prepare

RATES = (16000, 48000)


def make_corpora(folder: Path, speech: list[Path]) -> dict[str, Path]:
    """Prepare libritts-r, daps, voicebank, dns5-noise, dns5-rooms and micirp at 16 and 48 kHz below `folder`.

    Returns corpus -> folder with <rate>/train.csv and so on.
    """
    rng = np.random.default_rng(0)
    sources = folder / "sources"
    for corpus in ("libritts-r", "dns5-noise", "dns5-rooms/Room1", "dns5-rooms/Room2", "micirp"):
        (sources / corpus).mkdir(parents=True)
    for side in ("clean", "noisy"):
        (sources / "voicebank" / side).mkdir(parents=True)
    for number, clip in enumerate(speech[::9]):
        wav, rate = sf.read(clip, dtype="float32")
        sf.write(sources / "libritts-r" / f"{number}.flac", wav, rate)
        noisy = wav + 0.01 * rng.standard_normal(len(wav))
        sf.write(sources / "voicebank" / "clean" / f"{number}.wav", wav, rate)
        sf.write(sources / "voicebank" / "noisy" / f"{number}.wav", noisy, rate)
    for number in range(6):
        noise = 0.1 * rng.standard_normal((24000 if number == 0 else 240000, 2 if number == 1 else 1))
        sf.write(sources / "dns5-noise" / f"{number}.wav", noise, 48000)
    for number in range(4):
        room = 0.02 * rng.standard_normal(24000) * np.exp(-np.arange(24000) / 3000)
        room[:150] = 0
        room[150 + 37 * number] = 0.9  # the direct path
        sf.write(sources / "dns5-rooms" / f"Room{1 + number % 2}" / f"{number}.wav", room, 48000)
        microphone = 0.1 * rng.standard_normal(1024) * np.exp(-np.arange(1024) / 30)
        microphone[0] = 0.9
        sf.write(sources / "micirp" / f"{number}.wav", microphone, 48000)
    (sources / "daps").symlink_to(sources / "libritts-r")
    for corpus in ("libritts-r", "daps", "voicebank", "dns5-noise", "dns5-rooms", "micirp"):
        for rate in RATES:
            prepare(corpus, sources / corpus, folder / corpus / str(rate), rate)
    return {path.name: path for path in folder.iterdir()}


def recipe(corpora: dict[str, Path], rate: int) -> list[dict]:
    """The augmentations of stages 1 to 3 in their order, with their probabilities."""
    manifest = {name: str(path / str(rate) / "train.csv") for name, path in corpora.items()}
    return [
        {"name": "noise", "args": {"manifest": manifest["dns5-noise"], "snr_db": [10, 20]}},
        {"name": "impulse_response", "args": {"manifest": manifest["micirp"]}},
        {"name": "impulse_response", "probability": 0.8, "args": {"manifest": manifest["dns5-rooms"]}},
        {"name": "acrusher", "probability": 0.25, "args": {"bits": [1, 9]}},
        {"name": "crystalizer", "probability": 0.4, "args": {"intensity": [1, 4]}},
        {"name": "vibrato", "probability": 0.15, "args": {"frequency_hz": [5, 8]}},
        {"name": "flanger", "probability": 0.15, "args": {"depth": [1, 8]}},
        {"name": "codec", "probability": 0.45},
    ]


def lag(reference: np.ndarray, wav: np.ndarray, reach: int) -> int:
    """Delay of `wav` against `reference` in samples: the peak of their cross-correlation within +-reach."""
    size = 1 << (2 * len(wav)).bit_length()
    product = np.fft.rfft(wav, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.fft.irfft(product, size)
    return int(np.argmax(np.concatenate([correlation[-reach:], correlation[: reach + 1]]))) - reach
