"""Augmentations: length and alignment of any clip, ratios, streams of random numbers, errors."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from finallyse.augmentations import AugmentationError, Chain, augmentations_registry
from finallyse.augmentations.base import shift
from finallyse.augmentations.effects import run_filter
from finallyse.augmentations.noise import active_power, changed_excerpt, excerpt, tilted
from finallyse.augmentations.streams import stream
from finallyse.corpora.manifest import COLUMNS, write_csv
from finallyse.errors import UserError
from support.corpora import lag, make_corpora, recipe


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, speech):
    return make_corpora(tmp_path_factory.mktemp("corpora"), speech)


# name -> (registered name, arguments other than the manifest, corpus of the manifest)
CASES = {
    "noise": ("noise", {"snr_db": [-5, 20]}, "dns5-noise"),
    "varied noise": ("noise", {"mix": [1, 4], "speed": [0.5, 2], "tilt_db": [-12, 12]}, "dns5-noise"),
    "rooms": ("impulse_response", {}, "dns5-rooms"),
    "microphones": ("impulse_response", {}, "micirp"),
    "acrusher": ("acrusher", {}, None),
    "crystalizer": ("crystalizer", {}, None),
    "vibrato": ("vibrato", {}, None),
    "flanger": ("flanger", {}, None),
    "band limit": ("band_limit", {"lowpass_hz": [3400, 7000], "highpass_hz": [50, 300]}, None),
    "mp3": ("codec", {"formats": ["mp3"]}, None),
    "vorbis": ("codec", {"formats": ["vorbis"]}, None),
    "opus": ("codec", {"formats": ["opus"]}, None),
}


def build(case: str, corpora: dict, rate: int):
    name, arguments, corpus = CASES[case]
    if corpus:
        arguments = {**arguments, "manifest": str(corpora[corpus] / str(rate) / "train.csv")}
    return augmentations_registry[name](**arguments)


def test_every_registered_augmentation_is_tested():
    assert {name for name, _, _ in CASES.values()} == set(augmentations_registry)
    assert set(augmentations_registry) == {
        "noise", "impulse_response", "acrusher", "crystalizer", "flanger", "vibrato", "codec", "band_limit"
    }  # fmt: skip


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("case", CASES)
def test_any_clip_keeps_length_and_alignment(case, rate, corpora, speech_16k, speech_48k):
    """Cross-correlation on real speech, to within one sample at 16 kHz; vibrato, of varying delay, is tested apart."""
    augmentation = build(case, corpora, rate)
    speech = speech_16k if rate == 16000 else speech_48k

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**32 - 1),
        length=st.one_of(st.integers(1, 2000), st.integers(rate // 3, 2 * rate)),
        start=st.integers(0, len(speech) - 2 * rate),
    )
    def check(seed, length, start):
        wav = speech[start : start + length]
        before = wav.copy()
        params = augmentation.draw(np.random.default_rng(seed))
        assert json.loads(json.dumps(params)) == params
        out = augmentation.apply(wav, rate, params)
        np.testing.assert_array_equal(wav, before)
        assert out.dtype == np.float32 and out.shape == wav.shape and np.isfinite(out).all()
        np.testing.assert_array_equal(out, augmentation.apply(wav, rate, json.loads(json.dumps(params))))
        if case != "vibrato" and length >= rate // 3 and np.abs(wav).max() > 0.05:
            assert abs(lag(wav, out, rate // 50)) <= rate / 16000

    check()


@pytest.mark.parametrize("rate", [16000, 48000])
def test_vibrato_delays_nothing_in_the_mean(rate):
    """The delay of clicks varies by 20 samples at 16 kHz to either side of zero."""
    step = rate // 50
    clicks = np.zeros(2 * rate, np.float32)
    clicks[step::step] = 1
    vibrato = augmentations_registry["vibrato"]()
    for seed in range(5):
        out = vibrato.apply(clicks, rate, vibrato.draw(np.random.default_rng(seed)))
        around = np.arange(-step // 2, step // 2)
        delays = []
        for position in range(step, len(clicks) - step, step):
            echo = np.abs(out[position - step // 2 : position + step // 2])
            delays.append((echo * around).sum() / echo.sum())
        assert abs(np.mean(delays)) <= rate / 16000
        assert 15 < np.max(delays) / (rate / 16000) < 22 and -22 < np.min(delays) / (rate / 16000) < -15


def test_what_is_compensated_is_really_there(speech_16k):
    """FFmpeg's vibrato alone is late by about 60 samples: the delay that the class removes."""
    clicks = np.zeros(32000, np.float32)
    clicks[800::800] = 1
    out = run_filter(clicks, 16000, "vibrato", f=6.0, d=0.5)
    late = [np.average(np.arange(400), weights=np.abs(out[p : p + 400])) for p in range(800, 31000, 800)]
    assert 55 < np.mean(late) < 65


