from __future__ import annotations

import email.utils
import hashlib
import io
import random
import shutil
import tarfile
import threading
import time
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


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("a.wav", b"\n<!DOCTYPE html><html>moved</html>", "<!DOCTYPE html>"),
        ("a.ckpt", b"<html>busy</html>", "<html>busy"),
        (
            "a.pth",
            "<!doctype html>\r\n\t<title>\u0417\u0430\u043d\u044f\u0442\u043e</title>".encode(),
            "<!doctype html>",
        ),
        ("a.pth", b'<?xml version="1.0" encoding="iso-8859-1"?><Error>Acc\xe8s</Error>', "<?xml"),
        ("a.json", b"<!DOCTYPE html><html>moved</html>", "<!DOCTYPE html>"),
        ("a.json", b'{"cut": ', '{"cut":'),
        ("a.onnx", b'{"error": "no such record"}', "no such record"),
        ("words.txt", b"<!doctype HTML><p>moved</p>", "<!doctype HTML>"),
        ("a.bin", b"", "sends an empty file"),
    ],
)
def test_a_page_in_place_of_a_file_is_refused_and_not_locked(name, content, shown, server, target, lock):
    (server.root / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        fetch(server, target.with_name(name), lock=lock)
    assert f"/{name}: sends" in str(error.value) and shown in str(error.value) and "\n" not in str(error.value)
    assert list(target.parent.iterdir()) == [] and not lock.path.exists()


@pytest.mark.parametrize("content", [b"RIFF" + bytes(40), b"<\x00\x00\x00\x00\x00\x00\x00{", b"[\xff\x80", b"{}"])
def test_other_files_are_taken_as_they_are(content, server, target, lock):
    name = "a.json" if content == b"{}" else "a.safetensors"
    (server.root / name).write_bytes(content)
    fetch(server, target.with_name(name), lock=lock)
    assert target.with_name(name).read_bytes() == content


def test_two_processes_never_write_one_part(server, target, lock):
    """The second waits, and takes what the first has fetched and checked."""
    server.faults["/file.bin"] = Faults(drops=1)
    said, results, gate = [], [], threading.Event()

    def first(line: str) -> None:
        gate.wait(10)  # the first goes on when the second waits

    def second(line: str) -> None:
        said.append(line)
        gate.set()

    threads = []
    for say in (first, second):
        thread = threading.Thread(target=lambda say=say: results.append(fetch(server, target, lock=lock, say=say)))
        thread.start()
        threads.append(thread)
        while not server.requests:
            time.sleep(0.01)
    for thread in threads:
        thread.join(20)
    assert results == [SHA256, SHA256] and "another process is downloading it" in said[0]
    assert server.statuses("/file.bin") == [200, 206], "fetched once"
    assert target.read_bytes() == CONTENT and lock.path.read_text().count("\n") == 1
    nothing_but(target)


def test_a_range_of_another_version_is_not_appended(server, target, lock):
    server.faults["/file.bin"] = Faults(drops=1, drop_after=120_000)
    with pytest.raises(UserError):
        interrupted(server, target, lock)
    newer = random.Random(1).randbytes(200_000)
    (server.root / "file.bin").write_bytes(newer)
    server.faults["/file.bin"] = Faults(mixes=True)
    fetch(server, target, lock=lock)
    assert target.read_bytes() == newer and server.statuses("/file.bin")[-2:] == [206, 200]


def test_a_damaged_lock_is_told_before_the_transfer(server, target, lock):
    lock.path.write_bytes(f"{SHA256}  a\n".encode() + b"\xff\xfe nonsense\n")
    with pytest.raises(UserError, match=r"checksums.lock: line 2 is not"):
        fetch(server, target, lock=lock)
    assert server.requests == []
    lock.path.write_bytes(f"{SHA256}  ".encode() + b"\xff.wav\n")
    fetch(server, target, lock=lock)
    assert b"  \xff.wav\n" in lock.path.read_bytes(), "lines of other files are kept, whatever their names"


def test_a_stalling_server_is_given_up(server, target, monkeypatch):
    monkeypatch.setattr("finallyse.corpora.download.SLOW_S", 0.1)
    (server.root / "file.bin").write_bytes(CONTENT[:30])
    server.faults["/file.bin"] = Faults(trickle_s=0.02)
    with pytest.raises(UserError, match=r"only \d+ bytes came in 0.1 s, 2 times in a row"):
        fetch(server, target, attempts=2)


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("7", 7), ("900", 120), ("", 0), ("soon", 0), ("in 30", 30), ("in 900", 120), ("in -30", 0)],
)
def test_a_server_may_say_when_to_come_back(retry_after, seconds, server, target, monkeypatch):
    if retry_after.startswith("in "):
        retry_after = email.utils.formatdate(time.time() + int(retry_after[3:]), usegmt=True)
    server.faults["/file.bin"] = Faults(unavailable=1, retry_after=retry_after)
    monkeypatch.setattr("finallyse.corpora.download.time.sleep", lambda _: None)
    said = []
    fetch(server, target, say=said.append)
    told = float(said[0].rpartition("trying again in ")[2].removesuffix(" s"))
    assert told == pytest.approx(max(seconds, 0.01), abs=2)


def test_contents_that_nothing_vouches_for_stay_encrypted(target, monkeypatch):
    import requests

    hops = [requests.Response(), requests.Response()]
    hops[0].url, hops[1].url = "https://me:secret@host/file.bin", "http://elsewhere/file.bin"
    hops[1].status_code, hops[1].history, hops[1].raw = 200, hops[:1], io.BytesIO(CONTENT)
    monkeypatch.setattr(requests, "get", lambda *_, **__: hops[1])
    with pytest.raises(UserError, match=r"https://host/file.bin: leads to http://elsewhere/file.bin") as error:
        download("https://me:secret@host/file.bin", target)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://me:secret@127.0.0.1:9/x", "http://me:p@secret@a..b/x", "nonsense://me:secret@x"]
)
def test_passwords_are_not_told(url, target):
    said = []
    with pytest.raises(UserError) as error:
        download(url, target, attempts=1, wait_s=0.01, say=said.append)
    assert "secret" not in "".join([*said, str(error.value)])


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


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a,b\n1,2\n", b"file,status\n../x,fetched\n", b"file,status\nx\n"])
def test_a_damaged_table_is_told(text, tmp_path):
    (tmp_path / "x").touch()
    (tmp_path / "mics").mkdir()
    table = tmp_path / "mics" / "collection.csv"
    table.write_bytes(text)
    with pytest.raises(UserError, match=r"collection.csv: (not a table of a collection|lists )"):
        files_of_collection(table)
