"""Datasets: what items hold, that they depend on (seed, epoch, index) alone, errors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import scipy.signal
import soundfile as sf
import torch

from finallyse.audio.io import read, write_wav
from finallyse.audio.mel import LogMel
from finallyse.audio.resample import resample
from finallyse.augmentations import Chain
from finallyse.augmentations.noise import active_power
from finallyse.augmentations.streams import stream
from finallyse.corpora.manifest import COLUMNS, LONGEST_NAME, Manifest, write_csv
from finallyse.datasets import datasets_registry
from finallyse.datasets.bandwidth import without_highs
from finallyse.errors import UserError
from support.corpora import lag, make_corpora, recipe


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, speech):
    return make_corpora(tmp_path_factory.mktemp("corpora"), speech)


def manifest(corpora: dict, corpus: str, rate: int = 16000, split: str = "train") -> str:
    return str(corpora[corpus] / str(rate) / f"{split}.csv")


def build(name: str, corpora: dict, **options):
    """A dataset for training, of the small corpora."""
    arguments = {
        "mel_dataset": lambda: {"manifest": manifest(corpora, "libritts-r"), "segment": 8192},
        "vctk": lambda: {"manifest": manifest(corpora, "libritts-r"), "segment": 8192, "input_freq": 2000},
        "voicebank": lambda: {"manifest": manifest(corpora, "voicebank"), "segment": 8192},
        "augmented_libritts-r": lambda: {
            "manifest": manifest(corpora, "libritts-r"),
            "augmentations": recipe(corpora, 16000),
        },
        "degraded_speech": lambda: {
            "manifest": [manifest(corpora, "libritts-r"), manifest(corpora, "libritts-r", split="validation")],
            "augmentations": recipe(corpora, 16000),
            "segment": 8192,
            "level_db": [-30, 0],
        },
        "augmented_daps": lambda: {
            "manifest": manifest(corpora, "daps", 48000),
            "augmentations": recipe(corpora, 48000),
            "virtual_len": 1000,
            "silence_ratio": 0.2,
        },
        "finally_dataset": lambda: {"folder": str(corpora["sources"] / "voicebank" / "noisy")},
        "vctk-demand": lambda: {
            "manifest": manifest(corpora, "voicebank", 16000, "test"),
            "target_manifest": manifest(corpora, "voicebank", 48000, "test"),
        },
    }
    return datasets_registry[name](**{**arguments[name](), **options})


SEEDED = ["mel_dataset", "vctk", "voicebank", "augmented_libritts-r", "augmented_daps", "degraded_speech"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a
    )


@pytest.mark.parametrize("name", datasets_registry)
def test_items_hold_what_they_say(name, corpora):
    dataset = build(name, corpora)
    item = dataset[(3, 1 % len(dataset))]
    length = len(item["input_wav"])
    assert isinstance(item["name"], str) and "/" not in item["name"] and not item["name"].endswith(".wav")
    for key, value in item.items():
        if torch.is_tensor(value):
            assert value.dtype == torch.float32 and torch.isfinite(value).all(), key
            assert "wav" not in key or (value.dim() == 1 and value.abs().max() <= 1), key
    if name != "finally_dataset":
        assert len(item["wav"]) * dataset.input_rate == length * dataset.output_rate
    expected = {
        "mel_dataset": (8192, 16000, 16000),
        "vctk": (8192, 16000, 16000),
        "voicebank": (8192, 16000, 16000),
        "augmented_libritts-r": (8192, 16000, 16000),
        "augmented_daps": (8192, 16000, 48000),
        "degraded_speech": (8192, 16000, 16000),
        "finally_dataset": (length, 16000, 16000),
        "vctk-demand": (length, 16000, 48000),
    }
    assert (length, dataset.input_rate, dataset.output_rate) == expected[name]


@pytest.mark.parametrize("name", datasets_registry)
def test_items_have_the_level_that_their_class_tells(name, corpora):
    scaled = name in ("mel_dataset", "vctk", "voicebank")
    for options in ({}, {"peak": 0.5}) if scaled else ({},):
        level = datasets_registry[name].level_of(**options)
        whole = {"segment": None} if name == "mel_dataset" else {}  # which is scaled before the cut
        peak = float(build(name, corpora, **options, **whole)[(3, 0)]["input_wav"].abs().max())
        # a recording may reach its peak in the samples beyond the last whole frame, and is rounded to 16 bits
        tolerance = 0.02 if whole else 1e-6
        assert level == ({"peak": pytest.approx(peak, rel=tolerance)} if scaled else None)


@pytest.mark.parametrize("name", datasets_registry)
def test_an_item_is_a_function_of_seed_epoch_and_index(name, corpora):
    first, second = build(name, corpora), build(name, corpora)
    last = len(first) - 1
    keys = [(0, 0), (1, 0), (0, last), (7, last)]
    backwards = [second[key] for key in reversed(keys)][::-1]
    assert all(same(first[key], other) for key, other in zip(keys, backwards, strict=True))
    assert same(first[0], first[(0, 0)]) and same(first[-1], first[(0, last)])
    with pytest.raises(IndexError):
        first[len(first)]
    if name in SEEDED:
        assert not same(first[(0, 0)], first[(1, 0)])
        assert not same(first[(0, 0)], build(name, corpora, seed=1)[(0, 0)])
    else:
        assert same(first[(0, 0)], first[(1, 0)])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("name", ["augmented_libritts-r", "augmented_daps", "mel_dataset"])
def test_the_number_of_workers_changes_nothing(name, corpora):
    dataset = build(name, corpora)
    keys = [[(epoch, index)] for epoch in (0, 5) for index in range(4)]
    runs = [
        list(torch.utils.data.DataLoader(dataset, batch_sampler=keys, collate_fn=lambda b: b[0], num_workers=workers))
        for workers in (0, 2, 8)
    ]
    for run in runs[1:]:
        assert all(same(a, b) for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("name", ["mel_dataset", "vctk", "voicebank", "augmented_libritts-r", "augmented_daps"])
def test_whole_recordings_for_validation(name, corpora):
    dataset = build(name, corpora, segment=None)
    recordings = Manifest(dataset.manifest.file)
    assert len(dataset) == len(recordings)
    for index in range(2):
        samples = int(recordings.samples[index])
        item = dataset[index]
        assert abs(len(item["wav"]) - samples) < (256 if name == "mel_dataset" else 3)
        assert same(item, dataset[(0, index)])


# ---------------------------------------------------------------------------------------------------------------------
# One by one


def test_mels_belong_to_the_wav(corpora):
    dataset = build("mel_dataset", corpora, fmax=6000.0)
    item = dataset[(0, 1)]
    assert item["mel"].shape == item["mel_for_loss"].shape == (80, 32)
    assert torch.equal(item["mel"], LogMel(16000, 1024, 256, 1024, 80, 0, 6000)(item["wav"][None])[0])
    assert torch.equal(item["mel_for_loss"], LogMel(16000, 1024, 256, 1024, 80, 0, 8000)(item["wav"][None])[0])
    assert torch.equal(item["wav"], item["input_wav"])
    with pytest.raises(UserError, match="multiple of hop"):
        build("mel_dataset", corpora, segment=8000)


def test_vocoders_hear_a_recording_at_one_level(corpora):
    """Its segments are normalised by the peak of the whole recording, not each by its own."""
    dataset, whole = build("mel_dataset", corpora), build("mel_dataset", corpora, segment=None)
    for index in range(len(whole)):
        recording = read(dataset.manifest.path(index))[0]
        peak = np.abs(recording).max()
        assert whole[index]["wav"].abs().max() == pytest.approx(0.95, abs=1e-3)
        np.testing.assert_allclose(whole[index]["wav"], 0.95 / peak * recording[: len(whole[index]["wav"])], atol=1e-4)
    peaks = []
    for epoch in range(20):
        start, frames = dataset.place(epoch, 0)
        segment, wav = read(dataset.manifest.path(0), start, frames)[0], dataset[(epoch, 0)]["wav"].numpy()
        np.testing.assert_allclose(wav, 0.95 / dataset.manifest.peaks[0] * segment, atol=1e-6)
        peaks.append(np.abs(wav).max())
    assert max(peaks) < 0.951 and min(peaks) < 0.6


def test_peaks_are_those_of_the_prepared_files(corpora):
    for corpus in ("libritts-r", "voicebank"):
        for rate in (16000, 48000):
            listed = Manifest(manifest(corpora, corpus, rate))
            largest = [np.abs(read(listed.path(index))[0]).max() for index in range(len(listed))]
            np.testing.assert_allclose(listed.peaks, largest, atol=1 / 32768)


@pytest.mark.parametrize("peak", ["", "nan", "-0.5", None])
def test_a_missing_peak_is_told_where_it_is_needed(peak, corpora, tmp_path, speech_16k):
    path = list_files(tmp_path, {"a.wav": speech_16k[:20000], "b.wav": speech_16k[20000:40000]})
    columns = [column for column in (*COLUMNS, "noisy_path") if peak is not None or column != "peak"]
    row = {"samples": 20000, "rate": 16000}
    names = [{"path": name, "noisy_path": name} for name in ("a.wav", "b.wav")]
    write_csv(path, columns, [{**names[0], **row, "peak": 0.5}, {**names[1], **row, "peak": peak}])
    with pytest.raises(UserError, match=r"m\.csv: does not give every recording's `peak`.*prepare its corpus again"):
        build("mel_dataset", corpora, manifest=path)
    assert len(build("mel_dataset", corpora, manifest=path, mels_folder=str(tmp_path))) == 2
    assert len(build("vctk", corpora, manifest=path)) == len(build("voicebank", corpora, manifest=path)) == 2


def test_ready_made_mels_belong_to_the_segment(corpora, tmp_path):
    whole = build("mel_dataset", corpora, segment=None, mels_folder=None)
    for index in range(len(whole)):
        frames = int(whole.manifest.samples[index]) // 256
        np.save(tmp_path / f"{whole.manifest.name(index)}.npy", np.tile(np.arange(frames, dtype=np.float32), (80, 1)))
    dataset = build("mel_dataset", corpora, mels_folder=str(tmp_path))
    for epoch in range(4):
        item = dataset[(epoch, 0)]
        first = int(item["mel"][0, 0])
        wav = read(dataset.manifest.path(0), first * 256, 8192)[0]
        np.testing.assert_array_equal(item["wav"].numpy(), wav)
        np.testing.assert_array_equal(item["mel"][5].numpy(), np.arange(first, first + 32))
    (tmp_path / f"{whole.manifest.name(0)}.npy").unlink()
    with pytest.raises(UserError, match=r"\.npy: cannot be read as the mel of"):
        dataset[0]


@pytest.mark.parametrize("lowpass", ["polyphase", "decimate"])
@pytest.mark.parametrize("input_freq", [1000, 2000, 4000])
def test_bandwidth_inputs_have_no_highs(corpora, lowpass, input_freq):
    item = build("vctk", corpora, input_freq=input_freq, lowpass=lowpass)[(0, 1)]
    assert item["wav"].abs().max() == pytest.approx(0.95, abs=1e-4)
    assert item["input_wav"].abs().max() == pytest.approx(0.95, abs=1e-4)
    frequencies, power = scipy.signal.welch(item["input_wav"].numpy(), 16000, nperseg=1024)
    _, target = scipy.signal.welch(item["wav"].numpy(), 16000, nperseg=1024)
    high = frequencies > 1.25 * input_freq
    assert power[high].sum() < 1e-3 * power.sum() and power[high].sum() < 0.1 * target[high].sum() + 1e-9
    assert lag(item["wav"].numpy(), item["input_wav"].numpy(), 100) == 0


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_lowpass_is_scipys(factor, speech_16k):
    wav = speech_16k[:8192]
    low = scipy.signal.resample_poly(wav, 1, factor)
    np.testing.assert_allclose(
        without_highs(wav, factor, "polyphase"), scipy.signal.resample_poly(low, factor, 1)[:8192], atol=1e-6
    )
    low = scipy.signal.decimate(wav, factor)
    np.testing.assert_allclose(
        without_highs(wav, factor, "decimate"), scipy.signal.resample_poly(low, factor, 1)[:8192], atol=1e-5
    )
    for length in (1, 2, 7, 100):
        assert without_highs(wav[:length], factor, "decimate").shape == (length,)


def test_random_lowpass_is_both(corpora):
    random = build("vctk", corpora)
    fixed = {kind: build("vctk", corpora, lowpass=kind) for kind in ("polyphase", "decimate")}
    kinds = [next(k for k, d in fixed.items() if same(random[(e, 0)], d[(e, 0)])) for e in range(20)]
    assert set(kinds) == {"polyphase", "decimate"}
    with pytest.raises(UserError, match="must divide"):
        build("vctk", corpora, input_freq=3000)


def test_voicebank_pairs_stay_in_step(corpora):
    item = build("voicebank", corpora)[(2, 0)]
    assert lag(item["wav"].numpy(), item["input_wav"].numpy(), 1000) == 0
    assert not torch.equal(item["wav"], item["input_wav"])
    with pytest.raises(UserError, match="has no column 'noisy_path'"):
        datasets_registry["voicebank"](manifest(corpora, "libritts-r"))


def test_libritts_segments_lie_in_their_context(corpora):
    dataset = build("augmented_libritts-r", corpora)
    starts = set()
    for epoch in range(6):
        item = dataset[(epoch, 0)]
        start = item["start"]
        starts.add(start)
        assert item["context_wav"].shape == (65536,) and start % 320 == 0 and 0 <= start <= 65536 - 8192
        assert torch.equal(item["input_wav"], item["context_wav"][start : start + 8192])
    assert len(starts) > 3
    clean = datasets_registry["augmented_libritts-r"](manifest(corpora, "libritts-r"), [])[(1, 0)]
    assert torch.equal(clean["wav"], clean["input_wav"])


def test_degraded_inputs_are_in_step_with_their_targets(corpora):
    gentle = {"augmentations": [link for link in recipe(corpora, 16000) if link["name"] != "vibrato"]}
    item = build("augmented_libritts-r", corpora, **gentle, segment=None)[(0, 1)]
    assert abs(lag(item["wav"].numpy(), item["input_wav"].numpy(), 500)) <= 2  # up to 8 augmentations in a row
    gentle = {"augmentations": [{"name": "codec"}]}
    item = build("augmented_daps", corpora, **gentle, segment=96000)[(0, 1)]
    assert abs(lag(resample(item["wav"].numpy(), 48000, 16000), item["input_wav"].numpy(), 500)) <= 1


def test_daps_segments_come_from_everywhere(corpora):
    dataset = build("augmented_daps", corpora, augmentations=[], silence_ratio=0.0, virtual_len=5000)
    assert len(dataset) == 5000
    rows = [dataset._excerpt(0, index)[0] for index in range(3000)]
    share = np.bincount(rows, minlength=len(dataset.manifest)) / 3000
    np.testing.assert_allclose(share, dataset.manifest.samples / dataset.manifest.samples.sum(), atol=0.04)


def test_daps_silence_lies_around_the_speech(corpora):
    dataset = build("augmented_daps", corpora, augmentations=[], silence_ratio=0.5)
    before, after, total = [], [], []
    for index in range(200):
        sounding = np.flatnonzero(dataset[(0, index)]["wav"].numpy())
        before.append(sounding[0])
        after.append(24575 - sounding[-1])
        total.append(before[-1] + after[-1])
    assert np.mean(total) == pytest.approx(0.25 * 24576, rel=0.2) and max(total) < 0.55 * 24576
    assert np.mean(before) == pytest.approx(np.mean(after), rel=0.4)


def test_daps_segments_lie_in_their_context(corpora):
    dataset = build("augmented_daps", corpora)
    alone = build("augmented_daps", corpora, context=None)
    starts = set()
    for index in range(8):
        item = dataset[(1, index)]
        start = item["start"]
        starts.add(start)
        assert item["context_wav"].shape == (65536,) and start % 320 == 0 and 0 <= start <= 65536 - 8192
        assert torch.equal(item["input_wav"], item["context_wav"][start : start + 8192])
        assert torch.equal(item["wav"], alone[(1, index)]["wav"])  # a context moves no segment
    assert len(starts) > 3
    whole = build("augmented_daps", corpora, segment=None)[0]
    assert torch.equal(whole["context_wav"], whole["input_wav"]) and whole["start"] == 0


@pytest.mark.parametrize("silence_ratio", [0.0, 0.5])
@pytest.mark.parametrize("samples", [1, 700, 2399, 2400, 2402, 5000, 9599, 9600, 9601, 10000, 10600, 32000])
def test_a_daps_context_is_the_recording_around_the_segment(samples, silence_ratio, corpora, tmp_path):
    """Recordings that count their samples tell where everything was."""
    path = list_files(tmp_path, {"a.wav": np.arange(1, samples + 1) / 32768}, 48000)
    sizes = {"segment": 2400, "context": 9600, "silence_ratio": silence_ratio}
    dataset = build("augmented_daps", corpora, manifest=path, **sizes)
    places, begins = [], set()
    for index in range(200):
        row, clean, begin = dataset._excerpt(0, index)
        counted = np.rint(clean * 32768).astype(int)
        speech, silent = counted[counted > 0], np.flatnonzero(counted[begin : begin + 2400] == 0)
        assert row == 0 and len(clean) == 9600 and begin % 960 == 0 and begin + 2400 <= 9600
        assert (np.diff(speech) == 1).all(), "the recording in order, nothing of it missing"
        assert counted[:begin].all(), "silence only in the segment, and behind the recording's end"
        behind = counted[begin + 2400 :]
        assert not behind[np.count_nonzero(behind) :].any() and (behind.all() or speech[-1] == samples)
        if samples >= 2400:
            assert len(silent) <= silence_ratio * 2400
        if samples >= 9600 + 960:
            assert np.count_nonzero(behind == 0) < 960, "within the recording, to within the grid"
        begins.add(begin)
        places.append(speech[begin] - 1)
    assert len(begins) == min(8, max(0, samples - 2400) // 960 + 1)
    if samples > 2400:
        evenly = np.linspace(0, samples - 2400, 200)
        np.testing.assert_allclose(np.sort(places), evenly, atol=0.15 * (samples - 2400) + 1)


def test_without_a_context_daps_segments_are_degraded_alone(corpora):
    options = {"context": None, "seed": 3, "silence_ratio": 0.4}
    dataset = build("augmented_daps", corpora, **options)
    chain, listed = Chain(recipe(corpora, 48000)), dataset.manifest
    places = [(row, start) for row in range(len(listed)) for start in range(int(listed.samples[row]) - 24576, -1, -1)]
    for epoch, index in ((0, 0), (0, 7), (2, 1), (5, 999)):
        rng = stream(3, epoch, index, purpose="segment")
        row, start = places[rng.integers(len(places))]
        silence = int(rng.uniform(0, 0.4) * 24576)
        before = int(rng.integers(silence + 1))
        wav = np.pad(read(listed.path(row), start, 24576 - silence)[0], (before, silence - before))
        degraded = resample(chain.apply(wav, 48000, chain.draw(3, epoch, index)), 48000, 16000)
        item = dataset[(epoch, index)]
        assert item.keys() == {"input_wav", "wav", "name"} and item["name"] == listed.name(row)
        np.testing.assert_array_equal(item["wav"].numpy(), wav)
        np.testing.assert_array_equal(item["input_wav"].numpy(), np.clip(degraded, -1, 1))


def decibels(wav: torch.Tensor) -> float:
    """Mean power in dB of full scale."""
    return 10 * np.log10(wav.double().square().mean().item() + 1e-12)


def test_noise_follows_the_level_of_the_context(corpora, speech, tmp_path):
    """In pauses too: a segment's own level does not set that of its noise, as it does where it is degraded alone."""
    voices = [resample(wav, rate, 48000) for wav, rate in map(read, speech[::4])]
    voices = [0.03 * wav / np.sqrt(active_power(wav, 48000)) for wav in voices]
    path = list_files(tmp_path, {"a.wav": np.concatenate(voices)}, 48000)
    noise = [{"name": "noise", "args": {"manifest": manifest(corpora, "dns5-noise", 48000), "snr_db": [15, 15]}}]
    correlation, in_pauses = {}, {}
    for context in (196608, None):
        options = {"manifest": path, "context": context, "silence_ratio": 0.0}
        noisy = build("augmented_daps", corpora, augmentations=noise, **options)
        clean = build("augmented_daps", corpora, augmentations=[], **options)
        levels, own, deviations = [], [], []
        for index in range(80):
            item, same_but_clean = noisy[(0, index)], clean[(0, index)]
            levels.append(decibels(item["input_wav"] - same_but_clean["input_wav"]))
            own.append(decibels(item["wav"]))
            # a third of white noise lies within the 8 kHz that are left
            degraded_as_a_whole = noisy._excerpt(0, index)[1]
            deviations.append(levels[-1] - 10 * np.log10(active_power(degraded_as_a_whole, 48000) / 3) + 15)
        assert np.abs(deviations).max() < 1
        correlation[context] = np.corrcoef(levels, own)[0, 1]
        in_pauses[context] = [level for level, speech_level in zip(levels, own, strict=True) if speech_level < -55]
    assert abs(correlation[196608]) < 0.5 and correlation[None] > 0.9
    assert len(in_pauses[None]) >= 3
    assert min(in_pauses[196608]) > -54 and np.median(in_pauses[None]) < -70


