"""Corpora of a user's own names: in the config, prepared by the workflow's rules, mixed in one training."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import soundfile as sf

from finallyse.config import load_pipeline, merge, paths_below, pipeline_layers
from finallyse.corpora.layouts import find_recordings, own_corpus
from finallyse.corpora.locations import Locations
from finallyse.corpora.manifest import Manifest
from finallyse.corpora.plan import costs
from finallyse.corpora.prepare import prepare
from finallyse.corpora.sources import read_sources
from finallyse.datasets import datasets_registry
from finallyse.errors import UserError
from finallyse.schema import read_schema

PIPELINE = "config/config.yaml"


@pytest.fixture
def in_root(root, monkeypatch):
    monkeypatch.chdir(root)


def paths(folder: Path, split: str) -> list[str]:
    with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        return [row["path"].removeprefix("wav/") for row in csv.DictReader(file)]


def copy(clips: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for clip in clips:
        (folder / clip.name).symlink_to(clip)


def make_pairs(clips: list[Path], folder: Path) -> None:
    """`clean/<clip>.flac`, and `noisy/<clip>.wav` at another rate, a little longer than nothing."""
    copy(clips, folder / "clean")
    (folder / "noisy").mkdir()
    for clip in clips:
        wav, rate = sf.read(clip)
        sf.write(folder / "noisy" / f"{clip.stem}.wav", 0.5 * wav, rate)


# ---------------------------------------------------------------------------------------------------------------------
# What the config may say


def load(tmp_path: Path, text: str) -> Locations:
    (tmp_path / "mine.yaml").write_text(text)
    layers = pipeline_layers([tmp_path / "mine.yaml"], {}, read_schema("config/schema.json"))
    return Locations(read_sources(), merge(*(layer.values for layer in layers))["corpora"], "resources")


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("studio: {knd: speech}", r"mine.yaml: corpora.studio.knd: unknown key; did you mean 'kind'"),
        ("studio: {kind: speach, folder: .}", r"corpora.studio.kind: unknown value 'speach'; did you mean 'speech'"),
        (
            "studio: {folder: .}",
            r"config: corpora.studio: unknown corpus; .* needs kind: speech, pairs, noise or resp",
        ),
        ("studio: {kind: speech}", r"config: corpora.studio.folder: is missing"),
        ("studio: {kind: speech, folder: /no/such}", r"corpora.studio.folder: no such folder: /no/such$"),
        ("my studio: {kind: speech, folder: .}", r"corpora.my studio: .*letters, digits, - and _, such as my-studio"),
        ("x$(cmd): {kind: speech, folder: .}", r"such as x-cmd"),
        ("-x: {kind: speech, folder: .}", r"corpora.-x: the name of a corpus must be"),
        ("../up: {kind: speech, folder: .}", r"corpora.../up: the name of a corpus must be"),
        ("vctk: {kind: speech, folder: .}", r"corpora.vctk.kind: is for corpora of your own, and vctk is a published"),
        ("VCTK: {kind: speech, folder: .}", r"corpora.VCTK: clashes with the published corpus vctk"),
        (
            "studio: {kind: speech, folder: ., validation: 1.5}",
            r"corpora.studio.validation: must be less than 1, got 1.5",
        ),
        ("studio: {kind: speech, folder: ., test: 0}", r"mine.yaml: corpora.studio.test: must be more than 0, got 0"),
        ("studio: {kind: speech, folder: ., test: 10%}", r"test: no such folder: 10%; a share is a number such as 0.1"),
        ("studio: {kind: speech, folder: src, test: ./src}", r"corpora.studio: names one folder twice"),
        ("studio: {kind: speech, folder: ., base_url: 'https://x'}", r"corpora.studio.base_url: is for downloads"),
        ("studio: {kind: speech, folder: ., noisy: src}", r"corpora.studio.noisy: is for kind: pairs"),
        ("calls: {kind: pairs, clean: .}", r"corpora.calls: pairs need clean and noisy, .*; given is clean"),
        ("calls: {kind: pairs}", r"corpora.calls: pairs need clean and noisy, .*; given is neither"),
        ("calls: {kind: pairs, folder: ., clean: src, noisy: tests}", r"given is folder and clean and noisy"),
        ("hum: {kind: noise, folder: ., min_bak: 3}", r"corpora.hum.min_bak: judges speech, and hum is noise"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(in_root, corpus, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, f"corpora: {{ {corpus} }}")
    assert "\n" not in str(error.value)


def test_null_removes_a_corpus_of_an_overlaid_file(in_root, tmp_path):
    (tmp_path / "base.yaml").write_text("corpora: {studio: {kind: speech, folder: src}}")
    assert load(tmp_path, "extends: base.yaml").own == ["studio"]
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ncorpora: {studio: null}")
    assert load_pipeline([tmp_path / "mine.yaml"], {}, read_schema("config/schema.json"))["corpora"] == {}


def test_results_and_resources_must_not_be_inside_a_folder_of_recordings(in_root, tmp_path):
    (tmp_path / "data" / "held out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "more").mkdir()
    settings = {"studio": {"kind": "speech", "folder": str(tmp_path / "link"), "test": str(tmp_path / "more")}}
    inside, beside = f"{tmp_path}/data/out/r", f"{tmp_path}/out"
    Locations(read_sources(), settings, beside).refuse_outputs_inside(beside)
    with pytest.raises(UserError, match=r"config: results: .*/data/out/r is inside .*/link \(corpora.studio\)"):
        Locations(read_sources(), settings, beside).refuse_outputs_inside(inside)
    with pytest.raises(UserError, match=r"config: results: .*/more is inside .*/more"):
        Locations(read_sources(), settings, beside).refuse_outputs_inside(str(tmp_path / "more"))
    with pytest.raises(UserError, match=r"config: resources: .*put resources elsewhere"):
        Locations(read_sources(), settings, inside).refuse_outputs_inside(beside)
    with pytest.raises(UserError, match=r"\(demo_speech\)"):
        Locations(read_sources(), {}, inside).refuse_outputs_inside(beside, f"{tmp_path}/data")
    with pytest.raises(UserError, match=r"data/out/r: is inside .*/data, where what is written would be taken for"):
        prepare("vctk", tmp_path / "data", inside, 16000)


def test_a_manifest_of_an_unknown_corpus_is_told_before_anything_runs(in_root, tmp_path):
    there = Locations(read_sources(), {"studio": {"kind": "speech", "folder": "src"}}, str(tmp_path))
    manifest = f"{tmp_path}/prepared/studoi/16000/train.csv"
    with pytest.raises(UserError, match=r"networks.net: .*no corpus is called studoi; did you mean 'studio'"):
        there.refuse_unknown("net", [f"{tmp_path}/prepared/vctk/16000/train.csv", manifest])
    Path(manifest).parent.mkdir(parents=True)
    Path(manifest).write_text("prepared by hand")
    there.refuse_unknown("net", [manifest])


def test_the_documented_example_holds(in_root, root, tmp_path):
    text = (root / "docs/howto/own-data.md").read_text()
    [block] = re.findall(r"    # config/mine.yaml: snakemake .*\n((?:    .*\n)+)", text)
    for folder in ("studio", "podcasts", "hum", "calls/clean", "calls/noisy", "calls/test"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text(textwrap.dedent(block).replace("/data/", f"{tmp_path}/"))
    config = load_pipeline([PIPELINE, tmp_path / "mine.yaml"], {}, read_schema("config/schema.json"))
    there = Locations(read_sources(), config["corpora"], config["resources"])
    assert there.own == ["studio", "podcasts", "calls", "hum"]
    for network, used in (("hifipp_denoise", {"calls"}), ("finally_stage1", {"studio", "podcasts"})):
        manifests = paths_below(config["experiments"][network]["data"]["train"], f"{config['resources']}/prepared/")
        there.refuse_unknown(network, manifests)
        assert used <= {path.split("/")[-3] for path in manifests}


# ---------------------------------------------------------------------------------------------------------------------
# How they are prepared


def test_speech_with_shares_and_with_folders(tmp_path, speech):
    copy(speech[:8], tmp_path / "in" / "anna")
    copy(speech[8:16], tmp_path / "in" / "bert")
    copy(speech[16:18], tmp_path / "in" / "carl")
    copy(speech[18:20], tmp_path / "in" / "dora")
    copy(speech[20:22], tmp_path / "in" / "held out")
    counts = prepare("studio", tmp_path / "in", tmp_path / "out", 16000, own=own_corpus("speech", test=0.1))
    assert counts == {"train": 18, "validation": 2, "test": 2}
    held_out = str(tmp_path / "in" / "held out")
    counts = prepare("studio", tmp_path / "in", tmp_path / "out", 16000, own=own_corpus("speech", held_out))
    assert counts == {"train": 20, "validation": 2}, "what is in the other folder is in no other split"
    assert all(path.startswith("validation/") for path in paths(tmp_path / "out", "validation"))
    assert paths(tmp_path / "out", "test") == []
    with pytest.raises(UserError, match=r"test.csv: lists no recordings: its corpus has none of this split"):
        Manifest(tmp_path / "out" / "test.csv")


def test_pairs_in_two_folders_or_in_one(tmp_path, speech):
    make_pairs(speech[:8], tmp_path / "calls")
    make_pairs(speech[8:10], tmp_path / "heldout")
    own = own_corpus("pairs", test=str(tmp_path / "heldout"), noisy=str(tmp_path / "calls" / "noisy"))
    counts = prepare("calls", tmp_path / "calls" / "clean", tmp_path / "out", 16000, own=own)
    assert counts == {"train": 7, "validation": 1, "test": 2}
    manifest = Manifest(tmp_path / "out" / "test.csv")
    assert {manifest.name(row) for row in range(2)} == {f"test_{clip.stem}" for clip in speech[8:10]}
    assert manifest.path(0).is_file() and manifest.noisy_path(0).is_file()

    own = own_corpus("pairs", test=str(tmp_path / "heldout"))
    assert counts == prepare("calls", tmp_path / "calls", tmp_path / "one", 16000, own=own)
    (tmp_path / "heldout" / "noisy").rename(tmp_path / "heldout" / "nosiy")
    with pytest.raises(UserError, match=r"heldout: calls needs pairs: put the clean recordings into .*heldout/clean"):
        find_recordings("calls", tmp_path / "calls", own)


def test_one_noise_is_enough_to_train_with(tmp_path, speech):
    copy(speech[:1], tmp_path / "in")
    counts = prepare("hum", tmp_path / "in", tmp_path / "out", 16000, own=own_corpus("noise"))
    assert counts == {"train": 1, "validation": 0}


def test_the_workflow_prepares_them(root, tmp_path, speech):
    """Two corpora of one's own in one training, and a folder with a test split in place of a published corpus."""
    copy(speech[:4], tmp_path / "st udio")
    copy(speech[8:12], tmp_path / "other")
    copy(speech[16:20], tmp_path / "mine" / "train")
    copy(speech[20:22], tmp_path / "mine" / "test")
    prepared = [f"{tmp_path}/s/prepared/{name}/16000/train.csv" for name in ("studio", "studio", "other")]
    (tmp_path / "mine.yaml").write_text(
        f"results: {tmp_path}/r\nresources: {tmp_path}/s\nprepare_jobs: 1\ncorpora:\n"
        f"  studio: {{kind: speech, folder: {tmp_path}/st udio, validation: 0.25, accept_cut: true}}\n"
        f"  other: {{kind: speech, folder: {tmp_path}/other}}\n"
        f"  vctk: {{folder: {tmp_path}/mine}}\n"
        f"networks: {{finally_stage1: {{override: {{data: {{train: {{args: {{manifest: {prepared}}}}}}}}}}}}}\n"
    )
    targets = [f"{tmp_path}/r/finally_stage1.ckpt", f"{tmp_path}/s/prepared/vctk/16000/test.csv"]
    options = ["-n", "-p", "--configfile", str(tmp_path / "mine.yaml"), "--", *targets]
    command = [sys.executable, "-m", "snakemake", *options]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    commands = re.findall(
        r"python scripts/prepare.py --corpus (?:studio|other|vctk) .*(?= > )", run.stdout + run.stderr
    )
    assert len(commands) == 3, "each is prepared, once"
    for command in commands:
        subprocess.run(f"{sys.executable} {command.removeprefix('python ')}", shell=True, cwd=root, check=True)
    manifest = Manifest(prepared)
    assert len(manifest) == 3 + 3 + 3
    assert manifest.name(0).startswith("studio_") and manifest.name(-1).startswith("other_")
    assert [len(paths(Path(prepared[0]).parent, split)) for split in ("validation", "test")] == [1, 0]
    assert len(Manifest(targets[1])) == 2


