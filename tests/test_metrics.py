"""Metrics: each against an independent computation on speech; missing scores are reported, never guessed."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from finallyse.audio.resample import resample
from finallyse.audio.torchaudio_shim import torchaudio  # first: distillmos and transformers import torchaudio
from finallyse.errors import UserError
from finallyse.metrics import MetricSet, Scores, Utterance, metrics_registry, summarise
from finallyse.metrics import base as metrics_base
from finallyse.metrics.measure import mean_and_interval

torch.set_num_threads(1)
RATE = 16000
BETTER = ("higher", "lower", "zero")
NAMES = (
    *("l1_mel_diff", "wb_pesq", "nb_pesq", "stoi", "estoi", "si_sdr", "zm_si_sdr", "level", "lsd"),
    *("dnsmos", "legacy_dnsmos", "distillmos", "wv-mos", "mosnet", "utmos", "wer", "speaker_similarity"),
)


@pytest.fixture(scope="module")
def pair(speech_16k):
    """(enhanced, reference): speech with noise at 15 dB and a gain, float32 [64000]."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(len(speech_16k)) * speech_16k.std() * 10 ** (-15 / 20)
    return (0.8 * (speech_16k + noise)).astype(np.float32), speech_16k


def score(name, enhanced, reference=None, rate=RATE, reference_rate=None, **args):
    return metrics_registry[name](**args).score(Utterance(enhanced, rate, reference, reference_rate))


def reason(name, *args, **kwargs):
    with pytest.raises(metrics_base.Unscored) as error:
        score(name, *args, **kwargs)
    return str(error.value)


def test_registry_and_records():
    assert set(NAMES) == set(metrics_registry)
    for name in NAMES:
        metric = metrics_registry[name]()
        assert next(iter(metric.columns)) == name and metric.needs.paper and metric.better in BETTER
        assert metric.needs.rate in (8000, 16000, None)
    with pytest.raises(UserError, match="did you mean 'wb_pesq'"):
        MetricSet(["wbpesq"])
    with pytest.raises(UserError, match="named twice"):
        MetricSet(["stoi", "stoi"])


def test_import_is_cheap():
    code = (
        "import finallyse.metrics, sys;"
        "print([m for m in ('torch', 'librosa', 'scipy', 'onnxruntime', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- against an independent computation -------------------------------------------------------------------------------


def test_pesq(pair):
    import pesq

    enhanced, reference = pair
    assert score("wb_pesq", *pair) == {"wb_pesq": pytest.approx(pesq.pesq(16000, reference, enhanced, "wb"))}
    narrow = pesq.pesq(8000, resample(reference, 16000, 8000), resample(enhanced, 16000, 8000), "nb")
    assert score("nb_pesq", *pair) == {"nb_pesq": pytest.approx(narrow)}


def test_stoi(pair):
    import pystoi

    enhanced, reference = pair
    assert score("stoi", *pair)["stoi"] == pytest.approx(pystoi.stoi(reference, enhanced, RATE))
    assert score("estoi", *pair)["estoi"] == pytest.approx(pystoi.stoi(reference, enhanced, RATE, extended=True))


def test_si_sdr(pair):
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    enhanced, reference = pair
    expected = scale_invariant_signal_distortion_ratio(
        torch.from_numpy(enhanced).double(), torch.from_numpy(reference).double()
    )
    assert score("si_sdr", *pair)["si_sdr"] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.02, -0.3])
def test_si_sdr_with_a_constant_offset(pair, offset):
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    shifted, reference = pair[0] + np.float32(offset), pair[1]
    for name, zero_mean in (("si_sdr", False), ("zm_si_sdr", True)):
        expected = scale_invariant_signal_distortion_ratio(
            torch.from_numpy(shifted).double(), torch.from_numpy(reference).double(), zero_mean=zero_mean
        )
        assert score(name, shifted, reference)[name] == pytest.approx(expected.item(), abs=1e-6)
    without = score("zm_si_sdr", pair[0], reference)["zm_si_sdr"]
    assert score("zm_si_sdr", shifted, reference + np.float32(0.1))["zm_si_sdr"] == pytest.approx(without, abs=1e-4)
    if offset:
        assert score("si_sdr", shifted, reference)["si_sdr"] < without - 0.5


