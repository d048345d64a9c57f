"""The report: reading, charts and sounds, the page, and refusals."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch

from finallyse.audio.resample import resample
from finallyse.config import merge
from finallyse.errors import UserError
from finallyse.report import figures, listen
from finallyse.report.audio import KBPS, mp3
from finallyse.report.collect import Interval, Recipes, collect
from finallyse.report.html import Options, _banner, _published, _score_row, balance, curves, duration, findings, write
from finallyse.report.paired import Change
from finallyse.schema import read_schema
from support import results as built

NETWORKS = built.NETWORKS


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, speech: list[Path]) -> Path:
    return built.results_once(tmp_path_factory, speech)


@pytest.fixture(scope="session")
def page(results: Path) -> Path:
    return built.page_once(results)


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    """A copy of the results that a test may damage."""
    return shutil.copytree(results, tmp_path / "results")


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.14159, "3.14"), (-0.5, "−0.500"), (12345.6, "12,346"), (0, "0"), (1.5e-7, "1.50e-7"), (math.nan, "–")],
)
def test_number(value: float, text: str) -> None:
    assert figures.number(value) == text


def test_ticks_are_round_and_inside() -> None:
    assert figures.ticks(0.03, 1.02) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    for low, high in [(-3.2, 7.9), (1e-6, 2e-6), (5, 5), (0, 100_000)]:
        assert all(low - 1e-12 <= mark <= high + 1e-12 for mark in figures.ticks(low, high))


def test_thinned_curve_keeps_its_extremes() -> None:
    steps = np.arange(100_000)
    values = np.sin(steps / 3000)
    values[[12_345, 67_890]] = 9, -9
    kept_steps, kept = figures.thin(steps, values)
    assert len(kept) < 300
    assert {12_345, 67_890, 0, 99_999} <= set(kept_steps.tolist())
    assert kept.max() == 9 and kept.min() == -9


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0, 2.0], [1e-6, 1e5, math.nan, 3.0], [-1.0, math.inf, 5.0], list(range(5000))]
)
def test_curves_are_well_formed_and_inside_their_frame(values: list[float]) -> None:
    svg = ElementTree.fromstring(figures.curve(range(len(values)), values, 'a "loss" & <more>'))
    assert svg.get("aria-label").startswith('a "loss" & <more>: from')
    if math.inf in values:
        assert "1 values that are not finite are left out" in svg.get("aria-label")
    width, height = map(float, svg.get("viewBox").split()[2:])
    for path in svg.iter("{http://www.w3.org/2000/svg}path"):
        numbers = [float(n) for n in re.findall(r"[-\d.]+", path.get("d"))]
        assert all(0 <= x <= width for x in numbers[::2]) and all(0 <= y <= height for y in numbers[1::2])


def test_curve_of_nothing_finite_is_empty() -> None:
    assert figures.curve([1, 2], [math.nan, math.inf], "loss") == ""


def test_dot_plot_tells_its_numbers() -> None:
    rows = [("Stage 1", Interval(1.0, 0.5, 1.5), Interval(2.0, 1.8, 2.2)), ("Stage 2", None, Interval(3.0))]
    svg = ElementTree.fromstring(figures.dot_plot(rows, "WB-PESQ"))
    assert svg.get("aria-label") == "WB-PESQ: Stage 1 input 1.00, output 2.00; Stage 2 output 3.00"
    dots = list(svg.iter("{http://www.w3.org/2000/svg}circle"))
    places = [float(dot.get("cx")) for dot in dots]
    assert len(dots) == 3 and places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)


@pytest.mark.parametrize(("rate", "top_hz"), [(16_000, 8_000), (16_000, 24_000), (48_000, 24_000)])
def test_spectrogram_shows_a_tone_where_it_is(rate: int, top_hz: float) -> None:
    from PIL import Image

    tone = 0.5 * np.sin(2 * np.pi * 2000 * np.arange(rate) / rate)
    level = figures.loudest_db(tone, rate)
    assert level == pytest.approx(20 * math.log10(0.5), abs=0.3)
    image = np.asarray(Image.open(io.BytesIO(figures.spectrogram(tone, rate, top_hz, level))).convert("L"), float)
    assert image.shape == (192, 480)
    brightest = 1 - (image[:, 200].argmax() + 0.5) / 192
    assert brightest == pytest.approx(figures.mel_share(2000, top_hz), abs=0.02)
    if rate < 2 * top_hz:  # beyond the rate's range it is dark
        assert image[: int(192 * (1 - figures.mel_share(8200, top_hz)))].max() < 12


# ---------------------------------------------------------------------------------------------------------------------
# Sound


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
def test_mp3_is_the_signal_in_place_at_a_constant_bitrate(speech_48k: np.ndarray, rate: int) -> None:
    wav = resample(speech_48k, 48_000, rate)
    encoded = mp3(wav, rate)
    decoded, out_rate = soundfile.read(io.BytesIO(encoded), dtype="float32")
    expected = resample(wav, rate, out_rate)
    assert len(decoded) == len(expected)  # so that the signals of a player are aligned
    error = decoded - expected
    assert 10 * np.log10((expected**2).sum() / (error**2).sum()) > 20
    assert len(encoded) * 8 / (len(wav) / rate) == pytest.approx(KBPS[out_rate] * 1000, rel=0.05)


def test_an_output_much_louder_than_its_reference_is_played_softer(speech_16k: np.ndarray, tmp_path: Path) -> None:
    wavs = {"reference": speech_16k * 0.1, "enhanced": np.tanh(speech_16k * 50)}
    signals = []
    for kind, wav in wavs.items():
        soundfile.write(tmp_path / f"{kind}.wav", wav, 16_000)
        signals.append((kind, kind, tmp_path / f"{kind}.wav", ""))
    tracks = listen.player("loud", signals, listen.Sounds(8.0))["tracks"]
    decoded = [soundfile.read(io.BytesIO(base64.b64decode(t["src"].partition(",")[2])))[0] for t in tracks]
    levels = [20 * np.log10(np.sqrt(np.mean(wav**2))) for wav in decoded]
    assert levels[1] == pytest.approx(levels[0], abs=0.5)
    assert tracks[0]["note"] == "" and re.fullmatch(r"played \d\d dB lower", tracks[1]["note"])


def test_utterances_are_chosen_from_worst_to_best() -> None:
    assert listen.spread(list("abcdefg"), 3) == ["a", "d", "g"]
    assert listen.spread(list("ab"), 3) == ["a", "b"]
    assert listen.spread(list("abc"), 1) == ["b"]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def test_what_is_there_is_read(results: Path, root: Path) -> None:
    report = collect(results, [*NETWORKS, "hifipp_bwe4"], **built.RECIPES)
    assert [n.name for n in report.networks] == NETWORKS and report.absent == ["hifipp_bwe4"]
    network = report.networks[NETWORKS.index("hifipp_bwe1")]
    assert network.task.text == "bandwidth extension from 1000 Hz" and network.task.input_label == "Band-limited"
    assert network.scale.steps == built.STEPS and network.scale.recipe_steps == 80_000
    assert network.scale.parameters == 41 * 80 * 7 + 41
    assert network.scale.share == pytest.approx(built.STEPS / 80_000)
    assert network.data.files == 4 and network.data.hours == pytest.approx(4 * 4.5 / 3600)
    assert {u.name for u in network.utterances} == {p.stem for p in (results / "enhanced/hifigan/enhanced").iterdir()}
    scores = {s.metric: s for s in network.scores}
    summary = pandas.read_csv(results / "metrics" / "hifipp_bwe1.summary.csv").set_index("metric")
    pesq = scores["wb_pesq"]
    assert pesq.output.mean == pytest.approx(summary.loc["wb_pesq", "mean"])
    assert pesq.output.high - pesq.output.low == pytest.approx(2 * summary.loc["wb_pesq", "ci95"])
    assert pesq.input.mean == pytest.approx(summary.loc["wb_pesq", "noisy_mean"]) and pesq.scored == 4
    assert [scores[m].better for m in ("si_sdr", "lsd", "level")] == ["higher", "lower", "zero"]
    assert scores["si_sdr"].unit == "dB"
    assert scores["wv-mos"].missing and scores["wv-mos"].reason.startswith("missing: needs")
    assert [job.name for job in report.jobs if job.rule == "train_network"] == NETWORKS
    packed = next(job for job in report.jobs if job.rule == "pack_demo")
    assert packed.seconds == pytest.approx(4.2) and math.isnan(packed.memory_mb)
    assert dict(report.networks[-1].facts)["WavLM"] == "2 layers of 32"
    assert dict(network.facts)["Best validation"] == "WB-PESQ 1.70 at step 120"


def _renamed(copy: Path, names: dict[str, str]) -> None:
    """Rename networks, as they are after `networks: {<new>: {experiment: config/experiments/<old>.yaml}}`."""
    for old, new in names.items():
        for place in ("state", "enhanced"):
            (copy / place / old).rename(copy / place / new)
        for file in (f"configs/{old}.yaml", f"{old}.ckpt", f"metrics/{old}.csv", f"metrics/{old}.summary.csv"):
            (copy / file).rename(copy / file.replace(old, new))
        config = copy / f"configs/{new}.yaml"
        config.write_text(config.read_text().replace(f"run_name: {old}", f"run_name: {new}"))


def test_a_network_is_known_by_its_experiment_not_by_its_name(results: Path, copy: Path) -> None:
    names = {"hifipp_denoise": "my_denoiser", "hifipp_bwe1": "hifigan_of_mine", "finally_stage3": "finally_stage1"}
    before = collect(results, list(names), **built.RECIPES)
    for place in ("state", "enhanced"):
        shutil.rmtree(copy / place / "finally_stage1")
    _renamed(copy, names)
    after = collect(copy, list(names.values()), **built.RECIPES)
    assert [(network.name, network.recipe) for network in after.networks] == [(new, old) for old, new in names.items()]
    for one, other in zip(before.networks, after.networks, strict=True):
        assert one.scale == other.scale and other.scale.recipe_steps and other.scale.recipe_parameters
        assert one.differences == other.differences
    assert _banner(after)["headline"] == "A demonstration, not a reproduction"
    assert _banner(after)["lines"][0] == _banner(before)["lines"][0]
    one, other = _published(before), _published(after)
    assert [group["network"] for group in other] == list(names.values())
    assert [group["rows"] for group in other] == [group["rows"] for group in one]


def test_variations_of_a_recipe_are_compared_with_it_and_other_tasks_are_not(
    results: Path, root: Path, tmp_path: Path
) -> None:
    experiments = shutil.copytree(root / "config" / "experiments", tmp_path / "experiments")
    (experiments / "a_wider_one.yaml").write_text(
        "extends: hifipp_denoise.yaml\ngenerator: {args: {hifi_input_channels: 256}}\n"
    )
    (experiments / "only_extended.yaml").write_text("trainer: hifi++_trainer\ndata: {train: {name: vctk}}\n")
    (experiments / "own.yaml").write_text("extends: small.yaml\ngenerator: {args: {width: 256}}\ntrain: {steps: 7}\n")
    recipes = Recipes(experiments, read_schema(built.RECIPES["schema"]), {"hifipp_denoise": {}})
    config = collect(results, ["hifipp_denoise"]).networks[0].config
    wider = merge(config, {"generator": {"args": {"hifi_input_channels": 256}}})
    assert recipes.find(config) == recipes.find(wider) == "hifipp_denoise", "the published one comes first"
    own = dataclasses.asdict(recipes.complete("own", config))
    assert recipes.find(own) == "own"
    assert recipes.find(merge(own, {"generator": {"args": {"width": 192}}})) == "small"
    other_task = merge(
        collect(results, ["hifipp_bwe1"]).networks[0].config, {"data": {"train": {"args": {"input_freq": 500}}}}
    )
    assert recipes.find(other_task) is None
    assert recipes.find(merge(config, {"trainer": "hifigan_trainer"})) is None


def test_tables_of_the_evaluation_are_read(results: Path, copy: Path) -> None:
    """What finallyse.metrics.evaluate writes reads as what the fixture wrote."""
    from finallyse.metrics.evaluate import evaluate

    folder, metrics = copy / "enhanced" / "hifipp_denoise", ["si_sdr", "lsd", "level", "wv-mos"]
    evaluate(
        folder / "enhanced",
        metrics,
        copy / "metrics" / "hifipp_denoise.csv",
        reference=folder / "reference",
        noisy=folder / "noisy",
        score_reference=True,
        resources=str(results.parent / "resources"),
        device="cpu",
        jobs=1,
    )
    before, after = (collect(place, ["hifipp_denoise"]).networks[0] for place in (results, copy))
    assert [s.metric for s in after.scores] == metrics
    for score in after.scores:
        same = next(s for s in before.scores if s.metric == score.metric)
        for ours, other in ((score.output, same.output), (score.input, same.input)):
            assert (ours is None) == (other is None)
            if ours:
                assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(other), abs=2e-3)
        assert (score.reason, score.unit, score.better) == (same.reason, same.unit, same.better)
    for one, other in zip(after.utterances, before.utterances, strict=True):
        assert one.scores["si_sdr"] == pytest.approx(other.scores["si_sdr"], abs=1e-2)
        assert one.input_scores["si_sdr"] == pytest.approx(other.input_scores["si_sdr"], abs=1e-2)


def test_training_data_of_several_corpora_counts_each_once(tmp_path: Path) -> None:
    from finallyse.options import Experiment, from_dict
    from finallyse.report.collect import TrainingData, _training_data

    for name, rows in {"a": 2, "b": 3}.items():
        (tmp_path / name).write_text("path,samples,rate\n" + "wav/x.wav,16000,16000\n" * rows)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")

    def data(manifest: object) -> TrainingData | None:
        return _training_data(from_dict(Experiment, {"data": {"train": {"args": {"manifest": manifest}}}}))

    assert data(a) == TrainingData(files=2, hours=2 / 3600)
    assert data([a, b, a]) == TrainingData(files=5, hours=5 / 3600)
    assert data([a, "nowhere.csv"]) is None and data(None) is None


def test_the_recipes_sizes_are_those_of_their_networks(root: Path) -> None:
    from finallyse.config import read_yaml
    from finallyse.models import models_registry

    recipes = pandas.read_csv(root / "resources" / "paper" / "recipes.csv").set_index("network")
    files = {path.stem: read_yaml(path) for path in (root / "config/experiments").glob("*.yaml")}
    assert set(recipes.index) == set(files) - {"small"}, "small is of no publication"
    counted: dict[str, int] = {}
    for name, experiment in files.items():
        if name not in recipes.index:
            continue
        generator = experiment["generator"]
        sort = repr((generator["name"], generator.get("args", {})))
        if sort not in counted:
            with torch.device("meta"):
                state = models_registry[generator["name"]](**generator.get("args", {})).state_dict()
            counted[sort] = sum(tensor.numel() for key, tensor in state.items() if not key.endswith("original0"))
        assert recipes.loc[name, "generator_parameters"] == counted[sort]


def test_published_numbers_name_known_networks_metrics_and_sources(root: Path) -> None:
    from finallyse.metrics import metrics_registry
    from finallyse.report.collect import _published as read_published

    entries = read_published(root / "resources" / "paper" / "results.csv")
    networks = {path.stem for path in (root / "config/experiments").glob("*.yaml")}
    assert len(entries) > 15
    for entry in entries:
        assert entry.network in networks
        assert entry.metric in {*metrics_registry, "mos", "rtf", "speed", "utmos"}
        assert float(entry.value) > 0 and entry.source and entry.url.startswith("https://")
        assert entry.mark in ("published", "re-implementation")
        if entry.metric == "utmos":
            assert "UTMOSv2" in entry.differs


# ---------------------------------------------------------------------------------------------------------------------
# The page


class Page(html.parser.HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    return Page(page)


def test_page_is_self_contained(parsed: Page, page: Path) -> None:
    assert page.stat().st_size < 10e6
    for tag, attributes in parsed.elements:
        for name in ("src", "srcset", "poster", "data", "action"):
            if name in attributes:
                assert attributes[name].startswith("data:"), f"<{tag} {name}>"
        if tag == "link":
            assert attributes["href"].startswith("data:")
        if tag == "a":
            assert attributes["href"].startswith(("#", "https://"))
    assert not re.search(r"@import|url\((?!data:)", page.read_text())
    assert "default-src 'none'" in page.read_text()


def test_ids_are_unique_and_references_resolve(parsed: Page) -> None:
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.elements:
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids
        for name in ("aria-labelledby", "data-audio"):
            if name in attributes:
                assert attributes[name] in ids


def test_page_says_what_it_must(parsed: Page) -> None:
    text = parsed.text
    for said in (
        "A demonstration, not a reproduction",
        "Better than its input (95 % interval of the paired differences over the validation set): ",
        "hifigan has no input to compare with; its validations: WB-PESQ rising from 1.30 at step 40 to 1.70 at step",
        "120 training steps instead of 30,000 to 100,000",
        "FINALLY, stage by stage",
        "hifipp_bwe2: no results yet",
        "WV-MOS: missing: needs",
        "Not requested: ",
        "ours is UTMOSv2: not comparable",
        "finallyse 0.1.0",
        "A CPU of the test (20 steps), 2 x a GPU of the test (100 steps)",
        "Commit",
        "Peak memory",
        "train_network",
        "bandwidth extension from 1000 Hz",
    ):
        assert said in text, said
    assert {a["id"] for a in parsed.of("section")} >= {"overview", "stages", "networks", "published", "missing", "run"}
    assert {a["id"] for a in parsed.of("article")} == {f"net-{name}" for name in NETWORKS}
    for image in parsed.of("img"):
        assert image["alt"].startswith("Spectrogram of")
    for svg in parsed.of("svg"):
        assert "aria-label" in svg or "aria-hidden" in svg


def test_best_and_worst_are_the_best_and_worst(parsed: Page, results: Path) -> None:
    table = pandas.read_csv(results / "metrics" / "hifigan.csv").set_index("utterance")["wb_pesq"]
    labels = [
        a["aria-label"] for t, a in parsed.elements if t == "div" and a.get("aria-label", "").startswith("Player:")
    ]
    first = labels.index(f"Player: best {table.idxmax()}", 3)  # the first three are the stages'
    assert labels[first + 2] == f"Player: worst {table.idxmin()}"


def test_each_sound_is_in_the_page_once_and_plays(parsed: Page) -> None:
    sounds = parsed.of("audio")
    assert len({a["src"] for a in sounds}) == len(sounds)
    players = [a for t, a in parsed.elements if t == "div" and a.get("class") == "player"]
    tracks = [a for t, a in parsed.elements if t == "div" and a.get("class", "").startswith("track ")]
    assert len(players) == 3 + 3 * len(NETWORKS)
    assert len(tracks) > len(sounds)  # the stages' players share theirs with the networks'
    for audio in sounds[::7]:
        content = base64.b64decode(audio["src"].removeprefix("data:audio/mpeg;base64,"))
        wav, _ = soundfile.read(io.BytesIO(content))
        assert np.abs(wav).max() > 0.01


def test_the_banner_says_how_far_the_run_is_and_what_it_shows(results: Path, root: Path) -> None:
    report = collect(results, NETWORKS, **built.RECIPES)
    assert _banner(report)["level"] == "warning"

    def scaled(**changes: int) -> object:
        for network in report.networks:
            of = network.scale
            network.scale = dataclasses.replace(
                of,
                steps=of.recipe_steps,
                batch_size=of.recipe_batch_size,
                parameters=of.recipe_parameters,
            )
        report.networks[0].scale = dataclasses.replace(report.networks[0].scale, **changes)
        return _banner(report)

    shown = findings(report)
    assert len(shown) >= 2
    assert scaled() == {"level": "note", "headline": "What this run shows", "lines": shown}
    assert all(line in scaled(steps=70_000)["lines"] for line in shown)
    assert scaled(steps=70_000)["level"] == "note"
    assert scaled(parameters=100)["level"] == "warning"


def test_the_balance_of_losses_is_a_table(results: Path, page: Path) -> None:
    histories = {network.name: network.history for network in collect(results, NETWORKS).networks}
    assert balance(histories["finally_stage1"]) is None  # one loss alone
    assert balance(None) is None and balance(histories["finally_stage2"].iloc[1:20]) is None
    table = balance(histories["finally_stage2"])
    assert (table["first"], table["last"]) == ("2", "120")
    assert [tuple(row.values()) for row in table["rows"]] == [
        ("LMOS", "2,000", "120,000", "1.0"),
        ("adversarial", "200", "12,000", "0.10"),
        ("feature matching", "20.0", "1,200", "0.010"),
    ]
    assert not [chart for chart in curves(histories["finally_stage2"]) if "wav" in chart["title"]]
    text = page.read_text()
    assert text.count("<h4>Balance of the losses</h4>") == len(NETWORKS) - 1


def test_a_change_is_coloured_where_its_own_interval_excludes_0(results: Path) -> None:
    """However far the intervals of output and input overlap."""
    score = collect(results, ["hifipp_bwe1"]).networks[0].scores[0]
    wide = dict(input=Interval(1.0, 0.2, 1.8), output=Interval(1.1, 0.3, 1.9))
    rows = [
        _score_row(dataclasses.replace(score, **wide, change=Change(Interval(*change), 9, unpaired)))
        for change, unpaired in (((0.1, 0.06, 0.14), 0), ((0.1, -0.1, 0.3), 1), ((-0.1, -0.18, -0.02), 0))
    ]
    assert [row["verdict"] for row in rows] == ["better", "", "worse"]
    assert [row["change"] for row in rows] == ["+0.100 ± 0.040", "+0.10 ± 0.20", "−0.10 ± 0.08"]
    assert [row["unpaired"] for row in rows] == ["", "of 9 pairs", ""]


@pytest.mark.parametrize(
    ("mean", "verdict", "colour"), [(-0.9, "right level", "better"), (1.2, "wrong level", "worse")]
)
def test_a_level_is_right_or_wrong_whatever_the_input_has(
    results: Path, mean: float, verdict: str, colour: str
) -> None:
    level = next(s for s in collect(results, ["hifipp_bwe1"]).networks[0].scores if s.metric == "level")
    row = _score_row(dataclasses.replace(level, output=Interval(mean, mean - 0.1, mean + 0.1)))
    assert (row["arrow"], row["arrow_said"]) == ("→ 0", "nearest to 0 is best")
    assert (row["change"], row["verdict"]) == (verdict, colour)


def test_utterances_are_ranked_by_what_is_better(results: Path) -> None:
    network = collect(results, ["hifipp_bwe1"]).networks[0]
    level = next(s for s in network.scores if s.metric == "level")
    for utterance, value in zip(network.utterances, (-3.0, 0.1, 2.0, -1.0), strict=True):
        utterance.scores["level"] = value
    assert [u.scores["level"] for u in listen.ranked(network.utterances, level)] == [-3.0, 2.0, -1.0, 0.1]


def test_findings_name_networks_and_metrics_by_their_verdict(results: Path) -> None:
    report = collect(results, ["hifipp_bwe1", "hifipp_denoise", "finally_stage1"])
    verdicts = {"hifipp_bwe1": (1, -1, 0), "hifipp_denoise": (1, 1, 0), "finally_stage1": (1, 1, 0)}
    for network in report.networks:
        kept = [s for s in network.scores if s.metric in ("wb_pesq", "si_sdr", "lsd")]  # lsd is no headline
        network.scores = [
            dataclasses.replace(s, change=Change(Interval(sign, sign - 0.5, sign + 0.5), 4, 0))
            for s, sign in zip(kept, verdicts[network.name], strict=True)
        ]
    of = "95 % interval of the paired differences over the validation set"
    assert findings(report) == [
        f"Better than its input ({of}): hifipp_bwe1 in WB-PESQ; hifipp_denoise, finally_stage1 in WB-PESQ, SI-SDR.",
        "Worse: hifipp_bwe1 in SI-SDR. No clear difference: 0 of 6 comparisons.",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (0.25, 12.34, 125, 7260)] == ["0.25 s", "12.3 s", "2 min 5 s", "2 h 1 min"]


# ---------------------------------------------------------------------------------------------------------------------
# Bad input: nothing half-written


def _spoil_state(folder: Path) -> None:
    (folder / "state/hifigan/history.csv").write_text('step,"a\n1,2\n')


def _spoil_summary(folder: Path) -> None:
    (folder / "metrics/hifigan.summary.csv").write_text("metric,mean\nwb_pesq,1\n")


def _spoil_checkpoint(folder: Path) -> None:
    content = (folder / "hifigan.ckpt").read_bytes()
    (folder / "hifigan.ckpt").write_bytes(content[: len(content) // 2])


def _spoil_audio(folder: Path) -> None:
    for path in (folder / "enhanced/hifigan/enhanced").iterdir():
        path.write_bytes(b"RIFF nothing")


def _spoil_config(folder: Path) -> None:
    (folder / "configs/hifigan.yaml").write_text("train: [")


def _spoil_state_bytes(folder: Path) -> None:
    (folder / "state/hifigan/history.csv").write_bytes(b"step,a\n1,\xff\n")


def _spoil_state_number(folder: Path) -> None:
    (folder / "state/hifigan/history.csv").write_text("step,a\n1,many\n")


def _spoil_state_step(folder: Path) -> None:
    (folder / "state/hifigan/validation.csv").write_text("step,a\n,1\n")


def _spoil_summary_bytes(folder: Path) -> None:
    (folder / "metrics/hifigan.summary.csv").write_bytes(b"metric,mean\n\xff,1\n")


def _spoil_config_section(folder: Path) -> None:
    (folder / "configs/hifigan.yaml").write_text("generator: 5\n")


def _spoil_config_value(folder: Path) -> None:
    path = folder / "configs/hifigan.yaml"
    path.write_text(path.read_text().replace("  batch_size:", "  batch_size: many  #"))


def _spoil_config_dataset(folder: Path) -> None:
    (folder / "configs/hifigan.yaml").write_text("data: {train: {name: [1]}}\n")


def _spoil_config_bytes(folder: Path) -> None:
    (folder / "configs/hifigan.yaml").write_bytes(b"train: \xff")


def _spoil_wavlm(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": 24}')
    path = folder / "configs/hifigan.yaml"
    text = re.sub(r"^wavlm: .*$", f"wavlm: {folder}", path.read_text(), flags=re.MULTILINE)
    path.write_text(text)


def _spoil_benchmark(folder: Path) -> None:
    (folder / "benchmarks/pack_demo.tsv").write_text("nothing\n")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (_spoil_state, "history.csv"),
        (_spoil_summary, "hifigan.summary.csv"),
        (_spoil_checkpoint, "hifigan.ckpt"),
        (_spoil_audio, "enhanced/hifigan/enhanced/"),
        (_spoil_config, "hifigan.yaml"),
        (_spoil_benchmark, "pack_demo.tsv"),
        (_spoil_state_bytes, "history.csv"),
        (_spoil_state_number, "history.csv: column a"),
        (_spoil_state_step, "validation.csv: column step"),
        (_spoil_summary_bytes, "hifigan.summary.csv"),
        (_spoil_config_section, "hifigan.yaml: generator: must be object, got 5"),
        (_spoil_config_value, "hifigan.yaml: data.batch_size: must be integer, got 'many'"),
        (_spoil_config_dataset, "hifigan.yaml: data.train.name: must be"),
        (_spoil_config_bytes, "hifigan.yaml, line 1, column 8: byte 0xff is not UTF-8"),
        (_spoil_wavlm, "config.json: not the configuration of a WavLM"),
    ],
)
def test_what_cannot_be_read_stops_the_report(copy: Path, tmp_path: Path, spoil, named: str) -> None:
    output = tmp_path / "report.html"
    output.write_text("the report of before")
    spoil(copy)
    with pytest.raises(UserError) as error:
        write(collect(copy, ["hifigan"]), output, Options(utterances=1))
    assert named in str(error.value) and "\n" not in str(error.value)
    assert output.read_text() == "the report of before"
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_a_published_number_links_to_a_page_and_runs_nothing(copy: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "resources" / "paper", tmp_path / "paper")
    table = tmp_path / "paper" / "results.csv"
    table.write_text(re.sub(r"https://[^,\n]*", "javascript:alert(1)", table.read_text(), count=1))
    with pytest.raises(UserError, match=r"results\.csv: url 'javascript:alert\(1\)': must begin with https://"):
        collect(copy, ["hifigan"], paper=tmp_path / "paper")


def test_what_is_missing_is_named_or_refused(copy: Path) -> None:
    shutil.rmtree(copy / "state" / "hifigan")
    (copy / "metrics" / "hifigan.csv").unlink()
    network = collect(copy, ["hifigan"]).networks[0]
    assert len(network.missing) == 3 and "losses of the training" in network.missing[0]
    with pytest.raises(UserError, match="hifigan: losses of the training"):
        collect(copy, ["hifigan"], require_all=True)
    with pytest.raises(UserError, match="no results of nothing yet"):
        collect(copy, ["nothing"])
    with pytest.raises(UserError, match="no such folder"):
        collect(copy / "elsewhere", ["hifigan"])


def test_ranking_by_a_metric_that_was_not_computed(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rank-by wv-mos: not among"):
        write(collect(results, ["hifigan"]), tmp_path / "report.html", Options(rank_by="wv-mos"))


# ---------------------------------------------------------------------------------------------------------------------
# The script


def test_script_writes_page_and_figures(results: Path, root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/report.py", "--results", str(results), "--networks", "hifigan"]
    command += ["finally_stage2", "--utterances", "1", "--title", "By the script", "--require-all"]
    augmentations = tmp_path / "of this run" / "augmentations.html"
    augmentations.parent.mkdir()
    augmentations.touch()
    command += ["--augmentations", str(augmentations)]
    output = tmp_path / "deep" / "report.html"
    done = subprocess.run(
        [*command, "--output", str(output), "--figures", str(tmp_path / "figures")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 networks" in done.stdout and "By the script" in output.read_text()
    assert 'href="../of%20this%20run/augmentations.html"' in output.read_text()
    # The differences from the recipe in what defines a result, both complete with their defaults.
    differences = re.findall(
        r"<code>([\w.]+)</code></th><td><code>(.*?)</code></td><td><code>(.*?)</code>", output.read_text()
    )
    assert set(differences) == {("data.batch_size", "32", "4")}
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == [f"{n}.{kind}.svg" for n in ("finally_stage2", "hifigan") for kind in ("metrics", "training")]
    for path in (tmp_path / "figures").iterdir():
        ElementTree.parse(path)


def test_script_explains_itself(root: Path) -> None:
    def script(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "scripts/report.py", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    told = script("--help").stdout
    for option in ("--results", "--networks", "--output", "--figures", "--paper", "--experiments", "--utterances"):
        assert option in told
    wrong = script("--results", "nowhere", "--networks", "hifigan", "--output", "x.html")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: nowhere: no such folder") and not wrong.stdout


def test_snakemakes_own_report_holds_page_and_figures_with_captions(copy: Path, page: Path, root: Path) -> None:
    """`snakemake --report` on finished results: what the rule flags, its captions and labels."""
    from finallyse.report.html import write_figures

    shutil.copy(page, copy / "report.html")
    write_figures(collect(copy, NETWORKS[:2]), copy / "figures")
    (copy / "benchmarks" / "report.tsv").write_text("")
    (copy.parent / "resources").symlink_to(root / "resources")
    (copy.parent / "Snakefile").write_text(
        "import json\n"
        "from pathlib import Path\n"
        "own, anywhere, swept, SWEEPS = str, str, lambda *files: [], {}\n"
        f"RESULTS, NETWORKS, AUGMENTATIONS_PAGE, COMPARED = 'results', {NETWORKS[:2]}, [], {{}}\n"
        "config['networks'] = dict.fromkeys(NETWORKS)\n"
        f"include: '{root}/workflow/rules/report.smk'\n"
        "rule train:\n"  # Snakemake cannot draw the graph of a single rule
        "    output: 'results/{network}.ckpt'\n"
        "    shell: 'false'\n"
    )
    output = copy.parent / "snakemake-report.html"
    done = subprocess.run(
        [Path(sys.executable).with_name("snakemake"), "report", "--report", output, "--nolock"],
        cwd=copy.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert text.count("mean over the validation set with its 95 % interval") == 2
    assert text.count("each loss over the training steps") == 2
    assert "how far it is from the recipes" in text and "trained by one workflow" in text
