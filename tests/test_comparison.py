"""`finallyse compare`: which systems and recordings, what is measured, and the page, also in a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.audio.io import read, write_wav
from finallyse.cli import main
from finallyse.compare import Run
from finallyse.errors import UserError
from finallyse.metrics import Utterance, metrics_registry
from finallyse.models import models_registry
from finallyse.models.checkpoint import save_checkpoint
from finallyse.report import comparison
from finallyse.report.comparison import Options, compare, parse_systems
from support import ROOT
from support import results as built
from support.browser import Browser
from support.networks import HIFI
from support.speech import read_speech
from test_report_browser import CONTRAST, STATE

torch.set_num_threads(1)
NAMES = ("a", "b", "of joe/c")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small untrained networks: one that changes nothing yet, one that makes noise of everything."""
    folder, paths = tmp_path_factory.mktemp("checkpoints"), {}
    for name, args in {"identity": {"identity_start": True}, "noise": {"spectralmasknet_block_depth": 2}}.items():
        torch.manual_seed(0)
        arguments = HIFI | args
        config = {
            "exp": {"run_name": name, "results": str(folder), "resources": f"{folder}/resources", "threads": len(name)},
            "generator": {"name": "a2a_hifi++_gen", "args": arguments},
            "data": {"train": {"name": "voicebank", "args": {"manifest": f"{folder}/resources/x.csv"}}},
            "train": {"steps": 7},
        }
        paths[name] = folder / f"{name}.ckpt"
        save_checkpoint(
            paths[name],
            network=name,
            config=config,
            step=7,
            generator=models_registry["a2a_hifi++_gen"](**arguments).state_dict(),
            discriminators={},
        )
    state = folder / "state" / "identity"
    state.mkdir(parents=True)
    (state / "history.csv").write_text("step,generator,l1_mel_loss,seconds\n1,2.5,1.5,0.1\n2,2.0,1.0,0.1\n")
    return paths


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of a second of speech, one that cannot be read, and a clean file without its noisy one."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    wav = read_speech(16_000, 4.0)
    for index, name in enumerate(NAMES):
        clean = 0.5 * wav[16_000 * index :][:16_000]
        for kind, signal in (("clean", clean), ("noisy", clean + 0.02 * rng.standard_normal(len(clean)))):
            path = folder / kind / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_wav(path, signal, 16_000, overload="scale")
    for kind in ("clean", "noisy"):
        (folder / kind / "damaged.wav").write_bytes(b"RIFF nothing")
    shutil.copy(folder / "clean" / "a.wav", folder / "clean" / "alone.wav")
    return folder