def test_zm_si_sdr_of_a_constant_is_no_number(speech_16k):
    constant = np.full(RATE, 0.3)
    assert reason("zm_si_sdr", constant, speech_16k[:RATE]) == "enhanced is constant: without its mean nothing is left"
    assert reason("zm_si_sdr", speech_16k[:RATE], constant).startswith("reference is constant")


@pytest.mark.parametrize("gain", [0.01, 0.5, 2.0, 30.0, -1.0])
def test_si_sdr_is_unchanged_by_gain(pair, gain):
    enhanced, reference = pair
    once = score("si_sdr", enhanced, reference)["si_sdr"]
    assert score("si_sdr", np.float32(gain) * enhanced, reference)["si_sdr"] == pytest.approx(once, abs=1e-5)
    assert score("si_sdr", enhanced, np.float32(gain) * reference)["si_sdr"] == pytest.approx(once, abs=1e-5)
    assert once == pytest.approx(15, abs=0.3)


@pytest.mark.parametrize("gain_db", [-18.0, -0.1, 0.0, 6.0])
def test_level_is_the_gain(speech_16k, gain_db):
    louder = (speech_16k * 10 ** (gain_db / 20)).astype(np.float32)
    assert score("level", louder, speech_16k)["level"] == pytest.approx(gain_db, abs=1e-5)
    assert score("level", -louder[::-1].copy(), speech_16k)["level"] == pytest.approx(gain_db, abs=1e-5)


def test_level_hears_what_16_khz_cannot_hold(speech_48k):
    rng = np.random.default_rng(2)
    spectrum = np.fft.rfft(rng.standard_normal(len(speech_48k)))
    spectrum[np.fft.rfftfreq(len(speech_48k), 1 / 48000) < 9000] = 0
    hiss = np.fft.irfft(spectrum, len(speech_48k))
    hiss *= np.sqrt(3 * np.mean(speech_48k.astype(float) ** 2) / np.mean(hiss**2))  # four times the power in all: 6 dB
    enhanced = (speech_48k + hiss).astype(np.float32)
    assert score("level", enhanced, speech_48k, 48000)["level"] == pytest.approx(10 * math.log10(4), abs=0.1)
    assert score("level", resample(enhanced, 48000, 16000), speech_48k, 16000, 48000)["level"] < 1


def test_level_of_silence_is_no_number(speech_16k):
    late = np.zeros(RATE + 100, np.float32)
    late[-50:] = 0.1
    assert (
        reason("level", late, speech_16k[:RATE]) == "enhanced or reference is silent up to where the shorter one ends"
    )
    assert reason("level", np.zeros(RATE), speech_16k[:RATE]) == "enhanced is silent (all zeros)"


def test_goodness_orders_by_what_is_better():
    values = [-3.0, -1.0, 0.5, 2.0]
    order = {better: sorted(values, key=lambda v, b=better: metrics_base.goodness(v, b)) for better in BETTER}
    assert order == {"higher": values, "lower": values[::-1], "zero": [-3.0, 2.0, -1.0, 0.5]}
    assert MetricSet(["wb_pesq", "lsd", "level"]).better("level") == "zero"


