"""The demo's archives: published names and layouts, the same bytes each time."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from finallyse.corpora.archives import unpack
from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.layouts import find_recordings
from finallyse.corpora.sources import read_sources
from finallyse.demo import synthesis
from finallyse.demo.pack import OF_SPEECH, PACKERS, pack
from finallyse.demo.speech import collect_speech
from finallyse.errors import UserError
from finallyse.hashes import sha256

AUDIO_CORPORA = [name for name in PACKERS if name != "wavlm-large"]


@pytest.fixture(scope="module")
def sources(root):
    return read_sources(root / "resources" / "datasets.yaml")


@pytest.fixture(scope="module")
def speech_table(speech, tmp_path_factory) -> Path:
    table = tmp_path_factory.mktemp("speech") / "speech.csv"
    collect_speech(speech[0].parent, table, seconds=40, say=lambda _: None)
    return table


@pytest.fixture(scope="module")
def packed(sources, speech_table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    for name in AUDIO_CORPORA:
        pack(sources[name], speech_table if name in OF_SPEECH else None, folder / name)
    return folder


def members(archive: Path) -> dict[str, bytes]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(archive) as file:
        return {info.name: file.extractfile(info).read() for info in file}


LAYOUTS = {
    "VCTK-Corpus-0.92.zip": (r"wav48_silence_trimmed/(p\d{3})/\1_\d{3}_mic[12]\.flac", 48_000),
    "clean_trainset_28spk_wav.zip": (r"clean_trainset_28spk_wav/p\d{3}_\d{3}\.wav", 48_000),
    "noisy_testset_wav.zip": (r"noisy_testset_wav/(p232|p257)_\d{3}\.wav", 48_000),
    "train_clean_100.tar.gz": (r"LibriTTS_R/train-clean-100/(\d+)/(\d+)/\1_\2_\d{6}_\d{6}\.wav", 24_000),
    "train_clean_360.tar.gz": (r"LibriTTS_R/train-clean-360/(\d+)/(\d+)/\1_\2_\d{6}_\d{6}\.wav", 24_000),
    "test_clean.tar.gz": (r"LibriTTS_R/test-clean/(\d+)/(\d+)/\1_\2_\d{6}_\d{6}\.wav", 24_000),
    "daps.tar.gz": (r"daps/clean/(\._)?[fm]\d+_script\d_clean\.wav", 44_100),
    "datasets_fullband.noise_fullband.audioset_000.tar.bz2": (
        r"datasets_fullband/noise_fullband/[\w-]{11}\.wav",
        48_000,
    ),
    "datasets_fullband.noise_fullband.freesound_001.tar.bz2": (
        r"datasets_fullband/noise_fullband/\w+_Freesound_validated_\d+_\d+\.wav",
        48_000,
    ),
    "datasets_fullband.impulse_responses_000.tar.bz2": (
        r"datasets_fullband/impulse_responses/SLR26/simulated_rirs_48k/(small|medium|large)room/(Room\d{3})/\2-\d{5}\.wav",
        48_000,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_archives_have_the_published_layout(packed, name):
    pattern, rate = LAYOUTS[name]
    (archive,) = packed.glob(f"*/{name}")
    files = members(archive)
    assert len(files) >= 2
    for member, content in files.items():
        assert re.fullmatch(pattern, member), member
        if not Path(member).name.startswith("._"):
            wav, found = soundfile.read(io.BytesIO(content))
            assert found == rate and wav.ndim == 1 and 0.01 < np.abs(wav).max() < 1 and np.square(wav).mean() > 1e-9


def test_every_file_of_the_registry_is_packed(packed, sources):
    for name in AUDIO_CORPORA:
        there = {path.name for path in (packed / name).iterdir()} - {"speakers.csv"}
        assert there == {file.name for file in sources[name].files if not file.optional}


def test_preparation_recognises_every_corpus(packed, tmp_path):
    for name in AUDIO_CORPORA:
        if name == "micirp":
            continue
        for archive in (packed / name).glob("*.*z*"):
            unpack(archive, tmp_path / name, say=lambda _: None)
        recordings, remarks = find_recordings(name, tmp_path / name)
        assert not any("not the published layout" in remark for remark in remarks)
        groups = {recording.group for recording in recordings}
        assert len(groups) >= 4


def test_pairs_differ_by_the_noise_alone(packed):
    clean = members(packed / "voicebank" / "clean_trainset_28spk_wav.zip")
    noisy = members(packed / "voicebank" / "noisy_trainset_28spk_wav.zip")
    assert [Path(name).name for name in clean] == [Path(name).name for name in noisy]
    for (_, a), (_, b) in zip(clean.items(), noisy.items(), strict=True):
        reference, degraded = soundfile.read(io.BytesIO(a))[0], soundfile.read(io.BytesIO(b))[0]
        snr_db = 10 * np.log10(np.square(reference).mean() / np.square(degraded - reference).mean())
        assert min(abs(snr_db - level) for level in (0, 5, 10, 15)) < 0.1


def test_the_same_input_gives_the_same_bytes(packed, sources, speech_table, tmp_path):
    for name in ("vctk", "libritts-r", "dns5-rooms"):
        pack(sources[name], speech_table, tmp_path / name)
        for path in (tmp_path / name).iterdir():
            assert sha256(path) == sha256(packed / name / path.name), path


def test_it_is_said_whose_voice_it_is(packed):
    with (packed / "voicebank" / "speakers.csv").open() as file:
        whose = {row["speaker"]: row["voice"] for row in csv.DictReader(file)}
    assert {"p232", "p257", "p226", "p227"} <= set(whose) and len(set(whose.values())) == len(whose) == 6


def test_what_cannot_be_packed(sources, tmp_path):
    with pytest.raises(UserError, match="the demo cannot pack utmosv2, only daps"):
        pack(sources["utmosv2"], None, tmp_path)
    with pytest.raises(UserError, match=r"no such table of speech"):
        pack(sources["vctk"], tmp_path / "absent.csv", tmp_path)


def test_an_archive_made_anew_voids_its_line_in_the_lock(tmp_path):
    lock, archive, target = ChecksumLock(tmp_path / "checksums.lock"), tmp_path / "a.zip", tmp_path / "d" / "a.zip"
    archive.write_bytes(b"new")
    lock.record(target, hashlib.sha256(b"new").hexdigest())
    lock.forget_other_than(target, archive)
    assert lock.get(target)
    lock.record(target, hashlib.sha256(b"old").hexdigest())
    lock.forget_other_than(target, archive)
    assert lock.get(target) is None


@pytest.mark.parametrize("kind", synthesis.NOISES)
def test_noises(kind, speech_48k):
    voices = [speech_48k[start : start + 48_000] for start in range(0, 192_000, 48_000)]
    first, again, other = (
        synthesis.noise(kind, 2.0, 48_000, np.random.default_rng(seed), voices) for seed in (1, 1, 2)
    )
    assert first.shape == (96_000,) and first.dtype == np.float32
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 0.03 < np.sqrt(np.square(first).mean()) < 0.051 and np.abs(first).max() <= 0.95


def test_spectra_of_noises_fall_as_named():
    for kind, expected in (("white", 0), ("pink", -3), ("brown", -6)):
        wav = synthesis.noise(kind, 8.0, 48_000, np.random.default_rng(0), [])
        spectrum = np.square(np.abs(np.fft.rfft(wav)))
        frequency = np.fft.rfftfreq(len(wav), 1 / 48_000)
        low, high = (10 * np.log10(spectrum[(frequency > f) & (frequency < 2 * f)].mean()) for f in (500, 4000))
        assert (high - low) / 3 == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("size", synthesis.ROOM_SIDES_M)
def test_rooms_have_a_direct_path_and_a_decay(size):
    first, second = synthesis.room_responses(size, 2, 48_000, np.random.default_rng(3))
    assert not np.array_equal(first, second)
    for response in (first, second):
        assert np.abs(response).max() == pytest.approx(0.9) and len(response) <= 48_000
        peak = np.abs(response).argmax()
        energy = np.square(response)
        assert energy[max(0, peak - 48) :].sum() > 0.99 * energy.sum(), "hardly anything comes before the direct path"
        assert energy[len(energy) * 3 // 4 :].sum() < 0.05 * energy.sum()


def test_microphones_are_minimum_phase():
    response = synthesis.microphone_response(2048, 44_100, np.random.default_rng(5))
    energy = np.cumsum(np.square(response))
    assert energy[20] > 0.5 * energy[-1], "the energy comes first"
    magnitude = np.abs(np.fft.rfft(response, 16_384))
    frequency = np.fft.rfftfreq(16_384, 1 / 44_100)
    assert (
        magnitude[frequency < 20].max() < magnitude.max() / 4
        and magnitude[frequency > 20_000].max() < magnitude.max() / 4
    )


def test_the_small_wavlm_is_a_whole_folder(sources, tmp_path):
    from finallyse.models.wavlm import WavLM

    for name in ("a", "b"):
        pack(sources["wavlm-large"], None, tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()
    }
    import torch

    wavlm = WavLM(tmp_path / "a")
    wav = torch.randn(2, 8192, generator=torch.Generator().manual_seed(0))
    assert wavlm.dim == 32
    assert wavlm.last_hidden_state(wav).shape == (2, 32, 25)
