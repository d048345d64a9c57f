"""The demo's corpora: speech, noises and impulse responses packed into archives in the published layouts and names.

Each corpus is packed by itself, from `speech.csv` (of :mod:`finallyse.demo.speech`) and fixed seeds; the same input
gives the same bytes. `speakers.csv` beside a corpus' archives lists whose voice each of its speakers has.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from finallyse import atomic
from finallyse.audio.io import read
from finallyse.audio.resample import resample
from finallyse.corpora.manifest import write_csv
from finallyse.corpora.sources import Source
from finallyse.demo import synthesis
from finallyse.demo.speech import read_speech
from finallyse.errors import UserError
from finallyse.progress import data_size

SEED = 20241005
# Published speakers' names, in the order in which they are given to the demo's voices.
VCTK_SPEAKERS = ("p225", "p226", "p227", "p228", "p229", "p230", "p231", "p233")
VOICEBANK_TRAIN = ("p226", "p227", "p228", "p230", "p231", "p233")
VOICEBANK_TEST = ("p232", "p257")
LIBRITTS_SPEAKERS = ("103", "118", "125", "150", "163", "196", "198", "200")
DAPS_SPEAKERS = ("f1", "m1", "f2", "m2", "f3", "m3", "f4", "m4")
SNR_DB = {"train": (0.0, 5.0, 10.0, 15.0), "test": (2.5, 7.5, 12.5, 17.5)}  # of VoiceBank-DEMAND
VOICE_S, TEST_VOICE_S = 60.0, 24.0  # speech per voice: for training, for testing
TAKES = 4  # copies of a training utterance of VoiceBank-DEMAND, each in another noise
ROOMS_OF_A_SIZE, RESPONSES_OF_A_ROOM = 4, 2
NOISES_OF_AN_ARCHIVE, NOISE_S = 6, 6.0

Files = Iterator[tuple[str, bytes]]


@dataclass
class Voices:
    """The demo's speech: speaker -> files."""

    files: dict[str, list[Path]]
    whose: dict[str, str] = field(default_factory=dict)  # published speaker -> its voice

    @property
    def names(self) -> list[str]:
        return sorted(self.files)

    def clips(self, name: str, rate: int, seconds: float, published: str) -> list[np.ndarray]:
        """Clips of a voice at `rate`, at least `seconds` in all if it has them: float32 [T] within [-1, 1]."""
        self.whose[published] = name
        clips, full = [], 0.0
        for path in self.files[name]:
            if clips and full >= seconds:
                break
            clips.append(_clip(path, rate))
            full += len(clips[-1]) / rate
        return clips


@functools.lru_cache(maxsize=512)
def _clip(path: Path, rate: int) -> np.ndarray:
    wav, from_rate = read(path)
    wav = resample(wav, from_rate, rate)
    return wav / max(1.0, np.abs(wav).max())