@pytest.fixture(scope="module")
def page(checkpoints: dict[str, Path], pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of both networks, by the command, on the pairs; its exit status tells of the damaged one."""
    output = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    words = [str(checkpoints["identity"]), f"Other one={checkpoints['noise']}", "--data", str(pairs), "-o", str(output)]
    words += ["--metrics", "stoi", "si_sdr", "level", "--jobs", "1", "--threads", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", *words, "--utterances", "2", "--seconds", "1"])
    assert ended.value.code == 1
    assert [path.name for path in output.parent.iterdir()] == ["page.html"], "nothing is left behind"
    return output


def texts(page: str, tag: str = "tr") -> list[str]:
    """The text of each row of the page's tables."""
    rows = re.findall(rf"<{tag}[ >].*?</{tag}>", page, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in rows]


def test_the_page_has_means_differences_players_and_what_differs(page: Path, pairs: Path) -> None:
    text = page.read_text()
    rows = texts(text)
    titles = ["Input", "identity", "Other one"]
    assert [row.split(" 0.")[0] for row in rows[1:4]] == titles, "no row for clean speech, of which nothing is measured"
    assert rows[0] == "Mean STOI ↑ SI-SDR ↑ dB Level → 0 dB"

    scores = []
    for name in NAMES:
        noisy, clean = (read(pairs / kind / f"{name}.wav")[0] for kind in ("noisy", "clean"))
        scores.append(metrics_registry["si_sdr"]().score(Utterance(noisy, 16_000, clean))["si_sdr"])
    shown = float(re.search(r"Input \S+ ± \S+ (\S+) ±", rows[1])[1])
    assert shown == pytest.approx(np.mean(scores), abs=0.06)

    difference = rows[rows.index("Minus identity STOI ↑ SI-SDR ↑ dB Level → 0 dB") + 1]
    assert re.match(r"Other one \S+ ± \S+ −2\d\.\d+ ±", difference) and text.count('class="n change worse"') == 1
    assert "Other one: not better than identity in anything; worse in SI-SDR; no clear difference in STOI." in text

    tracks = re.findall(r'<div class="track ([^"]+)".*?<span class="label">(.*?)</span>', text, re.DOTALL)
    one = [("noisy", "Input"), ("enhanced", "identity"), ("compared of-1", "Other one"), ("reference", "Clean")]
    assert tracks == one * 2
    assert "2 of 3 recordings, from where Other one gains most over identity in STOI to where it gains least" in text

    options = {row.split()[0]: row.split()[1:] for row in rows if row.startswith(("generator.", "exp.", "data."))}
    assert options == {
        "generator.args.identity_start": ["true", "–"],
        "generator.args.spectralmasknet_block_depth": ["1", "2"],
        "exp.threads": ["8", "5"],
    }
    assert "Options that do not change the result: 1 differ" in text
    missing = texts(text, "li")[-2:]
    assert missing[0].startswith(f"{pairs}/noisy/damaged.wav: ")
    assert missing[1] == f"1 file of {pairs}/clean without a counterpart"


def test_curves_are_those_of_the_states_that_are_there(page: Path) -> None:
    text = page.read_text()
    charts = re.findall(r"<figcaption>(.*?) *</figcaption>.*?aria-label=\"(.*?)\"", text)
    assert charts == [
        ("generator, weighted sum", "generator: from 2.50 at step 1 to 2.00 at step 2"),
        ("mel L1", "l1_mel_loss: from 1.50 at step 1 to 1.00 at step 2"),
    ]
    assert re.findall(r'class="line (of-\d)".*?</svg>(.*?)</span>', text) == [("of-0", "identity")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_is_readable_on_a_phone_and_works_by_keyboard(browser: Browser, page: Path, dark: bool) -> None:
    browser.console.clear()
    browser.requests.clear()
    browser.open(page, 390, 844, dark=dark, phone=True)
    assert browser.run("[document.documentElement.scrollWidth, window.innerWidth]") == [390, 390]
    seen, low = browser.run(CONTRAST)
    assert seen > 60 and low == []
    browser.run('document.querySelector(".player .toggle").focus()')
    browser.press("Enter", 13, "\r")
    browser.press("3", 51, "3")
    browser.run("new Promise((done) => setTimeout(done, 200))")
    state = browser.run(STATE % 0)
    assert state["playing"] and state["pressed"] == state["sounding"] == [False, False, True, False]
    assert browser.console == [] and browser.requests == [page.resolve().as_uri()]


def test_recordings_without_references_have_only_metrics_that_need_none(
    checkpoints: dict[str, Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def evaluate(enhanced, metrics, output, *, reference, **options):
        computed.append(
            (sorted(p.relative_to(enhanced).as_posix() for p in enhanced.rglob("*.wav")), metrics, reference)
        )
        raise UserError("enough")

    monkeypatch.setattr(comparison, "evaluate", evaluate)
    systems = [str(checkpoints["identity"]), str(checkpoints["noise"])]
    data = tmp_path / "recordings"
    data.mkdir()
    shutil.copy(pairs / "noisy" / "a.wav", data)
    with pytest.raises(UserError, match="enough"):
        compare(systems, tmp_path / "x.html", Options(data, device="cpu"))
    ((files, metrics, reference),) = computed
    assert files == ["0-input/a.wav", "1-identity/a.wav", "2-noise/a.wav"] and reference is None
    assert "dnsmos" in metrics and not any(metrics_registry[name].needs.reference for name in metrics)
    with pytest.raises(UserError, match=r"^--metrics stoi: needs references, which there are none of$"):
        compare(systems, tmp_path / "x.html", Options(data, metrics=["stoi"]))


# ---------------------------------------------------------------------------------------------------------------------
# Networks of folders of results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, speech: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("results")
    return built.build(folder, ROOT, speech[::20], ["hifipp_denoise", "finally_stage3"])


def test_networks_of_results_are_compared_by_their_validation_items(results: Path, tmp_path: Path) -> None:
    second = results / "enhanced" / "finally_stage3" / "enhanced"
    shutil.copytree(results, tmp_path / "old")
    max((tmp_path / "old" / second.relative_to(results)).iterdir()).unlink()
    output = tmp_path / "page.html"
    old = f"Old={tmp_path}/old:finally_stage3"
    options = Options(metrics=["si_sdr"], device="cpu", jobs=1, utterances=1, seconds=1.0)
    assert compare([f"{results}:hifipp_denoise", old], output, options) == 0
    text = output.read_text()
    count = len(list(second.iterdir())) - 1
    assert f"{count} recordings: validation items" in text
    assert "1 validation item of hifipp_denoise, which not all systems have" in text
    difference = texts(text)[texts(text).index("Minus hifipp_denoise SI-SDR ↑ dB") + 1]
    assert re.match(r"Old \+8\.\d", difference), "noise at 22 dB instead of 14 dB, each against its own reference"
    labels = re.findall(r'aria-label="(wb_pesq:[^"]*)"', text)
    course = "from 1.30 at step 40 to 1.70 at step 120"
    assert labels == [f"wb_pesq: {course}; Old {course}"]
    assert re.search(
        r"<code>trainer</code></th><td><code>hifi\+\+_trainer</code></td><td><code>finally_stage3_tr", text
    )
    assert not re.search(r"<code>exp\.(results|run_name|resources)</code>", text)
    with pytest.raises(UserError, match=r"page\.html: exists; give --force to replace it"):
        compare([f"{results}:hifipp_denoise", old], output, options)


def test_different_recordings_of_the_same_name_are_noticed(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "other")
    references = sorted((tmp_path / "other/enhanced/hifipp_denoise/reference").iterdir())
    for path in references:
        path.rename(path.with_suffix(".moved"))
    for path, other in zip(references, [*references[1:], references[0]], strict=True):
        other.with_suffix(".moved").rename(path)
    systems = [f"{results}:hifipp_denoise", f"Other={tmp_path}/other:hifipp_denoise"]
    with pytest.raises(UserError, match=rf"different recordings are called '{references[0].stem}'; give --data DIR$"):
        compare(systems, tmp_path / "x.html", Options(metrics=["si_sdr"]))


def test_systems_have_titles_that_differ(checkpoints: dict[str, Path], results: Path) -> None:
    best = checkpoints["identity"].with_name("identity.best.ckpt")
    shutil.copy(checkpoints["identity"], best)
    found = parse_systems([str(best), f"x y={results}:hifipp_denoise", "small", f"{results}:finally_stage3"])
    assert [candidate.title for candidate in found] == ["identity.best", "x y", "small", "finally_stage3"]
    assert found[0].run == Run(best.parent, "identity") and not found[0].has_items, "only its training's curves"
    assert found[1].has_items and found[1].checkpoint == results / "hifipp_denoise.ckpt"
    assert found[2].run is None
    twice = parse_systems([f"{results}:hifipp_denoise", f"{results / '.'}/:hifipp_denoise"])
    assert twice[0].title == f"hifipp_denoise ({results}:hifipp_denoise)" != twice[1].title
    with pytest.raises(UserError, match="another signal is called 'Input'; name it: NAME=small"):
        parse_systems(["Input=small"])


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        (["small"], {}, r"small: give two systems or more"),
        (["smal", "small"], {}, r"^smal: no such checkpoint; did you mean 'small'\?$"),
        (["RESULTS:hifigan", "small"], {}, r"has neither hifigan\.ckpt nor enhanced/hifigan$"),
        (["x=nowhere:hifigan", "small"], {}, r"^nowhere:hifigan: no such folder of results: nowhere$"),
        (["RESULTS", "small"], {}, r"is a folder; a network of a folder of results is given as .*results:NETWORK$"),
        (["small", "RESULTS:hifipp_denoise"], {}, r"^small: without --data DIR, all systems must be RESULTS:NETWORK"),
        (["small", "b=small"], {"data": "nowhere"}, r"^nowhere: no such folder$"),
        (["small", "b=small"], {"data": "PAIRS/.."}, None),
        (["small", "b=small"], {"data": "PAIRS", "metrics": ["pesk"]}, r"unknown metric 'pesk'; did you mean"),
        (["small", "b=small"], {"data": "PAIRS", "metrics": ["wv-mos"]}, r"^--metrics wv-mos: needs "),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(
    results: Path, pairs: Path, tmp_path: Path, systems: list[str], options: dict, message: str | None
) -> None:
    if message is None:
        shutil.copytree(pairs / "noisy", tmp_path / "half" / "noisy")
        options, message = {"data": f"{tmp_path}/half"}, r"has clean/ or noisy/ but not both"

    def place(text: str) -> str:
        return text.replace("RESULTS", str(results)).replace("PAIRS", str(pairs))

    if "data" in options:
        options = options | {"data": Path(place(options["data"]))}
    with pytest.raises(UserError, match=message) as error:
        compare([place(text) for text in systems], tmp_path / "x.html", Options(**options, resources=str(tmp_path)))
    assert "\n" not in str(error.value) and not (tmp_path / "x.html").exists()
    with pytest.raises(UserError, match=r"x\.htm: the page's name must end in \.html"):
        compare(["small", "b=small"], tmp_path / "x.htm", Options())