def test_lsd_by_hand(speech_48k):
    rng = np.random.default_rng(1)
    reference = speech_48k[:30_000]
    enhanced = (reference + 0.01 * rng.standard_normal(len(reference))).astype(np.float32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = []
    for start in range(0, len(reference) - 2048 + 1, 512):
        levels = []
        for wav in (enhanced, reference):
            spectrum = np.fft.rfft(wav[start : start + 2048].astype(float) * window) / 512 / 1
            power = (np.abs(spectrum) / window.sum() * 2 * 512) ** 2
            levels.append(10 * np.log10(np.maximum(power, 1e-10)))
        frames.append(math.sqrt(np.mean((levels[0] - levels[1]) ** 2)))
    assert score("lsd", enhanced, reference, 48000)["lsd"] == pytest.approx(np.mean(frames))
    assert score("lsd", reference, reference, 48000)["lsd"] == 0


def test_lsd_of_a_long_file_is_that_of_all_frames(speech_16k):
    metric = metrics_registry["lsd"]()
    reference = np.tile(speech_16k, 6)[: 512 * 256 * 2 + 5000]
    enhanced = np.roll(reference, 3)
    levels = [metric._level(wav) for wav in (enhanced, reference)]
    expected = np.sqrt(((levels[0] - levels[1]) ** 2).mean(-1)).mean()
    assert score("lsd", enhanced, reference)["lsd"] == pytest.approx(expected)


def test_lsd_sees_the_missing_band(speech_48k):
    narrow = resample(speech_48k, 48000, 16000)
    wide = score("lsd", speech_48k + np.float32(1e-4), speech_48k, 48000)["lsd"]
    assert score("lsd", narrow, speech_48k, 16000, 48000)["lsd"] > wide + 5


def test_l1_mel_diff(pair):
    import librosa

    enhanced, reference = pair
    mels = []
    for wav in (enhanced, reference):
        padded = np.pad(wav, 384, mode="reflect")
        spectrum = librosa.stft(padded, n_fft=1024, hop_length=256, center=False)
        bands = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
        mels.append(np.log(np.maximum(bands @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9), 1e-5)))
    assert score("l1_mel_diff", *pair)["l1_mel_diff"] == pytest.approx(np.abs(mels[0] - mels[1]).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "model", "seconds"),
    [
        ("dnsmos", "dnsmos", 2),  # doubled to 16 s
        ("dnsmos", "dnsmos", 24),  # beyond 16 s, windows are left out
        ("dnsmos", "dnsmos", 40),
        ("legacy_dnsmos", "dnsmos_personalized", 2),
        ("legacy_dnsmos", "dnsmos_personalized", 24),
    ],
)
def test_dnsmos(pair, name, model, seconds):
    import speechmos.dnsmos

    length = seconds * RATE + 77
    repeated = np.resize(pair[0], length)
    enhanced = repeated * np.linspace(0.02, 1, length, dtype=np.float32)  # windows differ, and so do their scores
    expected = speechmos.dnsmos.run(enhanced, RATE, model)
    values = score(name, enhanced)
    assert values[name] == pytest.approx(expected["ovrl_mos"], abs=1e-5)
    assert values[f"{name}_sig"] == pytest.approx(expected["sig_mos"], abs=1e-5)
    assert values[f"{name}_bak"] == pytest.approx(expected["bak_mos"], abs=1e-5)
    if name == "dnsmos":
        assert values["dnsmos_p808"] == pytest.approx(expected["p808_mos"], abs=1e-5)


def test_distillmos(pair):
    from distillmos import ConvTransformerSQAModel

    with torch.inference_mode():
        expected = ConvTransformerSQAModel().eval()(torch.from_numpy(pair[0])[None]).item()
    assert score("distillmos", pair[0]) == {"distillmos": pytest.approx(expected)}


@pytest.fixture(scope="module")
def wav2vec2_mos(tmp_path_factory):
    """(resources folder with a checkpoint of true shapes, random weights, in the published format; its network)."""
    from finallyse.metrics.networks import wav2vec2_mos_network

    torch.manual_seed(0)
    network = wav2vec2_mos_network()
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    position = "model.encoder.encoder.pos_conv_embed.conv."
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        state[position + old] = state.pop(position + new)
    folder = tmp_path_factory.mktemp("resources")
    path = folder / "weights" / "wav2vec2-mos" / "wav2vec2.ckpt"
    path.parent.mkdir(parents=True)
    # a checkpoint of a training framework also holds objects of classes that are not installed here
    torch.save({"epoch": 3, "state_dict": state, "callbacks": {Recipe: Recipe()}, "lr": np.float64(1e-4)}, path)
    return folder, network


class Recipe:
    """Simulates a class of the framework that wrote a checkpoint; loading must never run it."""

    def __reduce__(self):
        return (pytest.fail, ("code of the checkpoint was run",))


