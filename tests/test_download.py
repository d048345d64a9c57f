from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest

from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.collection import download_collection, files_of_collection
from finallyse.corpora.download import Missing, download
from finallyse.corpora.locations import Locations
from finallyse.corpora.sources import RemoteFile, Source
from finallyse.errors import UserError
from support.server import Faults, serve

CONTENT = random.Random(0).randbytes(200_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "file.bin").write_bytes(CONTENT)
    with serve(tmp_path / "site") as running:
        yield running


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "downloads" / "corpus" / "file.bin"


@pytest.fixture
def lock(tmp_path) -> ChecksumLock:
    return ChecksumLock(tmp_path / "checksums.lock")


def fetch(server, target, **options) -> str:
    return download(f"{server.url}/{target.name}", target, wait_s=0.01, **options)


def nothing_but(target: Path) -> None:
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_is_fetched_checked_and_named(server, target, lock):
    assert fetch(server, target, checksum=MD5, size=len(CONTENT), lock=lock) == SHA256
    assert target.read_bytes() == CONTENT
    nothing_but(target)
    assert not lock.path.exists(), "a published checksum needs no line in the lock"


def test_drops_and_refusals_are_survived_by_going_on(server, target):
    server.faults["/file.bin"] = Faults(unavailable=2, drops=5)
    fetch(server, target, checksum=MD5)
    assert target.read_bytes() == CONTENT
    assert server.statuses("/file.bin") == [503, 503, 200, 206, 206, 206, 206, 206]


def test_progress_counts_drops_as_no_failure(server, target):
    server.faults["/file.bin"] = Faults(drops=6)
    fetch(server, target, attempts=2)
    assert target.read_bytes() == CONTENT


def test_an_interrupted_run_is_continued_by_the_next(server, target, lock):
    server.faults["/file.bin"] = Faults(drops=1, drop_after=120_000)
    with pytest.raises(UserError, match="it resumes after the 120 kB that are here"):
        server.faults["/file.bin"].unavailable = 0
        interrupted(server, target, lock)
    assert not target.exists()
    server.requests.clear()
    server.faults.clear()
    fetch(server, target, lock=lock)
    assert server.requests == [("/file.bin", "bytes=120000-", 206)]
    assert target.read_bytes() == CONTENT
    nothing_but(target)


def interrupted(server, target, lock):
    """One transfer breaks off, and then the server is unavailable for good."""
    faults = server.faults["/file.bin"]

    def say(_line):
        faults.unavailable = 100

    fetch(server, target, lock=lock, attempts=2, say=say)


def test_a_source_that_changed_in_between_is_not_mixed(server, target, lock):
    server.faults["/file.bin"] = Faults(drops=1, drop_after=120_000)
    with pytest.raises(UserError):
        interrupted(server, target, lock)
    server.faults.clear()
    newer = random.Random(1).randbytes(200_000)
    (server.root / "file.bin").write_bytes(newer)
    fetch(server, target, lock=lock)
    assert target.read_bytes() == newer
    assert server.statuses("/file.bin")[-1] == 200


@pytest.mark.parametrize("lacks", ["ranges", "etags"])
def test_servers_that_cannot_continue_start_anew(server, target, lacks):
    setattr(server, lacks, False)
    server.faults["/file.bin"] = Faults(drops=2)
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_always_breaks_off_at_the_same_place_is_given_up(server, target):
    server.ranges = False
    server.faults["/file.bin"] = Faults(drops=1000)
    with pytest.raises(UserError, match="3 times in a row"):
        fetch(server, target, attempts=3)
    assert len(server.requests) == 4


def test_without_validators_a_published_checksum_allows_to_continue(server, target):
    server.etags = False
    server.faults["/file.bin"] = Faults(drops=2)
    fetch(server, target, checksum=MD5)
    assert server.statuses("/file.bin") == [200, 206, 206]


def test_a_part_that_is_already_complete_is_not_fetched_again(server, target):
    server.faults["/file.bin"] = Faults()
    target.parent.mkdir(parents=True)
    target.with_name("file.bin.part").write_bytes(CONTENT)
    etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'.replace('"', '\\"')
    meta = f'{{"url": "{server.url}/file.bin", "total": {len(CONTENT)}, "validator": "{etag}"}}'
    target.with_name("file.bin.part.json").write_text(meta)
    fetch(server, target, checksum=MD5)
    assert server.statuses("/file.bin") == [416]


def test_a_truncated_answer_is_fetched_once_more(server, target):
    server.faults["/file.bin"] = Faults(truncated=1)
    fetch(server, target, checksum=MD5, size=len(CONTENT))
    assert target.read_bytes() == CONTENT