def test_the_direct_path_lands_where_the_signal_was(corpora, speech_16k):
    """Also where the strongest sound comes later: by the response's offset, not by the correlation."""
    rooms = build("rooms", corpora, 16000)
    for index in range(len(rooms.manifest)):
        params = {"file": str(rooms.manifest.path(index)), "offset": int(rooms.manifest.offsets[index])}
        click = np.zeros(8000, np.float32)
        click[1000] = 1
        assert abs(np.argmax(np.abs(rooms.apply(click, 16000, params))) - 1000) <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Noise and responses


@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 20.0])
def test_the_ratio_is_that_of_active_speech(corpora, speech_16k, snr_db):
    noise = build("noise", corpora, 16000)
    params = {**noise.draw(np.random.default_rng(3)), "snr_db": snr_db}
    added = noise.apply(speech_16k, 16000, params) - speech_16k
    measured = 10 * np.log10(active_power(speech_16k, 16000) / np.mean(added.astype(np.float64) ** 2))
    assert measured == pytest.approx(snr_db, abs=0.01)
    # Twice the clip, half of it silence: neither speech nor noise become quieter.
    padded = np.concatenate([speech_16k, np.zeros_like(speech_16k)])
    louder = noise.apply(padded, 16000, params) - padded
    assert np.sqrt(np.mean(louder**2)) == pytest.approx(np.sqrt(np.mean(added**2)), rel=0.02)


def test_varied_noise_keeps_the_ratio(corpora, speech_16k):
    noise = augmentations_registry["noise"](
        str(corpora["dns5-noise"] / "16000" / "train.csv"), [5, 5], mix=[2, 3], speed=[0.8, 1.25], tilt_db=[-3, 3]
    )
    for seed in range(5):
        params = noise.draw(np.random.default_rng(seed))
        added = noise.apply(speech_16k, 16000, params) - speech_16k
        ratio = 10 * np.log10(active_power(speech_16k, 16000) / np.mean(added**2))
        assert ratio == pytest.approx(5, abs=0.05)
        assert 1 <= len(params["others"]) <= 2 and all(-6 <= other["level_db"] <= 0 for other in params["others"])


def test_speed_and_tilt_change_pitch_and_spectrum(tmp_path):
    wav = np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000).astype(np.float32) * 0.5
    sf.write(tmp_path / "tone.wav", wav, 16000, subtype="FLOAT")
    excerpt_of = {"file": str(tmp_path / "tone.wav"), "samples": 32000, "start": 0.1}
    faster = changed_excerpt(excerpt_of | {"speed": 1.25}, 16000, 16000)
    assert len(faster) == 16000 and np.argmax(np.abs(np.fft.rfft(faster))) == 1250
    white = np.random.default_rng(0).standard_normal(160000).astype(np.float32)
    power = np.abs(np.fft.rfft(tilted(white, 16000, 3.0))) ** 2
    octaves = [np.log10(power[low * 10 : 2 * low * 10].mean()) * 10 for low in (500, 1000, 2000)]
    assert np.diff(octaves) == pytest.approx([3, 3], abs=0.3)


def test_a_band_limit_removes_what_is_outside(speech_16k):
    limit = augmentations_registry["band_limit"]([4000, 4000], [300, 300], [8, 8])
    rng = np.random.default_rng(0)
    white = rng.standard_normal(32000).astype(np.float32) * 0.1
    power = np.abs(np.fft.rfft(limit.apply(white, 16000, limit.draw(rng)))) ** 2  # bins of half a hertz
    inside = power[1000:7000].mean()
    assert power[11000:].mean() < 1e-5 * inside and power[:300].mean() < 1e-4 * inside
    with pytest.raises(UserError, match="must lie below lowpass_hz"):
        augmentations_registry["band_limit"]([200, 400], [100, 300])


def test_active_power_leaves_pauses_out():
    tone = 0.5 * np.sin(np.arange(16000) * 0.3)
    wav = np.concatenate([np.zeros(16000), tone, 1e-4 * np.ones(16000)]).astype(np.float32)
    assert active_power(wav, 16000) == pytest.approx(np.mean(tone**2), rel=0.03)


def test_noise_begins_anywhere(corpora, speech_16k):
    noise = build("noise", corpora, 16000)
    draws = [noise.draw(np.random.default_rng(seed)) for seed in range(200)]
    starts = [params["start"] for params in draws]
    assert (
        min(starts) < 0.05 and max(starts) > 0.95 and len({params["file"] for params in draws}) == len(noise.manifest)
    )
    params = next(p for p in draws if p["samples"] > 60000)
    early, late = (excerpt(params["file"], params["samples"], start, 8192, 16000) for start in (0.0, 0.999))
    assert not np.array_equal(early, late)