def test_wv_mos_and_mosnet(pair, wav2vec2_mos):
    folder, network = wav2vec2_mos
    wav = pair[0][:24_000]
    x = torch.from_numpy((wav - wav.mean()) / np.sqrt(wav.var() + 1e-7))[None]
    independent = torchaudio.models.wav2vec2.utils.import_huggingface_model(network.encoder).eval()
    with torch.inference_mode():
        hidden = independent.extract_features(x)[0][-1]
        first, _, _, last = network.dense
        expected = (torch.relu(hidden @ first.weight.T + first.bias) @ last.weight.T + last.bias).mean().item()
    assert score("wv-mos", wav, resources=str(folder), device="cpu")["wv-mos"] == pytest.approx(expected, abs=1e-4)
    # peak normalisation is undone by the normalisation to unit variance
    assert score("mosnet", wav, resources=str(folder), device="cpu")["mosnet"] == pytest.approx(expected, abs=1e-3)


def test_utmos_is_the_mean_over_draws_and_repeats(pair, monkeypatch):
    from finallyse.metrics import networks
    from finallyse.models.utmosv2 import UTMOSv2

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small |= {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2}
    stages = [("conv", 1, 2, 1, 8), ("fused", 1, 2, 2, 8)]
    network = UTMOSv2(windows=(512, 256), bands=32, n_fft=512, hop=256, stages=stages, stem=8, head=8, wav2vec2=small)
    monkeypatch.setattr(networks, "_utmosv2", lambda path, device: network)
    wav = torch.from_numpy(pair[0])[None]
    rng = np.random.RandomState(42)
    with torch.inference_mode():
        expected = np.mean([network(wav, network.draw(rng, 1, wav.shape[1])).item() for _ in range(5)])
    assert score("utmos", pair[0]) == score("utmos", pair[0]) == {"utmos": pytest.approx(expected)}


def test_weights_that_are_missing_or_others(pair, tmp_path):
    metrics = MetricSet(["wv-mos", "si_sdr"], resources=str(tmp_path))
    path = tmp_path / "weights" / "wav2vec2-mos" / "wav2vec2.ckpt"
    assert metrics.missing == {"wv-mos": f"missing: needs {path} (Zenodo record 6201162)"}
    scores = metrics.score(Utterance(pair[0], RATE, pair[1]))
    assert set(scores.values) == {"si_sdr"} and not scores.reasons
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"wav2vec2\.ckpt: not readable as a wav2vec2 MOS checkpoint"):
        score("wv-mos", pair[0], resources=str(tmp_path))
    torch.save({"state_dict": {"model.dense.0.weight": torch.zeros(2, 2)}}, path)
    with pytest.raises(UserError, match=r"wav2vec2\.ckpt: not the weights"):
        score("wv-mos", pair[0], resources=str(tmp_path))


# --- rates and lengths ------------------------------------------------------------------------------------------------


def test_resampled_once_per_rate(pair, monkeypatch):
    calls = []
    monkeypatch.setattr(metrics_base, "resample", lambda wav, a, b: calls.append((a, b)) or resample(wav, a, b))
    wide = [resample(wav, 16000, 24000) for wav in pair]
    MetricSet(["wb_pesq", "stoi", "si_sdr", "nb_pesq", "l1_mel_diff", "lsd"]).score(Utterance(wide[0], 24000, wide[1]))
    assert sorted(calls) == [(24000, 8000)] * 2 + [(24000, 16000)] * 2


def test_rates_may_differ(pair):
    enhanced, reference = pair
    same = score("si_sdr", *pair)["si_sdr"]
    assert score("si_sdr", enhanced, resample(reference, 16000, 48000), 16000, 48000)["si_sdr"] == pytest.approx(
        same, abs=0.1
    )
    with pytest.raises(UserError, match="sample rate of 0 Hz"):
        Utterance(enhanced, 0)
    with pytest.raises(UserError, match="one channel"):
        Utterance(np.stack(pair), RATE)