def test_reverberation_comes_from_before_the_segment(corpora):
    """What is heard of the room in a pause that a segment begins with; alone, a segment has nothing to reverberate."""
    room = [{"name": "impulse_response", "args": {"manifest": manifest(corpora, "dns5-rooms", 48000)}}]
    tails = {}
    for context in (196608, None):
        dataset = build("augmented_daps", corpora, augmentations=room, context=context, silence_ratio=0.8)
        tails[context] = []
        for index in range(60):
            item = dataset[(0, index)]
            if np.flatnonzero(item["wav"].numpy())[0] > 4800:
                tails[context].append(decibels(item["input_wav"][:1500]) - decibels(item["input_wav"]))
    assert len(tails[None]) == len(tails[196608]) > 10
    assert np.median(tails[196608]) > -20 and np.median(tails[None]) < -60


def test_vctk_demand_at_both_rates(corpora):
    both = build("vctk-demand", corpora)
    alone = build("vctk-demand", corpora, target_manifest=None)
    assert (alone.input_rate, alone.output_rate) == (16000, 16000) and len(alone) == len(both)
    assert torch.equal(both[0]["input_wav"], alone[0]["input_wav"])
    down = resample(both[0]["wav"].numpy(), 48000, 16000)
    assert np.abs(down - alone[0]["wav"].numpy()).mean() < 1e-3
    limited = build("vctk-demand", corpora, manifest=manifest(corpora, "voicebank"), target_manifest=None, limit=3)
    names = [Manifest(manifest(corpora, "voicebank")).name(i) for i in (0, -1)]
    assert len(limited) == 3 and [limited[0]["name"], limited[-1]["name"]] == names
    with pytest.raises(UserError, match="lists no"):
        build("vctk-demand", corpora, target_manifest=manifest(corpora, "voicebank", 48000, "train"))