def manifest_of(folder, wavs: dict, rate: int = 16000, subtype: str = "PCM_16"):
    """A manifest of files as a user may write one: not prepared, any number of channels."""
    for name, wav in wavs.items():
        sf.write(folder / name, wav, rate, subtype=subtype)
    write_csv(folder / "m.csv", COLUMNS, [{"path": n, "samples": len(w), "rate": rate} for n, w in wavs.items()])
    return str(folder / "m.csv")


def test_stereo_noise_is_mixed(tmp_path, speech_16k):
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 80000))
    stereo = augmentations_registry["noise"](
        manifest_of(tmp_path, {"n.wav": np.stack([left, right], 1)}, subtype="FLOAT")
    )
    params = {"file": str(tmp_path / "n.wav"), "samples": 80000, "start": 0.0, "snr_db": 0.0}
    added = stereo.apply(speech_16k, 16000, params) - speech_16k
    assert added.shape == speech_16k.shape
    assert np.corrcoef(added, (left + right)[: len(added)])[0, 1] > 0.999


@pytest.mark.parametrize("samples", [1, 2, 5, 100, 7000])
def test_a_short_noise_is_looped_without_clicks(tmp_path, speech_16k, samples):
    time = np.arange(samples)
    noise = augmentations_registry["noise"](manifest_of(tmp_path, {"n.wav": 0.3 * np.sin(time * 0.11) + 0.1}))
    params = noise.draw(np.random.default_rng(1))
    looped = excerpt(params["file"], samples, params["start"], 30000, 16000)
    assert looped.shape == (30000,) and np.isfinite(looped).all()
    if samples > 1000:
        assert np.abs(np.diff(looped)).max() < 3 * 0.3 * 0.11  # as smooth at the seams as within
        assert not np.allclose(looped[:5000], excerpt(params["file"], samples, 0.0, 30000, 16000)[:5000])


def test_silence_has_no_ratio(tmp_path, speech_16k):
    wavs = {"zero.wav": np.zeros(30000), "n.wav": np.full(30000, 0.1)}
    noise = augmentations_registry["noise"](manifest_of(tmp_path, wavs))
    silent = {"file": str(tmp_path / "zero.wav"), "samples": 30000, "start": 0.3, "snr_db": 10.0}
    np.testing.assert_array_equal(noise.apply(speech_16k, 16000, silent), speech_16k)
    np.testing.assert_array_equal(
        noise.apply(np.zeros(9000), 16000, {**silent, "file": str(tmp_path / "n.wav")}), np.zeros(9000)
    )


def test_a_response_of_zeros_is_an_error(tmp_path, speech_16k):
    response = augmentations_registry["impulse_response"](manifest_of(tmp_path, {"zero.wav": np.zeros(300)}))
    with pytest.raises(AugmentationError, match=r"'impulse_response' of clip\.wav with .*zero\.wav.* zeros"):
        response.apply(speech_16k, 16000, response.draw(np.random.default_rng(0)), "clip.wav")


def test_a_response_keeps_the_power(corpora, speech_16k):
    for case in ("rooms", "microphones"):
        response = build(case, corpora, 16000)
        out = response.apply(speech_16k, 16000, response.draw(np.random.default_rng(2)))
        assert np.mean(out**2) == pytest.approx(np.mean(speech_16k**2), rel=1e-3)


def test_a_manifest_at_another_rate_is_an_error(corpora, speech_16k):
    for case in ("noise", "rooms"):
        augmentation = build(case, corpora, 48000)
        with pytest.raises(AugmentationError, match=r"48000 Hz recordings and is used at 16000 Hz"):
            augmentation.apply(speech_16k, 16000, augmentation.draw(np.random.default_rng(0)))


# ---------------------------------------------------------------------------------------------------------------------
# Codecs


def test_mp3_has_the_rates_that_lame_has():
    codec = augmentations_registry["codec"](formats=["mp3"])
    drawn = Counter(codec.draw(np.random.default_rng(seed))["kbps"] for seed in range(100))
    assert set(drawn) == {8, 16} and min(drawn.values()) > 25
    with pytest.raises(UserError, match="none of LAME's rates"):
        augmentations_registry["codec"](formats=["mp3"], mp3_kbps=[1, 7])
    with pytest.raises(UserError, match="did you mean 'opus'"):
        augmentations_registry["codec"](formats=["opos"])


