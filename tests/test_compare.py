"""Other systems beside the networks: their options, their measurement, their rows and players in the report."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile

from finallyse.audio.io import read
from finallyse.compare import Run, System, compared_systems, slug
from finallyse.config import load_pipeline
from finallyse.errors import UserError
from finallyse.metrics.evaluate import evaluate
from finallyse.report.collect import collect
from finallyse.report.html import Options, render
from finallyse.report.listen import shared_utterances
from finallyse.report.paired import paired_difference
from finallyse.schema import read_schema
from support import ROOT
from support import results as built

NETWORK = "hifipp_denoise"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, speech: list[Path]) -> Path:
    """The results of one network on four clips of the embedded speech."""
    return built.build(tmp_path_factory.mktemp("compare"), ROOT, speech[::14], [NETWORK])


@pytest.fixture(scope="module")
def systems(results: Path) -> list[System]:
    """Two systems measured as in the workflow: a nearly perfect one, and one with three of the four items."""
    rng = np.random.default_rng(0)
    found = [
        System("Nearly perfect (published)", NETWORK, results.parent / "perfect"),
        System("Noisier", NETWORK, results.parent / "noisier"),
    ]
    enhanced = results / "enhanced" / NETWORK
    for system in found:
        system.folder.mkdir()
    for index, path in enumerate(sorted((enhanced / "reference").iterdir())):
        wav, rate = read(path)
        better = wav + 0.0005 * rng.standard_normal(len(wav))  # SI-SDR of the reference itself is infinite
        soundfile.write(found[0].folder / f"{path.stem}.flac", better, rate)
        if index < 3:
            noise = 0.1 * rng.standard_normal((len(wav), 2))  # stereo
            soundfile.write(found[1].folder / f"{path.stem}.ogg", wav[:, None] * 0.5 + noise, rate)
    soundfile.write(found[1].folder / "something else.ogg", wav, rate)
    for system in found:
        done = measure(system, results, NETWORK)
        assert done.returncode == 0, done.stderr
    return found


def measure(system: System, results: Path, network: str) -> subprocess.CompletedProcess[str]:
    """The command of the rule compute_compared_metrics, with quick metrics."""
    enhanced = results / "enhanced" / network
    command = [sys.executable, "scripts/evaluate.py", "--enhanced", system.folder, "--only-referenced"]
    command += ["--reference", enhanced / "reference", "--noisy", enhanced / "noisy", "--jobs", 1, "--device", "cpu"]
    command += ["--metrics", "si_sdr", "lsd", "level", "wv-mos", "--resources", results.parent / "resources"]
    command += ["--skip-missing", "--output", results / "metrics" / network / f"{system.slug}.csv"]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------------------------------------------------
# The option


def pipeline(tmp_path: Path, *texts: str) -> dict:
    """The pipeline's config with overlays; FOLDER in them is a folder that exists."""
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(text.replace("FOLDER", str(tmp_path)))
    return load_pipeline([ROOT / "config" / "config.yaml", *paths], {}, read_schema(ROOT / "config" / "schema.json"))