def test_a_folder_of_anything(tmp_path, speech_48k):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    stereo = np.stack([speech_48k, np.zeros_like(speech_48k)], axis=1)
    sf.write(tmp_path / "deep" / "er" / "ä b.flac", stereo, 48000)
    sf.write(tmp_path / "one.wav", speech_48k[:48000], 48000)
    sf.write(tmp_path / "one.ogg", speech_48k[:48000], 48000)
    (tmp_path / "notes.txt").write_text("no audio")
    dataset = datasets_registry["finally_dataset"](str(tmp_path))
    items = {item["name"]: item for item in (dataset[i] for i in range(len(dataset)))}
    assert set(items) == {"deep_er_ä b", "one.wav", "one.ogg"}
    expected = resample(0.5 * speech_48k, 48000, 16000)
    np.testing.assert_allclose(items["deep_er_ä b"]["input_wav"].numpy(), expected, atol=1e-3)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.wav: the file is empty"):
        [item for item in datasets_registry["finally_dataset"](str(tmp_path))]
    with pytest.raises(UserError, match="holds no audio files"):
        (tmp_path / "none").mkdir()
        datasets_registry["finally_dataset"](str(tmp_path / "none"))


def test_names_of_a_deep_folder_can_be_those_of_files(tmp_path, speech_16k):
    deep = tmp_path.joinpath(*["a folder with a name of some length"] * 6)
    deep.mkdir(parents=True)
    for name in ("one", "two"):
        write_wav(deep / f"{name}.wav", speech_16k[:16000], 16000)
    dataset = datasets_registry["finally_dataset"](str(tmp_path))
    names = {dataset[index]["name"] for index in range(2)}
    assert len(names) == 2 and all(len(name) <= LONGEST_NAME and name.startswith("a folder") for name in names)