def test_an_archive_of_which_nothing_is_known_must_at_least_be_whole(server, target, lock):
    archive = server.root / "noise.tar.bz2"
    with tarfile.open(archive, "w:bz2") as tar:
        info = tarfile.TarInfo("noise/a.wav")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    server.faults["/noise.tar.bz2"] = Faults(truncated=1)
    fetch(server, target.with_name("noise.tar.bz2"), lock=lock)
    assert target.with_name("noise.tar.bz2").read_bytes() == archive.read_bytes()
    server.faults["/noise.tar.bz2"] = Faults(truncated=9)
    with pytest.raises(UserError, match=r"noise2?.tar.bz2: not a complete tar.bz2"):
        fetch(server, target.with_name("noise.tar.bz2"))


def test_a_wrong_size_or_checksum_is_refused_and_leaves_nothing(server, target):
    with pytest.raises(
        UserError, match=r"it has 200000 bytes, published are 7, 2 times in a row; .*corpora.<name>.base_url"
    ):
        fetch(server, target, size=7, attempts=2)
    with pytest.raises(UserError, match=r"its sha1 is .*published is 000"):
        fetch(server, target, checksum="sha1:" + 40 * "0")
    assert list(target.parent.iterdir()) == []


def test_the_lock_records_and_enforces(server, target, lock):
    fetch(server, target, lock=lock)
    assert lock.path.read_text() == f"{SHA256}  downloads/corpus/file.bin\n"
    target.unlink()
    fetch(server, target, lock=lock)
    target.unlink()
    (server.root / "file.bin").write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=r"checksums.lock has .* delete the line of downloads/corpus/file.bin there"):
        fetch(server, target, lock=lock)
    assert not target.exists() and SHA256 in lock.path.read_text()
    lock.forget_other_than(target, server.root / "file.bin")
    fetch(server, target, lock=lock)
    assert lock.get(target) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_damaged_lock_names_its_line(server, target, lock):
    lock.path.write_text(f"{SHA256}  a\nnonsense\n")
    with pytest.raises(UserError, match=r"checksums.lock: line 2 "):
        fetch(server, target, lock=lock)


def test_local_files_are_copied(tmp_path, target, lock, monkeypatch):
    (tmp_path / "mirror copy").mkdir()
    (tmp_path / "mirror copy" / "file.bin").write_bytes(CONTENT)
    assert download(f"file://{tmp_path}/mirror copy/file.bin", target, checksum=MD5, lock=lock) == SHA256
    monkeypatch.chdir(tmp_path)
    assert download("file://mirror%20copy/file.bin", target, lock=lock) == SHA256
    with pytest.raises(Missing, match=r"no such file: .*other.bin; correct corpora.<name>.base_url"):
        download(f"file://{tmp_path}/other.bin", target)


def test_no_network_names_the_url_and_the_remedy(target):
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/x: the connection failed .*3 times in a row; .*base_url"):
        download("http://127.0.0.1:9/x", target, attempts=3, wait_s=0.01)
    assert list(target.parent.iterdir()) == []


def test_what_the_server_does_not_have_is_not_tried_again(server, target):
    with pytest.raises(Missing, match=r"absent.bin: the server answers 404"):
        fetch(server, target.with_name("absent.bin"))
    assert server.statuses("/absent.bin") == [404]


def test_a_full_disk_stops_before_the_transfer(server, target, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 200_100_000, 200_100_000))
    with pytest.raises(UserError, match=r"not enough space in .*corpus: file.bin needs 200 kB .*200 MB are free"):
        fetch(server, target)
    assert list(target.parent.iterdir()) == []


def test_a_continued_file_needs_space_only_for_the_rest(server, target, lock, monkeypatch):
    server.faults["/file.bin"] = Faults(drops=1, drop_after=120_000)
    with pytest.raises(UserError):
        interrupted(server, target, lock)
    server.faults.clear()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 200_090_000))
    fetch(server, target, lock=lock)
    assert target.read_bytes() == CONTENT


@pytest.fixture
def microphones(server) -> Locations:
    for name in ("a.wav", "b&c.wav"):
        (server.root / name).write_bytes(name.encode())
    files = [RemoteFile("a.wav"), RemoteFile("b&c.wav"), RemoteFile("gone.wav", optional=True)]
    source = Source("mics", "", "", [], "", "", base_url=server.url, files=files, unpack="files")
    return Locations({"mics": source}, {}, "resources")


def test_a_collection_skips_only_what_is_optional(microphones, server, tmp_path, lock):
    table = tmp_path / "mics" / "collection.csv"
    download_collection(microphones, "mics", table, lock)
    assert [file.name for file in files_of_collection(table)] == ["a.wav", "b&c.wav"]
    assert "gone.wav,missing at the source" in table.read_text()
    server.requests.clear()
    download_collection(microphones, "mics", table, lock)
    assert {path for path, _, _ in server.requests} == {"/gone.wav"}, "what is there is not fetched again"


def test_a_collection_tells_all_that_is_missing(microphones, server, tmp_path, lock):
    (server.root / "a.wav").unlink()
    (server.root / "b&c.wav").unlink()
    table = tmp_path / "mics" / "collection.csv"
    with pytest.raises(UserError, match=r"lacks 2 of the 3 files of mics: a.wav, b&c.wav; .*optional: true"):
        download_collection(microphones, "mics", table, lock)
    assert not table.exists()