@pytest.fixture
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_systems_are_overlaid_and_change_nothing_of_the_networks(in_project: None, tmp_path: Path) -> None:
    first = "compare: {'FINALLY (authors)': {folder: FOLDER, network: finally_stage3}, Old: {folder: x, network: y}}"
    second = "compare: {Old: null, 'FINALLY (authors)': {network: finally_stage2}}"
    config = pipeline(tmp_path, first, second)
    assert compared_systems(config) == [System("FINALLY (authors)", "finally_stage2", tmp_path)]
    assert config["experiments"] == pipeline(tmp_path)["experiments"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X: {folder: FOLDER}", r"compare\.X\.network is required"),
        ("X: {network: hifigan}", r"compare\.X: give one of folder .* and results"),
        ("X: {network: hifigan, folder: FOLDER, results: FOLDER}", r"compare\.X: give one of folder .* and results"),
        ("X: {network: hifigan, results: FOLDER/nowhere}", r"X\.results: no such folder of results: .*/nowhere$"),
        (
            "X: {network: hifigan, results: FOLDER}",
            r"no enhanced files of hifigan in .*; name another network there by",
        ),
        ("X: {network: hifigan, results: 'FOLDER:x'}", r"X\.results: no enhanced files of x in "),
        ("X: {folder: FOLDER, netwrok: hifigan}", r"compare\.X\.netwrok: unknown key; did you mean 'network'"),
        ("X: {folder: FOLDER, network: hifigam}", r"network: unknown network 'hifigam'; did you mean 'hifigan'"),
        ("X: {folder: FOLDER/nowhere, network: hifigan}", r"compare\.X\.folder: no such folder: .*/nowhere$"),
        (
            "{A b: {folder: FOLDER, network: hifigan}, a-B: {folder: FOLDER, network: hifigan}}",
            r"compare\.a-B: too close to the name 'A b'; choose another",
        ),
        ("Hifigan: {folder: FOLDER, network: hifigan}", r"too close to the name 'hifigan'"),
        ("Enhanced: {folder: FOLDER, network: hifigan}", r"too close to the name 'Enhanced'"),
        ("'?!': {folder: FOLDER, network: hifigan}", r"needs a letter or a digit"),
    ],
)
def test_wrong_systems_are_one_line(text: str, message: str, in_project: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        pipeline(tmp_path, f"compare: {text}" if text[0] == "{" else f"compare: {{{text}}}")
    assert "\n" not in str(error.value)


def test_a_run_of_another_folder_of_results_is_a_system_by_its_own_name_or_another(
    in_project: None, tmp_path: Path
) -> None:
    for network in ("hifigan", "vocoder"):
        (tmp_path / "enhanced" / network / "enhanced").mkdir(parents=True)
    for text, network in (("FOLDER", "hifigan"), ("'FOLDER:vocoder'", "vocoder")):
        (system,) = compared_systems(pipeline(tmp_path, f"compare: {{Old: {{results: {text}, network: hifigan}}}}"))
        folder = tmp_path / "enhanced" / network / "enhanced"
        assert system == System("Old", "hifigan", folder, Run(tmp_path, network))
        assert system.source == f"{tmp_path}:{network}" and System.of("Old", "hifigan", system.source) == system
    assert System.of("X", "hifigan", str(tmp_path)) == System("X", "hifigan", tmp_path)


def test_slugs() -> None:
    assert [slug(name) for name in ("FINALLY (authors)", "DeepFilterNet3", "système_1")] == [
        "finally-authors",
        "deepfilternet3",
        "système-1",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The workflow


def snakemake(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("snakemake"), "--nolock", "--cores", "2", *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def overlay(folder: Path, system: str) -> Path:
    path = folder / "compare.yaml"
    path.write_text(f"results: {folder}/r\nresources: {folder}/s\ncompare: {{My system: {system}}}\n")
    return path


def test_the_workflow_measures_systems_and_reports_them(tmp_path: Path) -> None:
    config = overlay(tmp_path, f"{{folder: {tmp_path}, network: {NETWORK}}}")
    run = snakemake("-n", "-p", "--configfile", config, "--", f"{tmp_path}/r/report.html")
    told = run.stdout + run.stderr
    assert run.returncode == 0, told
    assert re.search(r"^compute_compared_metrics +1$", told, re.MULTILINE)
    assert f"Measuring {tmp_path}, to be compared with {NETWORK}" in told
    assert f"--output {tmp_path}/r/metrics/{NETWORK}/my-system.csv" in told
    assert f"--compare 'My system' {NETWORK} {tmp_path} " in told


def test_a_wrong_system_stops_the_workflow_before_anything_runs(tmp_path: Path) -> None:
    config = overlay(tmp_path, f"{{folder: {tmp_path}/nowhere, network: {NETWORK}}}")
    run = snakemake("--configfile", config)
    assert run.returncode == 1 and not (tmp_path / "r").exists() and "Traceback" not in run.stderr
    assert f"error: config: compare.My system.folder: no such folder: {tmp_path}/nowhere" in run.stderr.splitlines()


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def test_only_items_of_the_network_are_measured(results: Path, systems: list[System]) -> None:
    reference = results / "enhanced" / NETWORK / "reference"
    names = sorted(path.stem for path in reference.iterdir())
    tables = [pandas.read_csv(results / "metrics" / NETWORK / f"{system.slug}.csv") for system in systems]
    assert [list(table["utterance"]) for table in tables] == [names, names[:3]]
    assert tables[0]["si_sdr"].min() > 25 > 10 > tables[1]["si_sdr"].max()
    done = measure(systems[1], results, NETWORK)
    assert f"1 of 4 files are missing in {systems[1].folder}: {names[3]}" in done.stderr
    assert f"1 files of {systems[1].folder} have no reference and are left out" in done.stderr


def test_a_folder_without_any_item_is_one_line(results: Path, tmp_path: Path, speech_16k: np.ndarray) -> None:
    soundfile.write(tmp_path / "x.flac", speech_16k, 16_000)
    reference = results / "enhanced" / NETWORK / "reference"
    expected = min(path.stem for path in reference.iterdir())
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: none of its 1 files is called like .* e\.g\. {expected}\.flac$"
    ):
        evaluate(tmp_path, ["si_sdr"], tmp_path / "x.csv", reference=reference, only_referenced=True)
    with pytest.raises(UserError, match="--only-referenced needs --reference DIR"):
        evaluate(tmp_path, ["si_sdr"], tmp_path / "x.csv", only_referenced=True)


# ---------------------------------------------------------------------------------------------------------------------
# The report


def test_differences_are_of_the_same_utterances() -> None:
    ours = pandas.DataFrame({"utterance": ["a", "b", "c"], "stoi": [0.5, 0.7, 0.9]})
    theirs = pandas.DataFrame({"utterance": ["x", "c", "a"], "stoi": [0.0, 0.8, 0.3]})
    found = paired_difference(ours, theirs, "stoi")
    assert found.interval.mean == pytest.approx(0.15) and (found.pairs, found.unpaired) == (2, 1)
    assert paired_difference(ours, theirs, "wb_pesq") is None


def test_systems_are_read_with_their_differences(results: Path, systems: list[System]) -> None:
    network = collect(results, [NETWORK], compare=systems).networks[0]
    perfect, noisier = network.compared
    assert [len(compared.utterances) for compared in network.compared] == [4, 3]
    scores = {score.metric: score for score in network.scores}
    verdicts = [[c.verdict(scores[metric]) for metric in ("si_sdr", "lsd", "level")] for c in (perfect, noisier)]
    assert verdicts == [["worse", "worse", None], ["better", "better", None]]
    ours, theirs = (pandas.read_csv(results / "metrics" / p) for p in (f"{NETWORK}.csv", f"{NETWORK}/noisier.csv"))
    mean = (ours["si_sdr"][:3] - theirs["si_sdr"]).mean()
    assert noisier.differences["si_sdr"].interval.mean == pytest.approx(mean, abs=1e-3)
    assert noisier.differences["si_sdr"].pairs == 3
    assert [u.name for u in shared_utterances(network)] == sorted(noisier.utterances)
    with pytest.raises(UserError, match="--compare Noisier: hifipp_denoise is not one of --networks"):
        collect(results, ["hifigan"], compare=systems[1:])


def test_the_page_has_a_row_and_a_player_for_each(results: Path, systems: list[System], tmp_path: Path) -> None:
    report = collect(results, [NETWORK], compare=systems)
    page = render(report, Options(utterances=2, seconds=1.0))
    rows = re.findall(r'<tr class="compared">(.*?)</tr>', page, re.DOTALL)
    assert len(rows) == 6  # si_sdr, lsd and level of two systems; nobody has the weights of wv-mos
    texts = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in rows]
    assert texts[0].startswith("Nearly perfect (published) compared, 4 items") and texts[0].endswith(" 4")
    assert texts[1].startswith("Noisier compared, 3 of 4 items") and texts[1].endswith(" 3")
    assert "Network<br>− system" in page
    assert re.search('"n change worse"[^>]*>−', rows[0]) and re.search('"n change better"[^>]*>[+]', rows[1])
    tracks = re.findall(r'<div class="track (\w+)".*?<span class="label">(.*?)</span>', page, re.DOTALL)
    one = [("noisy", "Noisy"), ("enhanced", "Enhanced"), *(("compared", s.name) for s in systems)]
    assert tracks == [*one, ("reference", "Reference")] * 2
    assert "Listen: ranked by SI-SDR" not in page and " that Nearly perfect (published) and Noisier have" in page
    assert re.search(rf"Noisier: 1 of 4 utterances of {NETWORK} .*not in {systems[1].folder}, e\.g\. ", page)


def test_a_run_of_another_folder_of_results_has_rows_players_and_curves(results: Path, tmp_path: Path) -> None:
    copy, old = (shutil.copytree(results, tmp_path / name) for name in ("results", "old"))
    (old / "state" / NETWORK / "validation.csv").write_text("step,wb_pesq,items,seconds\n60,2.5,2,1\n240,2.75,2,1\n")
    system = System.of("The old run", NETWORK, f"{old}:{NETWORK}")
    assert measure(system, copy, NETWORK).returncode == 0
    report = collect(copy, [NETWORK], compare=[system])
    page = render(report, Options(utterances=1, seconds=1.0))
    rows = re.findall(r'<tr class="compared">(.*?)</tr>', page, re.DOTALL)
    assert len(rows) == 3 and all(re.search('<td class="n change "[^>]*>0', row) for row in rows), (
        "no difference from itself"
    )
    assert '<span class="label">The old run</span>' in page
    curves = dict(re.findall(r'aria-label="(\w+): ([^"]*)"', page))
    assert curves["wb_pesq"] == (
        "from 1.30 at step 40 to 1.70 at step 120; The old run from 2.50 at step 60 to 2.75 at step 240"
    )
    assert re.match(r"from (.*); The old run from \1$", curves["l1_mel_loss"])
    legend = re.findall(r'class="line (of-\d)".*?</svg>(.*?)</span>', page)
    assert set(legend) == {("of-0", NETWORK), ("of-1", "The old run")}


def test_without_systems_the_page_is_as_before(results: Path) -> None:
    page = render(collect(results, [NETWORK]), Options(utterances=1, seconds=1.0))
    assert "compared" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).replace("compared with", "")
    assert "− system" not in page


def test_the_script_takes_systems(results: Path, systems: list[System], tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    copy = shutil.copytree(results, tmp_path / "results")
    command = [sys.executable, "scripts/report.py", "--results", copy, "--networks", NETWORK, "--output", output]
    for system in systems:
        command += ["--compare", system.name, system.network, system.folder]
    command += ["--utterances", 1, "--seconds", 1]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_text().count('<tr class="compared">') == 6
    shutil.rmtree(copy / "metrics" / NETWORK)
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "nearly-perfect-published.summary.csv: no such file" in done.stderr