# ---------------------------------------------------------------------------------------------------------------------
# Short, broken and missing files


def list_files(folder, wavs: dict, rate: int = 16000, **more) -> str:
    rows = []
    for name, wav in wavs.items():
        write_wav(folder / name, wav, rate)
        row = {"path": name, "samples": len(wav), "rate": rate, "peak": float(np.abs(wav).max())}
        rows.append(row | {"noisy_path": name, **more})
    write_csv(folder / "m.csv", [*COLUMNS, "noisy_path"], rows)
    return str(folder / "m.csv")


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("samples", [1, 700, 8191])
def test_a_short_recording_is_followed_by_zeros(name, samples, corpora, tmp_path, speech_16k):
    rate = 48000 if name == "augmented_daps" else 16000
    path = list_files(tmp_path, {"a.wav": np.maximum(np.abs(speech_16k[20000 : 20000 + samples]), 0.01)}, rate)
    dataset = build(name, corpora, manifest=path, **({"silence_ratio": 0.0} if name == "augmented_daps" else {}))
    item = dataset[(0, 0)]
    wav = item["wav"].numpy()
    assert len(wav) == (24576 if name == "augmented_daps" else 8192)
    assert np.all(wav[: samples - 1] != 0) and not wav[samples:].any()
    assert item.get("start", 0) == 0