def test_codecs_are_drawn_evenly_and_degrade(speech_16k):
    codec = augmentations_registry["codec"]()
    draws = [codec.draw(np.random.default_rng(seed)) for seed in range(300)]
    assert min(Counter(p["format"] for p in draws).values()) > 80
    for format in ("mp3", "vorbis", "opus"):
        params = next(p for p in draws if p["format"] == format)
        error = codec.apply(speech_16k, 16000, params) - speech_16k
        assert 1e-4 < np.mean(error**2) / np.mean(speech_16k**2) < 1


# ---------------------------------------------------------------------------------------------------------------------
# Chains


def test_each_link_draws_from_a_stream_of_its_own(corpora):
    full = recipe(corpora, 16000)
    chain = Chain(full)
    drawn = [chain.draw(0, 0, index) for index in range(2000)]
    applied = np.array([[params is not None for params in one] for one in drawn], dtype=float)
    expected = np.array([link.get("probability", 1.0) for link in full])
    np.testing.assert_allclose(applied.mean(0), expected, atol=0.04)
    varying = applied[:, (expected > 0) & (expected < 1)]
    correlation = np.corrcoef(varying.T) - np.eye(varying.shape[1])
    assert np.abs(correlation).max() < 0.08  # not nested, as with one seed for all
    # Two links of one kind draw differently; removing one does not change the others.
    assert chain.draw(1, 2, 3) == chain.draw(1, 2, 3) != chain.draw(1, 2, 4)
    shorter = Chain(full[:3] + full[4:]).draw(1, 2, 3)
    assert shorter == chain.draw(1, 2, 3)[:3] + chain.draw(1, 2, 3)[4:]
    assert stream(1, 2, purpose="a").random() != stream(1, 2, purpose="b").random()


def test_a_chain_applies_in_order(speech_16k):
    links = [{"name": "acrusher", "args": {"bits": [3, 3]}}, {"name": "crystalizer", "args": {"intensity": [4, 4]}}]
    forward, backward = Chain(links), Chain(links[::-1])
    drawn = forward.draw(0)
    out = forward.apply(speech_16k, 16000, drawn)
    step = forward.links[0].augmentation.apply(speech_16k, 16000, drawn[0])
    np.testing.assert_array_equal(out, forward.links[1].augmentation.apply(step, 16000, drawn[1]))
    assert not np.array_equal(out, backward.apply(speech_16k, 16000, drawn[::-1]))
    np.testing.assert_array_equal(Chain([]).apply(speech_16k, 16000, []), speech_16k)
    never = Chain([{**links[0], "probability": 0}])
    assert [never.draw(0, i) for i in range(50)] == [[None]] * 50


def test_a_failure_says_what_with_and_where(tmp_path, corpora, speech_16k):
    manifest = manifest_of(tmp_path, {"n.wav": np.ones(90000) * 0.1})
    chain = Chain([{"name": "noise", "args": {"manifest": manifest}}])
    (tmp_path / "n.wav").unlink()
    with pytest.raises(AugmentationError) as error:
        chain.apply(speech_16k, 16000, chain.draw(0), source="/corpus/clip 7.wav")
    for part in ("'noise'", "/corpus/clip 7.wav", str(tmp_path / "n.wav"), "snr_db"):
        assert part in str(error.value)
    crusher = augmentations_registry["acrusher"]()
    for bad in (np.zeros(0), np.array([np.nan]), np.zeros((2, 5))):
        with pytest.raises(AugmentationError, match="acrusher"):
            crusher.apply(bad, 16000, {"bits": 3.0})
    with pytest.raises(AugmentationError, match=r"'acrusher' with \{\} failed"):
        crusher.apply(speech_16k, 16000, {})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "acrushed"}, "did you mean 'acrusher'"),
        ({"name": "acrusher", "probabilty": 1}, "did you mean 'probability'"),
        ({"name": "acrusher", "probability": 1.5}, r"1\.5 is not within"),
        ({"name": "acrusher", "args": {"bit": [1, 2]}}, "did you mean 'bits'"),
        ({"name": "acrusher", "args": {"bits": [9, 1]}}, r"least, greatest"),
        ({"name": "flanger", "args": {"depth": [1, 11]}}, r"within \[0, 10\]"),
        ({"name": "noise", "args": {"manifest": "nowhere/train.csv"}}, r"nowhere/train\.csv: no such manifest"),
    ],
)
def test_a_wrong_entry_is_named(entry, message):
    with pytest.raises(UserError, match=message):
        Chain([entry])


def test_shift():
    wav = np.arange(1, 6, dtype=np.float32)
    assert shift(wav, 2).tolist() == [3, 4, 5, 0, 0]
    assert shift(wav, -2).tolist() == [0, 0, 1, 2, 3]
    assert shift(wav, 0).tolist() == wav.tolist() and not shift(wav, 9).any()