def test_lengths_that_differ(pair):
    enhanced, reference = pair
    cut = score("si_sdr", enhanced[:-800], reference)["si_sdr"]  # 50 ms: both are cut to the shorter
    assert cut == score("si_sdr", enhanced[:-800], reference[:-800])["si_sdr"]
    utterance = Utterance(enhanced[:-8000], RATE, reference)
    assert utterance.length_difference_s == -0.5
    scores = MetricSet(["wb_pesq", "dnsmos"]).score(utterance)
    assert scores.reasons == {"wb_pesq": "lengths differ by more than 0.1 s"}
    assert "dnsmos" in scores.values


def test_long_files_are_cut_for_pesq(pair):
    import pesq

    enhanced, reference = (np.tile(wav, 8)[: 31 * RATE] for wav in pair)
    halves = [slice(0, 31 * RATE // 2), slice(31 * RATE // 2, None)]
    expected = np.mean([pesq.pesq(RATE, reference[half], enhanced[half], "wb") for half in halves])
    assert score("wb_pesq", enhanced, reference)["wb_pesq"] == pytest.approx(expected)
    silent_half = reference.copy()
    silent_half[halves[1]] = 0
    assert score("wb_pesq", enhanced, silent_half)["wb_pesq"] == pytest.approx(
        pesq.pesq(RATE, reference[halves[0]], enhanced[halves[0]], "wb")
    )


# --- what cannot be scored --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wb_pesq", "nb_pesq", "stoi", "estoi", "si_sdr", "lsd", "l1_mel_diff"])
def test_silence_empty_and_nan_are_reasons(name, speech_16k):
    silence, broken = np.zeros_like(speech_16k), speech_16k.copy()
    broken[100] = np.nan
    assert reason(name, speech_16k, silence) == "reference is silent (all zeros)"
    assert reason(name, silence, speech_16k) == "enhanced is silent (all zeros)"
    assert reason(name, broken, speech_16k) == "enhanced has NaN or infinite samples"
    assert reason(name, speech_16k, speech_16k[:0]) == "lengths differ by more than 0.1 s"
    assert reason(name, speech_16k[:0], speech_16k[:100]) == "enhanced is empty"
    assert reason(name, speech_16k) == "no reference"


def test_no_utterance_and_too_short(speech_16k):
    burst = np.zeros_like(speech_16k)
    burst[30_000:30_320] = np.random.default_rng(0).standard_normal(320) * 0.1
    assert reason("wb_pesq", speech_16k, burst) == "PESQ finds no utterance in the reference"
    assert "too short for PESQ" in reason("wb_pesq", speech_16k[:3000], speech_16k[:3000])
    assert "too short for STOI" in reason("stoi", speech_16k[:3000], speech_16k[:3000])
    mostly_silent = speech_16k * (np.arange(len(speech_16k)) < 4000)
    assert "too short for STOI" in reason("stoi", speech_16k, mostly_silent + np.float32(1e-9))
    assert "infinite" in reason("si_sdr", speech_16k, speech_16k)


@pytest.mark.parametrize("name", ["legacy_dnsmos", "distillmos"])
def test_one_sample_has_a_score_or_a_reason(name):
    metrics = MetricSet([name])
    scores = metrics.score(Utterance(np.array([0.1], np.float32), RATE))
    assert set(scores.values) | set(scores.reasons) == set(metrics.columns())
    assert all(math.isfinite(value) for value in scores.values.values())


# --- over utterances --------------------------------------------------------------------------------------------------


def test_confidence_interval():
    from scipy import stats

    values = [2.0, 2.5, 3.5, 1.0, 2.2]
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    mean, half = mean_and_interval(values)
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert mean_and_interval([1.5])[0] == 1.5 and math.isnan(mean_and_interval([1.5])[1])
    assert math.isnan(mean_and_interval([])[0])


def test_summary_counts_reasons():
    scores = [
        Scores({"stoi": 0.5}),
        Scores({}, {"stoi": "short"}),
        Scores({}, {"stoi": "silent"}),
        Scores({}, {"stoi": "short"}),
    ]
    summary = summarise(scores, ["stoi"])["stoi"]
    assert (summary.mean, summary.n, summary.unscored) == (0.5, 1, 3)
    assert summary.reasons_text == "2 x short; 1 x silent"
    assert json.dumps(summary.reasons) == '{"short": 2, "silent": 1}'