def test_digital_silence_gives_zeros(corpora, tmp_path):
    path = list_files(tmp_path, {"a.wav": np.zeros(70000)})
    for name in ("mel_dataset", "vctk", "voicebank", "augmented_libritts-r"):
        item = build(name, corpora, manifest=path)[(0, 0)]
        assert not item["wav"].any() and torch.isfinite(item["input_wav"]).all()


def test_errors_name_the_file(corpora, tmp_path):
    path = list_files(tmp_path, {"a.wav": np.ones(20000) * 0.1})
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:900])
    for name in ("mel_dataset", "vctk", "voicebank", "augmented_libritts-r"):
        with pytest.raises(UserError, match=r"a\.wav: truncated"):
            build(name, corpora, manifest=path)[(1, 0)]
    sf.write(tmp_path / "a.wav", np.full(20000, np.nan), 16000, subtype="FLOAT")
    for name in ("mel_dataset", "vctk", "voicebank", "augmented_libritts-r"):
        with pytest.raises(UserError, match=r"a\.wav.* finite"):
            build(name, corpora, manifest=path)[(1, 0)]
    sf.write(tmp_path / "a.wav", np.zeros((20000, 2)), 16000)
    with pytest.raises(UserError, match=r"a\.wav: has 2 channels"):
        build("voicebank", corpora, manifest=path)[(1, 0)]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UserError, match=r"a\.wav: No such file"):
        build("voicebank", corpora, manifest=path)[(1, 0)]


