"""The paper's downloads and preparation from a server that misbehaves: the default config, only the URLs changed.

The source has small archives in the published layouts. Their sizes and checksums differ from those in the registry,
hence `verify: lock`.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finallyse.corpora.layouts import CORPORA
from finallyse.corpora.sources import read_sources
from finallyse.demo.pack import PACKERS, pack
from finallyse.demo.speech import collect_speech
from support.server import Faults, serve

TRUNCATED = "/dns5-noise/datasets_fullband.noise_fullband.freesound_000.tar.bz2"


@pytest.fixture(scope="module")
def site(root, speech, tmp_path_factory) -> Path:
    """Every corpus and weight of the registry, small."""
    folder = tmp_path_factory.mktemp("site")
    sources = read_sources(root / "resources" / "datasets.yaml")
    table = tmp_path_factory.mktemp("speech") / "speech.csv"
    collect_speech(speech[0].parent, table, seconds=40, say=lambda _: None)
    for name, source in sources.items():
        if name in PACKERS:
            pack(source, table, folder / name)
        elif not source.is_corpus:  # weights of metrics and losses: nothing reads them here
            (folder / name).mkdir()
            for file in source.files:
                (folder / name / file.name).write_bytes(os.urandom(50_000))
    return folder


@pytest.mark.slow
def test_the_paper_run_in_miniature(root, site, tmp_path):
    results, resources = tmp_path / "results", tmp_path / "a folder"
    with serve(site) as server:
        server.everywhere = Faults(drops=1, drop_after=150_000)
        server.faults["/vctk/VCTK-Corpus-0.92.zip"] = Faults(unavailable=2, drops=3, drop_after=400_000)
        server.faults["/libritts-r/train_clean_100.tar.gz"] = Faults(unavailable=2)
        server.faults[TRUNCATED] = Faults(truncated=1)
        names = [path.name for path in site.iterdir()]
        corpora = {name: {"base_url": f"{server.url}/{name}", "verify": "lock"} for name in names}
        overlay = tmp_path / "mirror.yaml"
        overlay.write_text(yaml.safe_dump({"corpora": corpora, "prepare_jobs": 1}))
        run = subprocess.run(
            [Path(sys.executable).with_name("snakemake"), "--cores", "2", "data", "--nolock", "--configfile", overlay]
            + ["--config", f"results={results}", f"resources={resources}"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]

        assert server.statuses("/vctk/VCTK-Corpus-0.92.zip") == [503, 503, 200, 206, 206, 206]
        assert server.statuses("/libritts-r/train_clean_100.tar.gz") == [503, 503, 200]
        assert server.statuses("/daps/daps.tar.gz") == [200, 206]
        assert server.statuses(TRUNCATED) == [200, 200]
        assert {path for path, _, status in server.requests if status == 404} == {
            "/micirp/Doremi_.wav",
            "/micirp/Toshiba_TypeK_HPF.wav",
        }, "only what is optional is missing"

    fetched = sorted(path for kind in ("downloads", "weights") for path in (resources / kind).glob("*/*.*"))
    for path in fetched:
        if path.name != "collection.csv" and not path.name.startswith("."):
            assert path.read_bytes() == (site / path.parent.name / path.name).read_bytes()
    assert not list(resources.rglob("*.part*"))
    locked = (resources / "checksums.lock").read_text().splitlines()
    assert len(locked) == sum(1 for path in fetched if path.name != "collection.csv" and not path.name.startswith("."))

    manifests = sorted(resources.glob("prepared/*/*/*.csv"))
    assert {path.parent.parent.name for path in manifests} == set(PACKERS) - {"wavlm-large"}
    for manifest in manifests:
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if manifest.stem not in CORPORA[manifest.parent.parent.name].splits:  # dropped.csv, most corpora's test.csv
            assert rows == []
            continue
        assert rows and all((manifest.parent / row["path"]).is_file() for row in rows)