def pack(source: Source, speech: str | Path | None, folder: str | Path) -> list[Path]:
    """Write all files of a source that are not optional into `folder`. Returns their paths.

    Args:
        source: entry of the registry, with the names of the archives.
        speech: speech.csv, for corpora of speech.
        folder: folder of the archives.

    Raises:
        UserError: for a source that cannot be packed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if source.name not in PACKERS:
        raise UserError(f"the demo cannot pack {source.name}, only {', '.join(sorted(PACKERS))}")
    voices = Voices(read_speech(speech)) if speech else Voices({})
    names = [file.name for file in source.files if not file.optional]
    written = []
    for name in names:
        path = folder / name
        with atomic.replacing(path) as part:
            PACKERS[source.name](name, names, voices, part)
        written.append(path)
    if voices.whose:
        rows = [{"speaker": published, "voice": name} for published, name in sorted(voices.whose.items())]
        write_csv(folder / "speakers.csv", ("speaker", "voice"), rows)
    size = sum(path.stat().st_size for path in written)
    print(f"{source.name}: {len(written)} files, {data_size(size)}, in {folder}", file=sys.stderr)
    return written


# ---------------------------------------------------------------------------------------------------------------------
# Archives, reproducible to the byte


def _write_zip(path: Path, files: Files) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.external_attr = 0o100644 << 16
            # FLAC cannot be compressed further
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".flac") else zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


def _write_tar(path: Path, files: Files, compressed: Callable[[], contextlib.AbstractContextManager]) -> None:
    with compressed() as stream, tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), 1_577_836_800, 0o644
            archive.addfile(info, io.BytesIO(content))


def _write_tar_gz(path: Path, files: Files) -> None:
    with path.open("wb") as raw:
        _write_tar(path, files, lambda: gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0))


def _write_tar_bz2(path: Path, files: Files) -> None:
    _write_tar(path, files, lambda: bz2.BZ2File(path, "wb", compresslevel=1))


def _audio(wav: np.ndarray, rate: int, container: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=container, subtype="PCM_16")
    return buffer.getvalue()


def _rng(*key: object) -> np.random.Generator:
    """Random numbers that depend only on the seed and a name."""
    return np.random.default_rng([SEED, *(zlib.crc32(str(part).encode()) for part in key)])


# ---------------------------------------------------------------------------------------------------------------------
# Corpora


def _vctk(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    def files() -> Files:
        for published, voice in zip(VCTK_SPEAKERS[: len(voices.names)], voices.names, strict=True):
            for number, wav in enumerate(voices.clips(voice, 48_000, VOICE_S, published), 1):
                content = _audio(wav, 48_000, "FLAC")
                stem = f"wav48_silence_trimmed/{published}/{published}_{number:03d}"
                yield f"{stem}_mic1.flac", content
                if number == 1:  # the second microphone, which is not used
                    yield f"{stem}_mic2.flac", content

    _write_zip(path, files())


def _voicebank(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    side, part = name.split("_")[:2]  # clean_trainset_28spk_wav.zip
    training = part == "trainset"
    folder = name.removesuffix(".zip")
    # Far apart in the list, so that in a folder of folders the voices are likely to differ.
    test = [voices.names[0], voices.names[len(voices.names) // 3]]
    who = [voice for voice in voices.names if voice not in test] if training else test
    ids = VOICEBANK_TRAIN if training else VOICEBANK_TEST

    def files() -> Files:
        for published, voice in zip(ids[: len(who)], who, strict=True):
            clips = voices.clips(voice, 48_000, VOICE_S if training else TEST_VOICE_S, published)
            for number, clean in enumerate(clips * (TAKES if training else 1), 1):
                utterance = f"{published}_{number:03d}"
                wav = _noisy(clean, utterance, training, number, voices, not_by=voice)
                yield f"{folder}/{utterance}.wav", _audio(wav[side], 48_000)

    _write_zip(path, files())


def _noisy(
    clean: np.ndarray, utterance: str, training: bool, number: int, voices: Voices, not_by: str
) -> dict[str, np.ndarray]:
    """A pair of clean and noisy speech, both scaled down if their sum would exceed 1."""
    levels = SNR_DB["train" if training else "test"]
    rng = _rng("voicebank", utterance)
    kind = synthesis.NOISES[number % len(synthesis.NOISES)]
    others = _babble_voices(voices, 48_000, not_by) if kind == "babble" else []
    background = synthesis.noise(kind, len(clean) / 48_000, 48_000, rng, others)[: len(clean)]
    wanted = np.sqrt(np.square(clean).mean()) / 10 ** (levels[number % len(levels)] / 20)
    noisy = clean + background * (wanted / np.sqrt(np.square(background).mean()))
    scale = 1 / max(1.0, np.abs(noisy).max())
    return {"clean": clean * scale, "noisy": noisy * scale}


def _babble_voices(voices: Voices, rate: int, not_by: str | None = None) -> list[np.ndarray]:
    return [_clip(path, rate) for name in voices.names if name != not_by for path in voices.files[name][:2]]


def _libritts(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    subset = name.removesuffix(".tar.gz").replace("_", "-")
    test, larger, smaller = voices.names[:1], voices.names[1:2], voices.names[2:]
    who = {"test-clean": test, "train-clean-360": larger, "train-clean-100": smaller}.get(subset)
    if who is None:
        raise UserError(f"libritts-r: the demo has no speakers for {name}")

    def files() -> Files:
        for voice in who:
            position = voices.names.index(voice)
            published, chapter = LIBRITTS_SPEAKERS[position], 1240 + position
            for number, wav in enumerate(voices.clips(voice, 24_000, VOICE_S, published)):
                stem = f"{published}_{chapter}_{number // 4:06d}_{number % 4:06d}"
                yield f"LibriTTS_R/{subset}/{published}/{chapter}/{stem}.wav", _audio(wav, 24_000)

    _write_tar_gz(path, files())


def _daps(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    pause = np.zeros(round(0.3 * 44_100), np.float32)

    def files() -> Files:
        # A remnant of macOS as in the published archive, which readers must skip.
        yield "daps/clean/._f1_script1_clean.wav", b"Mac OS X" * 16
        for published, voice in zip(DAPS_SPEAKERS[: len(voices.names)], voices.names, strict=True):
            clips = voices.clips(voice, 44_100, VOICE_S, published)
            half = max(1, len(clips) // 2)
            for script, part in enumerate((clips[:half], clips[half:]), 1):
                if part:
                    wav = np.concatenate([piece for clip in part for piece in (clip, pause)])
                    yield f"daps/clean/{published}_script{script}_clean.wav", _audio(wav, 44_100)

    _write_tar_gz(path, files())


def _dns5_noise(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    def files() -> Files:
        for number in range(NOISES_OF_AN_ARCHIVE):
            count = names.index(name) * NOISES_OF_AN_ARCHIVE + number
            kind = synthesis.NOISES[number % len(synthesis.NOISES)]
            babble = _babble_voices(voices, 48_000) if kind == "babble" else []
            wav = synthesis.noise(kind, NOISE_S, 48_000, _rng("noise", count), babble)
            # As in the published archives: some name videos, others recordings and their pieces.
            file = (
                f"demo{count:07d}.wav" if "audioset" in name else f"{kind}_Freesound_validated_{100000 + count}_0.wav"
            )
            yield f"datasets_fullband/noise_fullband/{file}", _audio(wav, 48_000)

    _write_tar_bz2(path, files())


def _dns5_rooms(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    def files() -> Files:
        for size in synthesis.ROOM_SIDES_M:
            for room in range(1, ROOMS_OF_A_SIZE + 1):
                folder = f"datasets_fullband/impulse_responses/SLR26/simulated_rirs_48k/{size}room/Room{room:03d}"
                responses = synthesis.room_responses(size, RESPONSES_OF_A_ROOM, 48_000, _rng("room", size, room))
                for number, wav in enumerate(responses, 1):
                    yield f"{folder}/Room{room:03d}-{number:05d}.wav", _audio(wav, 48_000)

    _write_tar_bz2(path, files())


def _micirp(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    path.write_bytes(_audio(synthesis.microphone_response(2048, 44_100, _rng("microphone", name)), 44_100))


def _wavlm(name: str, names: Sequence[str], voices: Voices, path: Path) -> None:
    from finallyse.demo.wavlm import wavlm_file

    path.write_bytes(wavlm_file(name, SEED))


PACKERS: dict[str, Callable[[str, Sequence[str], Voices, Path], None]] = {
    "vctk": _vctk,
    "voicebank": _voicebank,
    "libritts-r": _libritts,
    "daps": _daps,
    "dns5-noise": _dns5_noise,
    "dns5-rooms": _dns5_rooms,
    "micirp": _micirp,
    "wavlm-large": _wavlm,
}
# Corpora made from speech (babble is speech).
OF_SPEECH = ("vctk", "voicebank", "libritts-r", "daps", "dns5-noise")