@pytest.mark.parametrize("name", SEEDED)
def test_wrong_arguments(name, corpora):
    with pytest.raises(UserError, match=r"nowhere\.csv: no such manifest"):
        build(name, corpora, manifest="nowhere.csv")
    with pytest.raises(UserError, match="segment=0"):
        build(name, corpora, segment=0)
    with pytest.raises(UserError, match="seed=-1"):
        build(name, corpora, seed=-1)
    other = 16000 if name == "augmented_daps" else 48000
    with pytest.raises(UserError, match=f"holds {other} Hz recordings"):
        build(name, corpora, manifest=manifest(corpora, "voicebank", other))
    with pytest.raises(UserError, match=r"no argument 'segmnt'.*did you mean 'segment'"):
        build(name, corpora, segmnt=5)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("augmented_libritts-r", {"segment": 8192, "context": 8000}, "segment=8192 is longer than context=8000"),
        ("augmented_daps", {"segment": 24576, "context": 24573}, "segment=24576 is longer than context=24573"),
        ("augmented_daps", {"segment": 24577}, "segment=24577 must be a multiple of .* 3"),
        ("augmented_daps", {"context": 65536}, "context=65536 must be a multiple of .* 3"),
        ("augmented_daps", {"input_rate": 22050}, "output_rate=48000 is not a multiple of input_rate=22050"),
    ],
)
def test_sizes_that_do_not_fit_together(name, options, message, corpora):
    with pytest.raises(UserError, match=message):
        build(name, corpora, **options)


