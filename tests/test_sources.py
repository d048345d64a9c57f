from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from finallyse.corpora.layouts import CORPORA
from finallyse.corpora.locations import Locations, folder_fingerprint, local_path
from finallyse.corpora.sources import read_sources
from finallyse.errors import UserError


@pytest.fixture(scope="module")
def sources(root):
    return read_sources(root / "resources" / "datasets.yaml")


def test_the_registry_names_every_corpus_and_weight(sources):
    assert {name for name, source in sources.items() if source.is_corpus} == set(CORPORA)
    assert {name for name, source in sources.items() if not source.is_corpus} == {
        "wavlm-large",
        "wav2vec2-mos",
        "utmosv2",
        "whisper",
    }
    for source in sources.values():
        assert source.licence and source.citation and source.used_for and source.sample_rate
        assert all(file.bytes or file.about_bytes or source.unpack == "files" for file in source.files)


def test_weights_are_pinned(sources):
    for name in ("wavlm-large", "utmosv2", "whisper"):
        assert len(sources[name].base_url.rsplit("/", 1)[1]) == 40, "a revision, not a branch"


def entry(**changes) -> dict:
    entry = {
        "title": "t", "homepage": "h", "base_url": "https://x", "used_for": [], "licence": "l", "citation": "c",
        "unpack": "zip", "files": [{"name": "a.zip", "bytes": 3}],
    }  # fmt: skip
    return {key: value for key, value in {**entry, **changes}.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licens": "x"}, r"corpora.c.licens: unknown key; did you mean 'licence'"),
        ({"licence": ...}, r"corpora.c.licence: is required"),
        ({"licence": 3}, r"corpora.c.licence: must be str, got 3"),
        ({"unpack": "rar"}, r"corpora.c.unpack: must be zip, tar.gz, tar.bz2, deb, files, simulated, got 'rar'"),
        ({"unpack": ...}, r"corpora.c.unpack: is required"),
        ({"base_url": "ftp://x"}, r"corpora.c.base_url: must begin with https://"),
        ({"files": []}, r"corpora.c.files: is empty"),
        ({"files": ["a.zip"]}, r"corpora.c.files\[0\]: must be a table"),
        ({"files": [{"name": "a", "byts": 1}]}, r"corpora.c.files\[0\].byts: unknown key; did you mean 'bytes'"),
        ({"files": [{"name": "a", "bytes": True}]}, r"corpora.c.files\[0\].bytes: must be int, got True"),
        ({"files": [{"name": "a", "bytes": -1}]}, r"corpora.c.files\[0\]: a size must be positive"),
        ({"files": [{"name": "a", "bytes": 1, "about_bytes": 1}]}, r"about_bytes: the exact size is given too"),
        ({"files": [{"name": "a", "checksum": "md5:12"}]}, r"corpora.c.files\[0\].checksum: must be md5:"),
        ({"files": [{"name": "../a"}]}, r"corpora.c.files\[0\].name: must be the name of a file without folders"),
        ({"files": [{"name": "a"}, {"name": "a"}]}, r"corpora.c.files\[0\].name: 'a' is listed twice"),
        ({"files": [{"name": "a", "optional": True}]}, r"optional: only files that are not archives"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, changes, message):
    path = tmp_path / "datasets.yaml"
    path.write_text(yaml.safe_dump({"corpora": {"c": entry(**changes)}, "weights": {}}))
    with pytest.raises(UserError, match=message) as error:
        read_sources(path)
    assert str(error.value).startswith(f"{path}: ")


def test_unreadable_registries(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.yaml"):
        read_sources(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("corpora: [")
    with pytest.raises(UserError, match=r"bad.yaml: not readable as YAML"):
        read_sources(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"corpora: \xff")
    with pytest.raises(UserError, match=r"bad.yaml: not readable as YAML: .*invalid start byte"):
        read_sources(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("corpora: {}")
    with pytest.raises(UserError, match=r"must contain exactly the two tables"):
        read_sources(tmp_path / "bad.yaml")


def test_locations_of_the_paper(sources):
    there = Locations(sources, {}, "resources")
    assert there.url("vctk", "VCTK-Corpus-0.92.zip").startswith("https://datashare.ed.ac.uk/")
    assert there.url("micirp", "B&O_BM2.wav") == "http://xaudia.com/MicIRP/IR/B%26O_BM2.wav"
    assert there.downloads("daps") == ["resources/downloads/daps/daps.tar.gz"]
    assert there.downloads("micirp") == ["resources/downloads/micirp/collection.csv"]
    assert there.unpacked("daps") == ["resources/unpacked/daps/.unpacked/daps.tar.gz.txt"]
    assert there.downloads("wavlm-large")[0] == "resources/weights/wavlm-large/config.json"
    assert there.expected("vctk", "VCTK-Corpus-0.92.zip").checksum.startswith("md5:")
    assert there.local_files("vctk", "VCTK-Corpus-0.92.zip") == [] and not there.packs()


def test_locations_of_mirrors_and_own_folders(sources, tmp_path):
    settings = {
        "vctk": {"base_url": "file://r/archives/vctk/", "verify": "lock"},
        "daps": {"folder": str(tmp_path), "base_url": None},
        "libritts-r": {"base_url": "https://mirror.example.org/x", "verify": "published", "folder": None},
    }
    there = Locations(sources, settings, "r")
    assert there.url("vctk", "VCTK-Corpus-0.92.zip") == "file://r/archives/vctk/VCTK-Corpus-0.92.zip"
    assert there.local_files("vctk", "VCTK-Corpus-0.92.zip") == there.archives("vctk")
    assert there.expected("vctk", "VCTK-Corpus-0.92.zip").checksum is None and there.packs()
    assert there.unpacked("daps") == [] and there.folder("daps") == str(tmp_path)
    assert there.expected("libritts-r", "test_clean.tar.gz").checksum
    before = there.fingerprint("daps")
    (tmp_path / "a.wav").write_bytes(b"1")
    assert there.fingerprint("daps") != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vctc": {}}, r"corpora.vctc: unknown corpus; did you mean 'vctk'"),
        ({"vctk": {"base_url": "/data"}}, r"corpora.vctk.base_url: must begin with"),
        ({"vctk": {"base_url": "http://[::1/x"}}, r"corpora.vctk.base_url: not a URL: http://\[::1/x"),
        ({"vctk": {"base_url": "http://me:secret@host:port/"}}, r"base_url: not a URL: http://host:port/ "),
        ({"vctk": {"folder": "/no/such"}}, r"corpora.vctk.folder: no such folder: /no/such"),
        ({"wavlm-large": {"folder": "."}}, r"corpora.wavlm-large.folder: wavlm-large is a weight file"),
        ({"vctk": {"folder": ".", "base_url": "https://x"}}, r"give either folder or base_url"),
    ],
)
def test_wrong_settings(sources, settings, message):
    with pytest.raises(UserError, match=message):
        Locations(sources, settings, "r")


def test_file_urls():
    assert local_path("file:///data/a%20b") == "/data/a b"
    assert local_path("file://localhost/data") == "/data"
    assert local_path("file://results/x") == "results/x"
    assert local_path("https://x") is None


def test_fingerprints_see_contents_and_survive_loops(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.wav").write_bytes(b"1")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "endless").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.wav")
    before = folder_fingerprint(tmp_path)
    Path(tmp_path / "deep" / "a.wav").write_bytes(b"2")
    assert folder_fingerprint(tmp_path) != before