def test_the_plan_shows_them(in_root, tmp_path):
    experiment = {"manifest": f"{tmp_path}/prepared/studio/16000/train.csv"}
    corpora = {"studio": {"kind": "speech", "folder": "src"}}
    config = {"resources": str(tmp_path), "corpora": corpora, "experiments": {"net": experiment}}
    [cost] = [cost for cost in costs(config) if cost.source.name == "studio"]
    assert cost.needed_by == ["net"] and cost.origin == "folder src" and cost.files == cost.left == 0


@pytest.mark.parametrize(
    "name", ["mel_dataset", "vctk", "voicebank", "augmented_libritts-r", "augmented_daps", "vctk-demand"]
)
def test_every_dataset_mixes_corpora(name, tmp_path, speech):
    for number in range(2):
        make_pairs(speech[4 * number : 4 * number + 3], tmp_path / f"in{number}")
        prepare(
            f"own{number}", tmp_path / f"in{number}", tmp_path / f"own{number}/16000", 16000, own=own_corpus("pairs")
        )
    first, second = (str(tmp_path / f"own{number}" / "16000" / "train.csv") for number in range(2))
    options = {
        "vctk": {"input_freq": 2000},
        "augmented_libritts-r": {"augmentations": []},
        "augmented_daps": {"augmentations": [], "output_rate": 16000, "segment": None, "context": None},
        "vctk-demand": {"target_manifest": [first, second, first]},
    }.get(name, {})
    mixed = datasets_registry[name](manifest=[first, second, first], **options)
    options |= {"target_manifest": first} if name == "vctk-demand" else {}
    alone = datasets_registry[name](manifest=first, **options)
    names = [mixed[index]["name"] for index in range(len(mixed))]
    assert len(mixed) == 6 and len(alone) == 2
    assert {name.split("_")[0] for name in names[2:4]} == {"own1"} and names[:2] == names[4:]
    assert names[0] == f"own0_{alone[0]['name']}" and (mixed[0]["wav"] == alone[0]["wav"]).all()