def test_a_manifest_of_100_000_is_small_and_shared(tmp_path):
    """What a loader process would have to copy: arrays, not lists of objects."""
    paths = (f"wav/train-clean-360/{i % 900}/{i}/x.wav" for i in range(100_000))
    write_csv(tmp_path / "m.csv", COLUMNS, ({"path": path, "samples": 9, "rate": 16000} for path in paths))
    many = Manifest(tmp_path / "m.csv")
    assert len(many) == 100_000 and many.paths[99_999] == "wav/train-clean-360/99/99999/x.wav"
    assert len(pickle.dumps(many)) < 12_000_000
    assert not any(isinstance(value, list) for value in vars(many).values())


def test_manifests_in_a_list_follow_each_other(corpora):
    train, validation = (manifest(corpora, "libritts-r", split=split) for split in ("train", "validation"))
    both, first, second = Manifest([train, validation, train]), Manifest(train), Manifest(validation)
    assert len(both) == 2 * len(first) + len(second)
    assert both.path(len(first)) == second.path(0) and both.path(-1) == first.path(-1) and both.path(0) == first.path(0)
    assert both.name(0) == "libritts-r_" + first.name(0)
    assert np.array_equal(both.samples[: len(first)], both.samples[-len(first) :])
    with pytest.raises(UserError, match=r"48000 Hz recordings, and .*used with it, 16000 Hz"):
        Manifest([train, manifest(corpora, "libritts-r", 48000)])
    with pytest.raises(UserError, match="an empty list"):
        Manifest([])
    with pytest.raises(UserError, match="no such manifest"):
        Manifest([train, "nowhere.csv"])


def test_the_level_of_degraded_speech_varies_with_its_target(corpora):
    as_recorded, scaled = (build("degraded_speech", corpora, level_db=level) for level in (None, [-30, -10]))
    peaks = []
    for index in range(min(6, len(scaled))):
        item, original = scaled[(0, index)], as_recorded[(0, index)]
        peaks.append(20 * np.log10(item["input_wav"].abs().max().item()))
        gain = (item["wav"] @ original["wav"]) / (original["wav"] @ original["wav"])
        assert torch.allclose(item["wav"], gain * original["wav"], atol=1e-6)
        if original["input_wav"].abs().max() < 1:  # not clamped
            assert torch.allclose(item["input_wav"], gain * original["input_wav"], atol=1e-5)
    assert all(-30.01 <= peak <= -9.99 for peak in peaks) and max(peaks) - min(peaks) > 1
    assert len(build("degraded_speech", corpora, limit=2)) == 2


def test_degraded_speech_is_cut_from_its_context(corpora):
    alone = build("degraded_speech", corpora, augmentations=[], level_db=None, segment=8192, context=None)
    within = build("degraded_speech", corpora, augmentations=[], level_db=None, segment=8192, context=16384)
    item = within[(0, 0)]
    assert item["input_wav"].shape == item["wav"].shape == alone[(0, 0)]["wav"].shape == (8192,)
    assert torch.equal(item["input_wav"], item["wav"]) and "context_wav" not in item
    whole = torch.from_numpy(read(within.manifest.path(0))[0])
    assert any(torch.equal(whole[i : i + 8192], item["wav"]) for i in range(len(whole) - 8191))
